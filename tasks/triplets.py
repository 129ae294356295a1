"""The triplet loss of FaceNet with semi-hard negatives (arXiv 1503.03832, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 0.2  # FaceNet, section 3.1


def squared_distances(embeddings: Tensor) -> Tensor:
    """(N, N) |a - b|^2 of unit vectors (N, D) float32; without roots, so that equal ones have a finite gradient."""
    with torch.autocast(embeddings.device.type, enabled=False):  # bfloat16 would not tell near distances apart
        return 2 - 2 * embeddings @ embeddings.T


def positive_pairs(identities: Tensor) -> tuple[Tensor, Tensor]:
    """(positive, negative): (N, N) bool, which samples show the anchor's person, itself left out, and which another's.

    Rows are anchors. identities: (N,) int64.
    """
    same = identities[:, None] == identities
    itself = torch.eye(len(identities), dtype=torch.bool, device=identities.device)
    return same & ~itself, ~same


def triplet_loss(embeddings: Tensor, identities: Tensor) -> Tensor:
    """Mean of max(0, |a - p|^2 - |a - n|^2 + 0.2) over all ordered pairs (a, p) of one person in the batch.

    embeddings: (N, D) float32 of unit length. identities: (N,) int64. n is, of the samples of other people, the nearest
    to a that is strictly farther than p; those of them within the margin are FaceNet's semi-hard negatives, beyond it
    the loss is zero. Where no negative is farther than p, n is the farthest one: FaceNet leaves this open, TensorFlow
    Addons' triplet_semihard_loss does so. An anchor without negatives is left out; without any triplet the loss is
    zero, and so is its gradient.
    """
    distances = squared_distances(embeddings)
    positive, negative = positive_pairs(identities)
    positive = positive & negative.any(dim=1, keepdim=True)
    ascending, order = distances.detach().masked_fill(~negative, torch.inf).sort(dim=1)
    nearest_farther = torch.searchsorted(ascending, distances.detach(), right=True)
    farthest = negative.sum(dim=1, keepdim=True) - 1
    chosen = distances.gather(1, order.gather(1, nearest_farther.minimum(farthest).clamp(min=0)))
    hinges = (distances - chosen + MARGIN).relu() * positive
    return hinges.sum() / positive.sum().clamp(min=1)
