"""Boxes: how much they overlap, what a net regresses in their place, which anchor stands for which object, which stay.

A box is (x1, y1, x2, y2), float, in units of the image's side; dimensions in front, here "...", are batches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Of the offsets of centre and size: box_coder { 10, 10, 5, 5 } in TensorFlow's code, variances of .1 and .2 in SSD's.
OFFSET_SCALES = (10.0, 10.0, 5.0, 5.0)
MAX_GROWTH = math.log(1000 / 16)  # of a side over its anchor's, as torchvision has it; untrained nets ask for more
CANDIDATES = 1000  # scores of an image that suppression begins with


class Suppression(NamedTuple):
    """Which boxes are a net's detections. score_threshold: above which a box counts. nms_iou: by which two of a class
    overlap at most. max_detections: of an image.
    """

    score_threshold: float
    nms_iou: float
    max_detections: int


def areas(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...), 0 for a box whose end lies before its start."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def intersections(a: Tensor, b: Tensor) -> Tensor:
    """The area that each of (..., A, 4) shares with each of (..., B, 4): (..., A, B)."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(min=0)
    return width * height


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each of (..., A, 4) with each of (..., B, 4): (..., A, B), 0 without any area."""
    shared = intersections(a, b)
    union = areas(a)[..., :, None] + areas(b)[..., None, :] - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """What a net has to say of an anchor to mean a box: (..., 4) and (..., 4), sides above 0 -> (..., 4).

    The centre's distance in the anchor's sides, the logarithm of the sides' ratio, each times its `OFFSET_SCALES`.
    """
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    offsets = torch.cat([shift / anchor_size, (size / anchor_size).log()], dim=-1)
    return offsets * offsets.new_tensor(OFFSET_SCALES)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """The boxes that `encode` was given; sides end at 62.5 times the anchor's, so that they are finite."""
    offsets = offsets / offsets.new_tensor(OFFSET_SCALES)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * anchor_size
    half = offsets[..., 2:].clamp(max=MAX_GROWTH).exp() * anchor_size / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def match(overlaps: Tensor, present: Tensor, threshold: float) -> Tensor:
    """The object that each anchor stands for: overlaps (..., M, A), present (..., M) bool -> (..., A) int64, or -1.

    An anchor takes the object that it overlaps most, from an IoU of `threshold` on; the best anchor of an object takes
    that object in any case (of several whose best it is, the one it overlaps most). Objects that are not present, and
    those that no anchor touches, have none. The first counts as the best among equals.
    """
    count, anchors = overlaps.shape[-2:]
    if count == 0:
        return torch.full((*overlaps.shape[:-2], anchors), -1, dtype=torch.int64, device=overlaps.device)
    overlaps = torch.where(present[..., None], overlaps, 0.0)
    best_overlap, best = overlaps.max(dim=-2)
    is_best = torch.zeros_like(overlaps, dtype=torch.bool).scatter_(-1, overlaps.argmax(dim=-1, keepdim=True), True)
    forced_overlap, forced = torch.where(is_best, overlaps, 0.0).max(dim=-2)
    matched = torch.where(best_overlap >= threshold, best, -1)
    return torch.where(forced_overlap > 0, forced, matched)


@torch.no_grad()
def detections(boxes: Tensor, scores: Tensor, rule: Suppression) -> Tensor:
    """(N, max_detections, 6): x1, y1, x2, y2, score, label of each image's detections, best first, then zeros.

    boxes: (N, A, 4), or (N, A, C, 4) where each class has its own. scores: (N, A, C), without the background.
    """
    found = scores.new_zeros(len(scores), rule.max_detections, 6)
    if found.is_meta:  # where no score is above another, and a net is counted all the same
        return found
    for row, image_boxes, image_scores in zip(found, boxes, scores, strict=True):
        kept = suppress(image_boxes, image_scores, *rule)
        row[: len(kept["scores"])] = torch.cat(
            [kept["boxes"], kept["scores"][:, None], kept["labels"][:, None].to(row.dtype)], dim=1
        )
    return found


@torch.no_grad()
def suppress(
    boxes: Tensor, scores: Tensor, score_threshold: float, nms_iou: float, max_detections: int
) -> dict[str, Tensor]:
    """One image's detections: "boxes" (K, 4), "scores" (K,) descending and "labels" (K,) int64, the class's column + 1.

    boxes: (A, 4), or (A, C, 4) where each class has its own. scores: (A, C), without the background, at least 0. Boxes
    without area are left out; of a class, none overlaps a better one by an IoU above `nms_iou`.

    Whether a box stays depends on those with higher scores alone, so only the best are looked at, and more of them
    where too few stay. Of an untrained net each of 1,917 x 90 scores is above TensorFlow's threshold of 1e-8.
    """
    from torchvision.ops import batched_nms  # here, because it takes seconds

    boxes = boxes if boxes.dim() == 3 else boxes[:, None]
    ranked = torch.where(areas(boxes) > 0, scores, -1.0)
    above = int((ranked > score_threshold).sum())
    boxes = boxes.expand(*scores.shape, 4)
    count = CANDIDATES
    while True:
        best, places = ranked.flatten().topk(min(count, above))
        rows, labels = places // scores.shape[1], places % scores.shape[1]
        found = boxes[rows, labels]
        # In double, for classes are kept apart by moving their boxes away from each other.
        kept = batched_nms(found.double(), best.double(), labels, nms_iou)[:max_detections]
        if len(kept) == max_detections or count >= above:
            return {"boxes": found[kept], "scores": best[kept], "labels": labels[kept] + 1}
        count *= 4
