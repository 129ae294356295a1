"""SSD's loss: which anchor has to say what, and the hard ones among those that have nothing to find.

Liu et al. 2015, arXiv 1512.02325, section 2.2. Divergences from the code behind the paper's numbers, TensorFlow's: its
miner drops candidates whose boxes overlap another's by more than .99, here nothing is dropped; an anchor that is the
best of two objects goes to the one it overlaps more, there to the one that is listed first.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.boxes import areas, encode, intersections, iou, match

# How logits become scores, and with it the classification loss. "sigmoid": each class, the background too, is told
# from all else by itself (TensorFlow's public configurations). "softmax": they share a distribution (the SSD paper).
Scores = Literal["sigmoid", "softmax"]

MATCH_IOU = 0.5
CROWD_SHARE = 0.5  # of an anchor's area inside a crowd region, above which the anchor is no negative
NEGATIVES_PER_POSITIVE = 3


class Assignment(NamedTuple):
    """What anchors stand for. labels: (N, A) int64, 0 for the background. boxes: (N, A, 4), the objects'; the anchor
    itself where it has none. ignored: (N, A) bool, anchors that are neither object nor background.
    """

    labels: Tensor
    boxes: Tensor
    ignored: Tensor


def assign(
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    crowd: Tensor,
    *,
    object_iou: float = MATCH_IOU,
    background_iou: float = MATCH_IOU,
    best: bool = True,
) -> Assignment:
    """The objects of N images to their anchors (N, A, 4), as `tasks.boxes.match` does it.

    boxes: (N, M, 4). labels: (N, M) int64, 0 for padding. crowd: (N, M) bool. Objects without area, which COCO has two
    of, are left out. best: whether the best anchor of an object takes it in any case. Ignored are, unless they have an
    object, anchors that overlap one by `background_iou` or more, that lie in a crowd region by more than half, or that
    have no area.
    """
    boxes = F.pad(boxes, (0, 0, 0, 1))  # one more that is absent: there is always one to look up
    labels, crowd = F.pad(labels, (0, 1)), F.pad(crowd, (0, 1))
    real, size = (labels > 0) & (areas(boxes) > 0), areas(anchors)
    overlaps = torch.where((real & ~crowd)[..., None], iou(boxes, anchors), 0.0)
    overlap, nearest = overlaps.max(dim=1)
    matched = match(overlaps, real & ~crowd, object_iou) if best else torch.where(overlap >= object_iou, nearest, -1)
    found, index = matched >= 0, matched.clamp(min=0)
    inside = intersections(boxes, anchors) > CROWD_SHARE * size[:, None]
    in_crowd = (inside & (real & crowd)[..., None]).any(dim=1)
    ignored = (overlap >= background_iou) | in_crowd | (size <= 0)
    its_boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return Assignment(
        torch.where(found, labels.gather(1, index), 0),
        torch.where(found[..., None], its_boxes, anchors),
        ignored & ~found,
    )


def hard_negatives(losses: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """Each image's anchors without an object that have the largest losses, 3 for each with one: (N, A) all, bool.

    An image without an object has none, and so no part in the loss. The first counts as the larger among equals.
    """
    ranked = losses.masked_fill(positive | ignored, -torch.inf)
    places = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    wanted = NEGATIVES_PER_POSITIVE * positive.sum(dim=1, keepdim=True)
    return (places < wanted) & ~positive & ~ignored


def multibox_losses(
    offsets: Tensor, logits: Tensor, anchors: Tensor, targets: dict[str, Tensor], scores: Scores
) -> dict[str, Tensor]:
    """The two parts of the loss, each summed over the batch and divided by its anchors with an object, at least one.

    offsets: (N, A, 4), see `tasks.boxes.encode`. logits: (N, A, C), class 0 the background. anchors: (N, A, 4).
    targets: "boxes", "labels" and "crowd" as `assign` takes them.
    """
    offsets, logits = offsets.float(), logits.float()
    found = assign(anchors, targets["boxes"], targets["labels"], targets["crowd"])
    positive = found.labels > 0
    by_anchor = _classification(logits, found.labels, scores)
    chosen = positive | hard_negatives(by_anchor.detach(), positive, found.ignored)
    distances = F.smooth_l1_loss(offsets, encode(found.boxes, anchors), reduction="none").sum(dim=-1)
    matched = positive.sum().clamp(min=1)
    return {
        "classification": torch.where(chosen, by_anchor, 0.0).sum() / matched,
        "localisation": torch.where(positive, distances, 0.0).sum() / matched,
    }


def _classification(logits: Tensor, labels: Tensor, scores: Scores) -> Tensor:
    """(N, A, C) and (N, A) -> (N, A). Of the sigmoids the sum over classes: log(1 + e^x) of all, less the right x."""
    right = logits.gather(-1, labels[..., None]).squeeze(-1)
    return (F.softplus(logits).sum(dim=-1) if scores == "sigmoid" else logits.logsumexp(dim=-1)) - right
