"""The pictures and tables of an evaluation, task by task: what its few metrics do not tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.pictures.attributes import attribute_details
from pipelines.pictures.base import Details, Images
from pipelines.pictures.confusion import dog_details
from pipelines.pictures.detections import detection_details
from pipelines.pictures.embeddings import embedding_details
from pipelines.pictures.places import place_details

if TYPE_CHECKING:
    from tasks.base import Evaluation, TestSet

__all__ = ["DETAILS", "Details", "Images", "details"]

DETAILS: dict[str, Callable[[Evaluation, TestSet, Images], Details]] = {
    "stanford_dogs": dog_details,
    "geolocation": place_details,
    "face_attributes": attribute_details,
    "face_embedding": embedding_details,
    "object_detection": detection_details,
}


def details(task: str, evaluation: Evaluation, test_set: TestSet, images: Images) -> Details:
    """What a task shows of an evaluation: nothing for a task that is not in DETAILS. The same input, the same bytes."""
    if task not in DETAILS:
        return Details([], {})
    return DETAILS[task](evaluation, test_set, images)
