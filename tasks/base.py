"""What a task is, and how a net is evaluated on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tasks.augment import normalise

Targets = dict[str, Tensor]


class View(NamedTuple):
    """What a batch shows of an image. crop: top, left, height and width in pixels of the image as it is stored.
    flipped: whether left and right are exchanged then.
    """

    crop: tuple[int, int, int, int]
    flipped: bool


# The shards' JSON fields of N samples, and how each is seen under "view" -> the targets of a batch.
Collate = Callable[[list[dict[str, Any]]], Targets]


class Batch(NamedTuple):
    """What a reader yields.

    images: (N, H, W, 3) uint8, RGB.
    distortions: (N, 4) float32, what `tasks.augment.distort` does to each training image; (0, 4) in evaluation.
    targets: by name, each with N rows, e.g. {"label": (N,) int64}. Where a net learns from a teacher, "taught" are the
    teacher's predictions, (N, outputs) float32, or "teacher_images" what it is to see, (N, S, S, 3) uint8.
    """

    images: Tensor
    distortions: Tensor
    targets: Targets


class Pairs(NamedTuple):
    """Pairs of test samples of which one asks whether they show the same: LFW's, which come in folds.

    first, second: (M,) int64, places of samples in the order of evaluation. same: (M,) bool. fold: (M,) int64, from 0.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    same: npt.NDArray[np.bool_]
    fold: npt.NDArray[np.int64]


class Places(NamedTuple):
    """Where the classes are that are parts of the Earth.

    positions: (C, 2) float64, latitude and longitude in degrees, what a class is decoded to. photos: (C,) int64, of how
    many it was made.
    """

    positions: npt.NDArray[np.float64]
    photos: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TestSet:
    """What is known of the data that a net is evaluated on, beside its batches.

    classes: names in label order; for attributes their names, for cells their tokens; empty where a data set has none.
    """

    __test__ = False  # pytest takes it for a test by its name

    classes: Sequence[str]
    pairs: Pairs | None = None
    places: Places | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a net reached. metrics: scalars. arrays: what pictures are drawn of, by names that the task states."""

    metrics: dict[str, float]
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


def run(net: nn.Module, images: Tensor, targets: Targets) -> Tensor:  # noqa: ARG001 - see `Task.run`
    """The net's outputs, which are all that most losses need."""
    outputs: Tensor = net(images)
    return outputs


class Evaluator(Protocol):
    """Adds up what a metric needs over batches and divides once, at the end."""

    def update(self, outputs: Tensor, targets: Targets) -> None:
        """Take in one batch of a net's outputs."""

    def compute(self) -> Evaluation:
        """The metrics of all that was taken in; "samples" among them, how many that were."""


class Task(NamedTuple):
    """One thing to learn, as a record of functions.

    by_identity: whether `loss` compares samples of one person with each other, so that a batch must have some.
    num_outputs: the classes in label order -> how many outputs a net has for them; None: as many as its table says.
    collator: the classes in label order -> what makes the targets of a batch.
    run: (the net in training, (N, 3, S, S) images, targets) -> its outputs, as `loss` and `batch_metrics` take them.
    loss: (outputs, targets) -> scalar.
    distill: (outputs, a teacher's predictions) -> scalar; in place of `loss` where there is a teacher.
    batch_metrics: (outputs, targets) -> scalars worth a curve, beside the loss; not asked where there is a teacher.
    evaluator: the test set -> a fresh Evaluator.
    predict: outputs -> what a user of the model sees, and a student learns from, e.g. probabilities.
    """

    name: str
    num_outputs: Callable[[Sequence[str]], int] | None
    collator: Callable[[Sequence[str]], Collate]
    loss: Callable[[Any, Targets], Tensor]
    distill: Callable[[Tensor, Tensor], Tensor]
    batch_metrics: Callable[[Any, Targets], Targets]
    evaluator: Callable[[TestSet], Evaluator]
    predict: Callable[[Tensor], Tensor]
    by_identity: bool = False
    run: Callable[[nn.Module, Tensor, Targets], Any] = run


@torch.no_grad()
def predictions(task: Task, net: nn.Module, images: Tensor) -> Tensor:
    """What `net`, in evaluation mode, predicts of images (N, H, W, 3) uint8 on its device: a teacher's part."""
    return task.predict(net(normalise(images)))


@torch.inference_mode()
def evaluate(task: Task, net: nn.Module, batches: Iterator[Batch], test_set: TestSet, device: str) -> Evaluation:
    """The task's metrics of `net` over all batches, each sample once, the net in evaluation mode."""
    evaluator = task.evaluator(test_set)
    net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for batch in batches:
        targets = {name: value.to(device) for name, value in batch.targets.items()}
        evaluator.update(net(normalise(batch.images.to(device))), targets)
    return evaluator.compute()
