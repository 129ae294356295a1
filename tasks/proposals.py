"""What goes on between the two stages of Faster R-CNN: the boxes that are proposed, and the minibatches that teach.

Ren et al. 2015, arXiv 1506.01497, section 3; settings of Huang et al. 2016, arXiv 1611.10012, section 3.6.1, and of
TensorFlow's detection code, `faster_rcnn_inception_v2_coco.config` and `faster_rcnn_meta_arch.py`:
https://github.com/tensorflow/models/tree/master/research/object_detection

Divergence from TensorFlow's: anchors that cross the image's edge learn as the others do. There they are left out in
training and cut at the edge in evaluation; at 300 px those of 512 px would never learn. Objects are not added to the
proposals that the second stage learns from, as there; torchvision adds them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import multibox
from tasks.boxes import decode, encode, suppress
from tasks.multibox import Assignment

PROPOSAL_IOU = 0.7  # above which of two proposals the less likely one is dropped
LOCALISATION_WEIGHT = 2.0


class Minibatch(NamedTuple):
    """How a stage's minibatch is drawn from the boxes of an image.

    size: how many boxes. share: of them, how many with an object at most. object_iou: from which on a box has one.
    background_iou: below which it has none; between the two it does not count. best: whether each object's best box
    has it whatever their IoU.
    """

    size: int
    share: float
    object_iou: float
    background_iou: float
    best: bool


ANCHORS = Minibatch(size=256, share=0.5, object_iou=0.7, background_iou=0.3, best=True)
BOXES = Minibatch(size=64, share=0.25, object_iou=0.5, background_iou=0.5, best=False)


class Drawn(NamedTuple):
    """A minibatch of K boxes of each image. places: (N, K) int64, of boxes among the candidates. labels: (N, K) int64,
    0 for the background. boxes: (N, K, 4), the objects'. counts: (N, K) bool, False for what fills the minibatch up.
    """

    places: Tensor
    labels: Tensor
    boxes: Tensor
    counts: Tensor


@torch.no_grad()
def propose(logits: Tensor, offsets: Tensor, anchors: Tensor, count: int) -> Tensor:
    """Each image's `count` likeliest objects, best first, inside the image: (N, count, 4), at the end zeros.

    logits: (N, A, 2), background and object. offsets: (N, A, 4). anchors: (N, A, 4).
    """
    boxes = decode(offsets.float(), anchors).clamp(0, 1)
    scores = logits.float().softmax(dim=-1)[..., 1:]
    proposals = boxes.new_zeros(len(boxes), count, 4)
    if not boxes.is_meta:  # where no box is likelier than another, and a net is counted all the same
        for row, image_boxes, image_scores in zip(proposals, boxes, scores, strict=True):
            found = suppress(image_boxes, image_scores, 0.0, PROPOSAL_IOU, count)["boxes"]
            row[: len(found)] = found
    return proposals


def assign(candidates: Tensor, targets: dict[str, Tensor], rule: Minibatch) -> Assignment:
    """What candidates (N, A, 4) stand for by a stage's rule; targets as `tasks.multibox.assign` takes them, by name."""
    return multibox.assign(
        candidates,
        targets["boxes"],
        targets["labels"],
        targets["crowd"],
        object_iou=rule.object_iou,
        background_iou=rule.background_iou,
        best=rule.best,
    )


@torch.no_grad()
def draw(candidates: Tensor, targets: dict[str, Tensor], rule: Minibatch) -> Drawn:
    """A minibatch of the candidates (N, A, 4) of each image, at random from the default generator.

    Boxes with an object come up to their share, others fill the rest; if all are too few, some that do not count.
    """
    found = assign(candidates, targets, rule)
    order = torch.rand(found.labels.shape, device=candidates.device)
    objects = _first(found.labels > 0, order, int(rule.size * rule.share))
    rest = rule.size - objects.sum(dim=1, keepdim=True)
    chosen = objects | _first((found.labels == 0) & ~found.ignored, order, rest)
    places = chosen.int().argsort(dim=1, descending=True, stable=True)[:, : rule.size]
    return Drawn(places, found.labels.gather(1, places), take(found.boxes, places), chosen.gather(1, places))


def take(values: Tensor, places: Tensor) -> Tensor:
    """Those of (N, A, ...) that are at `places` (N, K): (N, K, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], places]


def stage_losses(logits: Tensor, offsets: Tensor, boxes: Tensor, drawn: Drawn) -> dict[str, Tensor]:
    """A stage's "classification" and "localisation": each image's mean over the boxes that count, and the batch's mean.

    logits: (N, K, C + 1), class 0 the background. offsets: (N, K, C, 4), see `tasks.boxes.encode`, of each class.
    boxes: (N, K, 4) that they are offsets of. Localisation weighs `LOCALISATION_WEIGHT`.
    """
    has_object = drawn.counts & (drawn.labels > 0)
    of_class = take(offsets.flatten(0, 1), (drawn.labels.flatten() - 1).clamp(min=0)[:, None]).view_as(boxes).float()
    whole = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])  # in place of boxes that may have no area, so that nothing is NaN
    pair = (torch.where(has_object[..., None], part, whole) for part in (drawn.boxes, boxes))
    distances = F.smooth_l1_loss(of_class, encode(*pair), reduction="none").sum(dim=-1)
    entropies = F.cross_entropy(logits.float().flatten(0, 1), drawn.labels.flatten(), reduction="none")
    share = 1 / (drawn.counts.sum(dim=1, keepdim=True).clamp(min=1) * len(boxes))
    return {
        "classification": torch.where(drawn.counts, entropies.view_as(drawn.labels) * share, 0.0).sum(),
        "localisation": LOCALISATION_WEIGHT * torch.where(has_object, distances * share, 0.0).sum(),
    }


def _first(eligible: Tensor, order: Tensor, count: Tensor | int) -> Tensor:
    """(N, A) bool: each row's first `count` of those that are eligible, by `order`."""
    places = order.masked_fill(~eligible, torch.inf).argsort(dim=1).argsort(dim=1)
    return eligible & (places < count)
