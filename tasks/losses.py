"""Losses that tasks share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, C) with labels; no label smoothing (paper, section 3.2).

    labels: (N,) int64, or (N, C) the probabilities that a teacher gives to the classes (arXiv 1503.02531).
    """
    return F.cross_entropy(logits.float(), labels)


def attribute_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """The per-attribute cross-entropy of logits (N, A) with `shares`, averaged over all attributes and samples.

    shares: (N, A) in [0, 1]: labels, or a teacher's probabilities. The paper (section 4.5, footnote 2) measures "the
    emulation quality" so; it names no temperature, and there is none.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), shares.float())
