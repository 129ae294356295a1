"""Stanford Dogs, fine-grained classification (paper, section 4.3; Table 10), and the noisy web images of before.

All but the evaluation is ImageNet's. Table 10 gives top-1 accuracy; the accuracy by class is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.base import Evaluation, Targets, TestSet
from tasks.imagenet import IMAGENET, TopK, label_ranks


class Confusion:
    """`TopK`, with how many samples of each class were taken for each class.

    metrics: TopK's and "mean_per_class", the mean of the classes' accuracies over those that have samples, 0 of none.
    It differs from "top1" where classes differ in size, as Stanford Dogs' do in test.
    arrays: "confusion" (C, C) int64, the true classes as rows, what `predicted` says as columns: a row's sum is its
    class's samples, the trace is "top1_correct".
    """

    def __init__(self, num_classes: int) -> None:
        self.top_k = TopK()
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, outputs: Tensor, targets: Targets) -> None:
        """outputs: logits (N, C); targets["label"]: (N,) int64 in [0, C)."""
        labels, size = targets["label"], len(self.counts)
        assert outputs.shape == (len(labels), size), f"{tuple(outputs.shape)} outputs, {size} classes"
        self.top_k.update(outputs, targets)
        cells = labels * size + predicted(outputs, labels)
        self.counts += torch.bincount(cells, minlength=size * size).view(size, size).cpu()

    def compute(self) -> Evaluation:
        """All that was taken in."""
        samples = self.counts.sum(dim=1)
        accuracies = (self.counts.diag().double() / samples)[samples > 0]
        mean = float(accuracies.sum()) / max(len(accuracies), 1)
        metrics = {**self.top_k.compute().metrics, "mean_per_class": mean}
        return Evaluation(metrics, {"confusion": self.counts.numpy().copy()})


def predicted(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) the class that each sample was taken for: the highest logit, with TopK's view of ties and bad numbers.

    A sample is taken for its label only where that is surely the highest (`label_ranks`). Any other is taken for the
    highest other class, the first of equal ones. A logit that is not a number counts as minus infinity.
    """
    lowest = -torch.inf
    others = logits.masked_fill(logits.isnan(), lowest).scatter(1, labels[:, None], lowest)
    other = others.argmax(dim=1)
    other += other == labels  # only where all are the lowest and the label is 0, the first of them
    return torch.where(label_ranks(logits, labels) == 0, labels, other)


def _evaluator(test_set: TestSet) -> Confusion:
    return Confusion(len(test_set.classes))


STANFORD_DOGS = IMAGENET._replace(name="stanford_dogs", evaluator=_evaluator)
