"""A small copy of the project, with DVC in it and the cheapest rows of each table."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
ROWS = ("imagenet_w025_r128", "imagenet_w025_r160")
OTHERS = {  # the cheapest rows of the other tables, with those that they need
    "web_dogs": ["web_dogs_w075_r192"],
    "stanford_dogs": ["stanford_dogs_w075_r192", "stanford_dogs_w100_r192"],
    "celeba_attributes": ["face_attributes_nn2"],
    "face_attributes": ["face_attributes_w025_r128"],
    "face_embeddings": ["face_embedding_nn2", "face_embedding_w075_r128"],
    "detection": ["detection_ssd300_mobilenet"],
}
DATA = {
    "imagenet": "classes=10&train=32&val=5&size=128",
    "stanford_dogs": "breeds=6&train=12&test=8&size=96",
    "web_dogs": "breeds=6&train=12&test=8&size=96&web=16",
    "celeba": "people=60&images=6&size=96",
    "lfw": "folds=4&people=4&images=4&pairs=5&size=96",
    "coco": "train=24&val=16&test=8&classes=3&size=96&overlap=30",
}


class Project:
    """A copy of the project with two small rows, and DVC in it."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("pipelines", "tasks"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        path = Path(sys.executable).parent
        self.environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        sample = params["scales"]["sample"]
        for name, options in DATA.items():
            data = sample["datasets"][name]
            data["origin"] = f"sample:{name}?{options}&seed=1"
            data["shard"]["samples"] = dict.fromkeys(data["shard"]["samples"])
        for name, rows in {"imagenet": ROWS, **OTHERS}.items():
            table = params["tables"][name]
            table["runs"] = {row: table["runs"][row] for row in rows}
            for scale in params["scales"].values():
                scale["recipes"][name]["runs"] = {}
            sample["recipes"][name]["defaults"]["epochs"] = 0.3
        sample["recipes"]["imagenet"]["defaults"].update(epochs=2, log_steps=1, checkpoint_steps=4)
        for table, row in (("stanford_dogs", "stanford_dogs_w100_r192"), ("detection", "detection_ssd300_mobilenet")):
            params["tables"][table]["runs"][row]["init_from"] = None  # needs no other
        self.write(params)
        self.run("dvc", "init", "--no-scm", "--quiet")

    def write(self, params):
        self.params = params
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def set_row(self, name, table="imagenet", **values):
        self.params["tables"][table]["runs"][name].update(values)
        self.write(self.params)

    def run(self, *command, check=True):
        answer = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert not check or answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout + answer.stderr

    def repro(self, *stages):
        return self.run("dvc", "repro", *(stages or ["evaluate_imagenet"]))

    def row(self, name):
        return self.folder / "results/sample/imagenet/train" / name

    def fingerprints(self):
        return {name: json.loads((self.row(name) / "run.json").read_text())["fingerprint"] for name in ROWS}

    def curves(self):
        """Each row carries the time it was made: equal curves are of one training."""
        return {name: (self.row(name) / "curve.jsonl").read_text() for name in ROWS}
