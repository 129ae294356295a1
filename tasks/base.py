"""What a task is, and how a net is evaluated on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tasks.augment import normalise

Targets = dict[str, Tensor]


class Batch(NamedTuple):
    """What a reader yields.

    images: (N, H, W, 3) uint8, RGB.
    distortions: (N, 4) float32, what `tasks.augment.distort` does to each training image; (0, 4) in evaluation.
    targets: by name, each with N rows, e.g. {"label": (N,) int64}.
    """

    images: Tensor
    distortions: Tensor
    targets: Targets


class Evaluator(Protocol):
    """Adds up what a metric needs over batches and divides once, at the end."""

    def update(self, outputs: Tensor, targets: Targets) -> None:
        """Take in one batch of a net's outputs."""

    def compute(self) -> dict[str, float]:
        """The metrics of all that was taken in."""


class Task(NamedTuple):
    """One thing to learn, as a record of functions.

    collate: the shards' JSON fields of N samples -> the targets of a batch.
    loss: (outputs, targets) -> scalar.
    batch_metrics: (outputs, targets) -> scalars worth a curve, beside the loss.
    evaluator: (number of classes) -> a fresh Evaluator.
    predict: outputs -> what a user of the model sees, e.g. probabilities.
    """

    name: str
    collate: Callable[[list[dict[str, Any]]], Targets]
    loss: Callable[[Tensor, Targets], Tensor]
    batch_metrics: Callable[[Tensor, Targets], Targets]
    evaluator: Callable[[int], Evaluator]
    predict: Callable[[Tensor], Tensor]


@torch.inference_mode()
def evaluate(task: Task, net: nn.Module, batches: Iterator[Batch], num_classes: int, device: str) -> dict[str, float]:
    """The task's metrics of `net` over all batches, each sample once, the net in evaluation mode."""
    evaluator = task.evaluator(num_classes)
    net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for batch in batches:
        targets = {name: value.to(device) for name, value in batch.targets.items()}
        evaluator.update(net(normalise(batch.images.to(device))), targets)
    return evaluator.compute()
