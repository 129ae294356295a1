"""The one LightningModule: it trains any net on any task, and knows nothing of how its gradients are applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from tasks.augment import distort
from tasks.base import Batch, Targets, Task, predictions
from tasks.optim import FlatOptimizer


class TaskModule(pl.LightningModule):
    """Trains `net` on a task: distort the images, forward, loss. With a teacher the loss is the distance to what that
    predicts of the same image as it is in evaluation, whole and undistorted: distillation is one line here.

    make_optimizer: called with the net once it is on its device.
    step_seed: (steps made so far) -> the seed of the next step's generator (dropout), so that a step depends on the
        state alone and a resumed run repeats an uninterrupted one.
    teacher: a frozen net that is asked at every step; None where the batches bring its predictions, and where there is
        no teacher. It is not trained, saved or wrapped with `net`.
    metrics: scalars of the latest training step, "loss" among them, still on the device.
    """

    def __init__(
        self,
        task: Task,
        net: nn.Module,
        make_optimizer: Callable[[nn.Module], FlatOptimizer],
        step_seed: Callable[[int], int],
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.net = net
        self.make_optimizer = make_optimizer
        self.step_seed = step_seed
        self._teacher = (teacher,)  # in a tuple, so that it is no submodule: never in training mode, nor in a state
        self.metrics: dict[str, Tensor] = {}

    def configure_optimizers(self) -> FlatOptimizer:
        self.optimizer = self.make_optimizer(self.net)
        return self.optimizer

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of one batch."""
        _seed(self.device, self.step_seed(self.optimizer.steps))
        outputs = self.task.run(self.net, distort(batch.images, batch.distortions), batch.targets)
        loss, metrics = self._loss(outputs, batch.targets)
        self.metrics = {"loss": loss.detach(), **metrics}
        return loss

    def _loss(self, outputs: Any, targets: Targets) -> tuple[Tensor, Targets]:
        teacher = self._teacher[0]
        if teacher is not None:
            taught = predictions(self.task, teacher.to(outputs.device), targets["teacher_images"])
            return self.task.distill(outputs, taught), {}
        if "taught" in targets:
            return self.task.distill(outputs, targets["taught"]), {}
        with torch.no_grad():
            metrics = self.task.batch_metrics(outputs, targets)
        return self.task.loss(outputs, targets), metrics


def _seed(device: torch.device, seed: int) -> None:
    """Seed what dropout draws from on a device, which is the current one where it is a GPU.

    `torch.manual_seed` would seed them all, and where CUDA has not started keep each call, with its stack, for later.
    """
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
