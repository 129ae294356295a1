"""ImageNet classification (paper, section 4.1 and 4.2; Tables 4 to 9)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.base import Evaluation, Targets, Task, TestSet
from tasks.losses import softmax_cross_entropy

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def wilson_interval(correct: int, samples: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion: (low, high) in [0, 1]; (0, 1) for no samples.

    https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval
    """
    if samples == 0:
        return 0.0, 1.0
    share, z2 = correct / samples, Z_95**2
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = Z_95 / (1 + z2 / samples) * (share * (1 - share) / samples + z2 / (4 * samples**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


class TopK:
    """Counts of samples whose label is the highest logit, and among the five highest.

    A tie counts against the net: a label's rank is the number of other classes whose logit is not below its own,
    so that a net whose outputs are all equal, or not numbers, scores nothing.
    """

    def __init__(self) -> None:
        self.correct = {1: 0, 5: 0}
        self.samples = 0

    def update(self, outputs: Tensor, targets: Targets) -> None:
        """outputs: logits (N, C); targets["label"]: (N,) int64 in [0, C)."""
        ranks = label_ranks(outputs, targets["label"])
        for k in self.correct:
            self.correct[k] += int((ranks < k).sum())
        self.samples += len(ranks)

    def compute(self) -> Evaluation:
        """Shares, counts and the interval of the first."""
        low, high = wilson_interval(self.correct[1], self.samples)
        shares = {f"top{k}": count / max(self.samples, 1) for k, count in self.correct.items()}
        counts = {f"top{k}_correct": count for k, count in self.correct.items()}
        return Evaluation({**shares, "top1_low": low, "top1_high": high, **counts, "samples": self.samples})


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) how many other classes are not surely below the label's logit: 0 where the label alone is the highest."""
    own = logits.gather(1, labels[:, None])
    return (~(logits < own)).sum(dim=1) - 1


def collate(fields: list[dict[str, Any]]) -> Targets:
    """{"label": (N,) int64}, the rank of each image's WNID; nothing where the images are not labelled."""
    if not any("label" in sample for sample in fields):
        return {}
    return {"label": torch.tensor([sample["label"] for sample in fields], dtype=torch.int64)}


def _loss(outputs: Tensor, targets: Targets) -> Tensor:
    return softmax_cross_entropy(outputs, targets["label"])


def _batch_metrics(outputs: Tensor, targets: Targets) -> Targets:
    return {"top1": (label_ranks(outputs, targets["label"]) == 0).float().mean()}


def _evaluator(_: TestSet) -> TopK:
    return TopK()


def _probabilities(outputs: Tensor) -> Tensor:
    return outputs.float().softmax(dim=1)


IMAGENET = Task(
    name="imagenet",
    num_outputs=len,
    collator=lambda _: collate,
    loss=_loss,
    distill=softmax_cross_entropy,
    batch_metrics=_batch_metrics,
    evaluator=_evaluator,
    predict=_probabilities,
)
