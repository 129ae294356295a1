"""Geolocation: where a photo was taken, as a choice among cells of the Earth (paper, section 4.4; Table 11).

The paper retrains PlaNet (arXiv 1602.05314) with MobileNet in place of Inception V3: a softmax over the cells of
`tasks.geocells`, the label being the cell that holds the photo's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import s2
from tasks.base import Collate, Targets, Task
from tasks.geocells import assign
from tasks.imagenet import label_ranks
from tasks.losses import softmax_cross_entropy
from tasks.place_errors import PlaceErrors

NO_CELL = -1


def collator(tokens: Sequence[str]) -> Collate:
    """Labels photos by the cells of these S2 tokens, which are in ascending order.

    Its targets: "place" (N, 2) float64, latitude and longitude in degrees, and "label" (N,) int64, the number of the
    cell that holds it, or NO_CELL where that was dropped; nothing where no photo has a place. Raises ValueError where
    there are no cells, and where some photos have a place and some have not.
    """
    if not tokens:
        raise ValueError("task geolocation chooses among cells, but its table in params.yaml names none (cells)")
    cells = np.array([s2.from_token(token) for token in tokens], dtype=np.uint64)
    assert (cells[:-1] < cells[1:]).all(), "the cells are not in order"

    def collate(fields: list[dict[str, Any]]) -> Targets:
        known = [(sample["latitude"], sample["longitude"]) for sample in fields if "latitude" in sample]
        if not known:
            return {}
        if len(known) < len(fields):
            raise ValueError(f"'latitude': {len(known)} of {len(fields)} samples have one; all must, or none")
        places = np.array(known, dtype=np.float64)
        labels = assign(s2.leaves(places[:, 0], places[:, 1]), cells)
        return {"place": torch.from_numpy(places), "label": torch.from_numpy(labels)}

    return collate


def loss(outputs: Tensor, targets: Targets) -> Tensor:
    """Mean cross-entropy of logits (N, C) over the photos that have a cell; 0 where none has.

    PlaNet discards the photos of dropped cells. Here they pass through the net, and so through BatchNorm's statistics,
    but nothing is learned of where they are from.
    """
    labels = targets["label"]
    total = F.cross_entropy(outputs.float(), labels, ignore_index=NO_CELL, reduction="sum")
    return total / (labels != NO_CELL).sum().clamp(min=1)


def batch_metrics(outputs: Tensor, targets: Targets) -> Targets:
    """The share of photos whose cell has the highest logit, of those that have a cell; NaN where none has."""
    known = targets["label"] != NO_CELL
    return {"cell_accuracy": (label_ranks(outputs[known], targets["label"][known]) == 0).float().mean()}


def _probabilities(outputs: Tensor) -> Tensor:
    return outputs.float().softmax(dim=1)


GEOLOCATION = Task(
    name="geolocation",
    num_outputs=len,
    collator=collator,
    loss=loss,
    distill=softmax_cross_entropy,
    batch_metrics=batch_metrics,
    evaluator=PlaceErrors,
    predict=_probabilities,
)
