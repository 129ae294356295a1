"""The one LightningModule: it trains any net on any task, and knows nothing of how its gradients are applied."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from tasks.augment import distort
from tasks.base import Batch, Task
from tasks.optim import FlatOptimizer


class TaskModule(pl.LightningModule):
    """Trains `net` on a task: distort the images, forward, loss.

    make_optimizer: called with the net once it is on its device.
    step_seed: (steps made so far) -> the seed of the next step's generator (dropout), so that a step depends on the
        state alone and a resumed run repeats an uninterrupted one.
    metrics: scalars of the latest training step, "loss" among them, still on the device.
    """

    def __init__(
        self,
        task: Task,
        net: nn.Module,
        make_optimizer: Callable[[nn.Module], FlatOptimizer],
        step_seed: Callable[[int], int],
    ) -> None:
        super().__init__()
        self.task = task
        self.net = net
        self.make_optimizer = make_optimizer
        self.step_seed = step_seed
        self.metrics: dict[str, Tensor] = {}

    def configure_optimizers(self) -> FlatOptimizer:
        self.optimizer = self.make_optimizer(self.net)
        return self.optimizer

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of one batch."""
        torch.manual_seed(self.step_seed(self.optimizer.steps))
        outputs = self.net(distort(batch.images, batch.distortions))
        loss = self.task.loss(outputs, batch.targets)
        with torch.no_grad():
            self.metrics = {"loss": loss.detach(), **self.task.batch_metrics(outputs.detach(), batch.targets)}
        return loss
