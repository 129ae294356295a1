"""What is learned: nets, losses, optimizers and tasks, in plain PyTorch and Lightning.

Nothing here knows of Ray, DVC, MLflow or a file's path. `TASKS` is the only registry.
"""

from __future__ import annotations

from tasks.base import Task
from tasks.imagenet import IMAGENET

TASKS: dict[str, Task] = {task.name: task for task in (IMAGENET,)}
