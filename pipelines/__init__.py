"""How data and runs move: the stages of `dvc.yaml`, and what they share. The stages never import each other."""
