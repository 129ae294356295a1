"""The worker's side of asynchronous training: an optimizer whose step pushes the gradient and pulls the weights.

The seam is `Optimizer.step(closure)`, not a Lightning strategy: Lightning calls it with the closure that runs forward
and backward, so the strategy stays the plain single-device one and the task and its module know nothing of servers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.training.finite import is_finite
from pipelines.training.parameter_server import Push, Reply, Vector, as_tensor
from tasks.optim import Flat, FlatOptimizer

WAIT_SECONDS = 0.005
NOTHING: Vector = np.zeros(0, np.float32)


class Servers(Protocol):
    """All servers at once: one argument and one reply for each."""

    def start(self, worker: int, weights: Sequence[Vector], statistics: Sequence[Vector]) -> list[Reply]:
        """Offer initial values."""

    def pull(self, worker: int) -> list[Reply]:
        """The slices as they are now."""

    def standing(self, worker: int) -> list[Reply]:
        """How the servers stand, without the slices."""

    def push(self, pushes: Sequence[Push]) -> list[Reply]:
        """Push to all; a server that is gone is waited for, and its reply is a pull with status "lost"."""


def slices(length: int, num_servers: int) -> list[slice]:
    """Contiguous parts of a vector, one for each server, whose lengths differ by one at the most."""
    edges = [length * index // num_servers for index in range(num_servers + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]


class RemoteOptimizer(FlatOptimizer):
    """Runs the closure, pushes the gradient to the servers, and continues from the weights they answer with.

    samples: images of one push.
    metrics: scalars of the step just made, for the servers' curve.
    max_lead: how many pushes this worker may be ahead of the slowest one before it waits; None: it never waits.
    `finished` is true once every server has made the steps it was asked for, `failed` once one of them takes no more
    because too many gradients in a row were not finite.
    """

    def __init__(
        self,
        net: nn.Module,
        finish: Callable[[Flat], None],
        servers: Servers,
        num_servers: int,
        worker: int,
        samples: int,
        metrics: Callable[[], dict[str, Tensor]],
        max_lead: int | None,
    ) -> None:
        super().__init__(net, finish)
        self.servers = servers
        self.worker = worker
        self.samples = samples
        self.metrics = metrics
        self.max_lead = max_lead
        self._parts = slices(len(self.flat.weights), num_servers)
        self._statistic_parts = slices(len(self.flat.statistics), num_servers)
        initial = self._cut(self.flat.weights, self._parts), self._cut(self.flat.statistics, self._statistic_parts)
        self._take(servers.start(worker, *initial))
        self.steps = max(reply.sequence for reply in self._replies)

    @property
    def finished(self) -> bool:
        """Whether every server has made its last step."""
        return all(reply.finished for reply in self._replies)

    @property
    def failed(self) -> bool:
        """Whether a server has given the run up."""
        return any(reply.failed for reply in self._replies)

    @property
    def in_row(self) -> int:
        """How many gradients in a row were not finite, of whichever workers."""
        return max(reply.not_finite for reply in self._replies)

    @property
    def version(self) -> int:
        """The servers' step, by the one that is ahead."""
        return max(reply.version for reply in self._replies)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One push and one pull, in one call to each server."""
        loss = None if closure is None else closure()
        self.finish(self.flat)
        self.steps += 1
        self._take(self.servers.push(self._pushes()))
        if self._must_wait(self._replies):
            while self._must_wait(self.servers.standing(self.worker)):
                time.sleep(WAIT_SECONDS)
            self._take(self.servers.pull(self.worker))
        return loss

    def _must_wait(self, replies: Sequence[Reply]) -> bool:
        if self.max_lead is None or all(reply.finished for reply in replies) or any(r.failed for r in replies):
            return False
        return max(reply.lead for reply in replies) > self.max_lead

    def _pushes(self) -> list[Push]:
        metrics = {name: float(value) for name, value in self.metrics().items()}
        gradients = self._cut(self.flat.gradient, self._parts)
        after = self._cut(self.flat.statistics, self._statistic_parts)
        finite = is_finite(self.flat.gradient) and is_finite(self.flat.statistics)
        return [
            Push(
                worker=self.worker,
                sequence=self.steps,
                incarnation=reply.incarnation,
                version=reply.version,
                gradient=gradients[index],
                before=reply.statistics,
                after=after[index],
                samples=self.samples,
                metrics=metrics,
                finite=finite,
            )
            for index, reply in enumerate(self._replies)
        ]

    def _cut(self, vector: Tensor, parts: list[slice]) -> list[Vector]:
        array: Any = vector.detach().cpu().numpy()
        return [array[part] for part in parts]

    @torch.no_grad()
    def _take(self, replies: list[Reply]) -> None:
        # The weights are not kept: those of a reply lie in Ray's store for as long as somebody holds them.
        self._replies = [reply._replace(weights=NOTHING) for reply in replies]
        for reply, part, statistic_part in zip(replies, self._parts, self._statistic_parts, strict=True):
            self.flat.weights[part].copy_(as_tensor(reply.weights))
            self.flat.statistics[statistic_part].copy_(as_tensor(reply.statistics))
