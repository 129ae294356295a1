"""Object detection on COCO (paper, section 4.6; Table 13): what is where in an image, as boxes with a category.

The nets are SSD and Faster R-CNN (`tasks.nets.DETECTORS`), whose losses need the images and the boxes in them at once.
A label is the number of a COCO category, sparse as it is (1 to 90), and 0 the background: 91 outputs for COCO's 80.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.base import Collate, Evaluation, Targets, Task, TestSet, View
from tasks.box_crops import in_pixels, seen
from tasks.coco_ap import CocoAP, category_number

NOT_TAUGHT = "a detector learns from boxes, not from a teacher"


def num_outputs(categories: Sequence[str]) -> int:
    """One for each number up to the highest category's, and the background."""
    return 1 + max(category_number(category) for category in categories)


def collator(categories: Sequence[str]) -> Collate:
    """Makes the targets of COCO's images, N of them with M objects at most; nothing where none has its objects.

    "boxes" (N, M, 4) float32, x1, y1, x2, y2 in [0, 1] of what is seen; "labels" (N, M) int64, numbers of categories, 0
    where an image has fewer objects or the middle of one is not seen; "crowd" (N, M) bool. For evaluation "image_id"
    (N,) int64; "crop" (N, 4) int64, top, left, height and width in pixels; "objects" (N, M, 7) float64, of each object
    category, x, y, width, height and area in pixels of the image as it is stored, and whether it is a crowd; category 0
    where there is none. Raises ValueError where some images have objects and some have not, and for other categories.
    """
    known = {category_number(category) for category in categories}

    def collate(fields: list[dict[str, Any]]) -> Targets:
        annotated = sum("objects" in sample for sample in fields)
        if not annotated:
            return {}
        if annotated < len(fields):
            raise ValueError(f"'objects': {annotated} of {len(fields)} samples have them; all must, or none")
        most = max(len(sample["objects"]) for sample in fields)
        objects = np.zeros((len(fields), most, 7))
        boxes = np.zeros((len(fields), most, 4), np.float32)
        labels = np.zeros((len(fields), most), np.int64)
        for image, sample in enumerate(fields):
            if strange := {thing["category"] for thing in sample["objects"]} - known:
                raise ValueError(f"image {sample['image_id']}: category {min(strange)} is none of {sorted(known)}")
            count = len(sample["objects"])
            objects[image, :count] = table = _table(sample["objects"])
            view: View = sample["view"]
            boxes[image, :count], kept = seen(table[:, 1:5], np.array(view.crop), view.flipped)
            labels[image, :count] = np.where(kept, table[:, 0], 0)
        return {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels),
            "crowd": torch.from_numpy(objects[..., 6] > 0),
            "image_id": torch.tensor([sample["image_id"] for sample in fields]),
            "crop": torch.tensor([sample["view"].crop for sample in fields]),
            "objects": torch.from_numpy(objects),
        }

    return collate


def run(net: nn.Module, images: Tensor, targets: Targets) -> Targets:
    """The parts of a detector's loss, by name."""
    losses: Targets = net.losses(images, targets)  # type: ignore[operator]
    return losses


def loss(losses: Targets, _: Targets) -> Tensor:
    """The sum of the parts."""
    return torch.stack(list(losses.values())).sum()


def batch_metrics(losses: Targets, _: Targets) -> Targets:
    """The parts themselves, as "classification_loss" and so on."""
    return {f"{name}_loss": value.detach() for name, value in losses.items()}


class DetectionAP:
    """COCO's figures of a detector: see `tasks.coco_ap.CocoAP`.

    arrays: also "image_sizes" (N, 2) int64, height and width in pixels, of each image in the order of evaluation.
    Images are to be seen whole: a net cannot find what is cut off.
    """

    def __init__(self, test_set: TestSet) -> None:
        self.figures = CocoAP(test_set.classes)
        self.sizes: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Targets) -> None:
        """outputs: (N, K, 6), see `tasks.boxes.detections`; targets: see `collator`."""
        crops = targets["crop"].cpu()
        detections = outputs.double().cpu()
        corners = in_pixels(detections[..., :4], crops)
        found = []
        for boxes, scores, labels in zip(corners, detections[..., 4], detections[..., 5].long(), strict=True):
            there = labels > 0
            found.append({"boxes": boxes[there], "scores": scores[there], "labels": labels[there]})
        objects = [_records(rows) for rows in targets["objects"].tolist()]
        self.figures.update(targets["image_id"].tolist(), found, objects)
        self.sizes.append(crops[:, 2:])

    def compute(self) -> Evaluation:
        """All that was taken in."""
        found = self.figures.compute()
        return Evaluation(found.metrics, {**found.arrays, "image_sizes": torch.cat(self.sizes).numpy()})


def _table(objects: Sequence[dict[str, Any]]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rows = [(thing["category"], *thing["box"], thing["area"], thing["crowd"]) for thing in objects]
    return np.array(rows, np.float64).reshape(-1, 7)


def _records(rows: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """The objects of an image as the shards have them."""
    return [
        {"category": int(category), "box": box, "area": area, "crowd": bool(crowd)}
        for category, *box, area, crowd in rows
        if category
    ]


def _refuse(*_: Tensor) -> Tensor:
    raise ValueError(NOT_TAUGHT)


def _as_they_are(outputs: Tensor) -> Tensor:
    return outputs.float()


OBJECT_DETECTION = Task(
    name="object_detection",
    num_outputs=num_outputs,
    collator=collator,
    loss=loss,
    distill=_refuse,
    batch_metrics=batch_metrics,
    evaluator=DetectionAP,
    predict=_as_they_are,
    run=run,
)
