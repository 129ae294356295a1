"""What is learned: nets, losses, optimizers and tasks, in plain PyTorch and Lightning.

Nothing here knows of Ray, DVC, MLflow or a file's path. `TASKS` is the only registry.
"""

from __future__ import annotations

from tasks.base import Task
from tasks.detection import OBJECT_DETECTION
from tasks.face_attributes import FACE_ATTRIBUTES
from tasks.face_embedding import FACE_EMBEDDING
from tasks.geolocation import GEOLOCATION
from tasks.imagenet import IMAGENET
from tasks.stanford_dogs import STANFORD_DOGS

TASKS: dict[str, Task] = {
    task.name: task
    for task in (IMAGENET, STANFORD_DOGS, GEOLOCATION, FACE_ATTRIBUTES, FACE_EMBEDDING, OBJECT_DETECTION)
}
