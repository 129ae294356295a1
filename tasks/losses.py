"""Losses that tasks share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, C) with labels (N,) int64; no label smoothing (paper, section 3.2)."""
    return F.cross_entropy(logits.float(), labels)
