"""The worker's side of asynchronous training: an optimizer whose step pushes the gradient and pulls the weights.

The seam is `Optimizer.step(closure)`, not a Lightning strategy: Lightning calls it with the closure that runs forward
and backward, so the strategy stays the plain single-device one and the task and its module know nothing of servers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipelines.training.finite import is_finite
from pipelines.training.messages import NOTHING, Push, Reply, Vector, Wire, as_tensor, packed, unpacked
from pipelines.training.shared_vectors import Room, SharedVectors, Window, this_machine
from tasks.optim import Flat, FlatOptimizer

WAIT_SECONDS = 0.005
Replies = Callable[[], list[Reply]]


class Servers(Protocol):
    """All servers at once: one argument and one reply for each.

    windows: a server's part of the worker's shared vectors; None: there are none.
    """

    def start(
        self, worker: int, weights: Sequence[Vector], statistics: Sequence[Vector], windows: Sequence[Window | None]
    ) -> list[Reply]:
        """Offer initial values."""

    def pull(self, worker: int, windows: Sequence[Window | None]) -> list[Reply]:
        """The slices as they are now."""

    def standing(self, worker: int) -> list[Reply]:
        """How the servers stand, without the slices."""

    def push(self, pushes: Sequence[Push], windows: Sequence[Window | None]) -> Replies:
        """Push to all; returns at once what waits for their replies.

        A server that is gone is waited for, and its reply is a pull with status "lost".
        """


def slices(length: int, num_servers: int) -> list[slice]:
    """Contiguous parts of a vector, one for each server, whose lengths differ by one at the most."""
    edges = [length * index // num_servers for index in range(num_servers + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]


class Line(NamedTuple):
    """How a worker and its servers exchange vectors.

    wire: the type of what travels between machines. overlap: the exchange of a step runs beside the computation of the
    next, whose gradient is therefore one update of its own older. shared_memory: with servers of the worker's machine,
    through memory that both see; bit for bit the same as float32 through Ray.
    """

    num_servers: int
    wire: Wire = "float32"
    overlap: bool = False
    shared_memory: bool = False


class RemoteOptimizer(FlatOptimizer):
    """Runs the closure, pushes the gradient to the servers, and continues from the weights they answer with.

    samples: images of one push.
    metrics: scalars of the step just made, for the servers' curve.
    max_lead: how many pushes this worker may be ahead of the slowest one before it waits; None: it never waits.
    `finished` is true once every server has made the steps it was asked for, `failed` once one of them takes no more
    because too many gradients in a row were not finite.
    """

    _room: Room | None = None
    _at_home = False  # whether the room's weights and gradient are the net's own

    def __init__(
        self,
        net: nn.Module,
        finish: Callable[[Flat], None],
        servers: Servers,
        line: Line,
        worker: int,
        samples: int,
        metrics: Callable[[], dict[str, Tensor]],
        max_lead: int | None,
    ) -> None:
        self._line = line
        super().__init__(net, finish, self._house)
        self.servers = servers
        self.worker = worker
        self.samples = samples
        self.metrics = metrics
        self.max_lead = max_lead
        self._parts = slices(len(self.flat.weights), line.num_servers)
        self._statistic_parts = slices(len(self.flat.statistics), line.num_servers)
        both = zip(self._parts, self._statistic_parts, strict=True)
        self._windows = [self._room.window(*parts) if self._room else None for parts in both]
        self._exchange_seconds = 0.0
        self._underway: Replies | None = None
        initial = self._cut(self.flat.weights, self._parts), self._cut(self.flat.statistics, self._statistic_parts)
        self._take(servers.start(worker, *initial, self._windows))
        self.steps = max(reply.sequence for reply in self._replies)

    def _house(self, weights: Tensor, gradient: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Put the vectors where servers of this machine see them; only beside them if a step changes them meanwhile."""
        if not self._line.shared_memory or this_machine() is None:
            return weights, gradient
        self._room = Room(len(weights), len(statistics))
        if self._line.overlap or weights.device.type != "cpu":
            return weights, gradient
        self._at_home = True
        shared = self._room.vectors
        return torch.from_numpy(shared.weights).copy_(weights), torch.from_numpy(shared.gradient)

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
        """One push and one pull, in one call to each server; with overlap, the reply is that of the step before."""
        loss = None if closure is None else closure()
        self.finish(self.flat)
        began = time.monotonic()
        self._exchange()
        if self._must_wait(self._replies):
            while self._must_wait(self.servers.standing(self.worker)):
                time.sleep(WAIT_SECONDS)
            self._settle()
            self._take(self.servers.pull(self.worker, self._windows))
        self._exchange_seconds = time.monotonic() - began
        return loss

    def _exchange(self) -> None:
        self.steps += 1
        if not self._line.overlap:
            self._take(self._send(self._pushes())())
            return
        replies = None if self._underway is None else self._underway()
        pushes = self._pushes()  # says of which weights the gradient is, and so comes before others are taken
        if replies is not None:
            self._take(replies)
        self._underway = None if self.finished or self.failed else self._send(pushes)

    def _settle(self) -> None:
        """Let no exchange be under way: the servers would write where something else is to be read."""
        if self._underway is not None:
            self._underway()
            self._underway = None

    def _must_wait(self, replies: Sequence[Reply]) -> bool:
        if self.max_lead is None or all(reply.finished for reply in replies) or any(r.failed for r in replies):
            return False
        return max(reply.lead for reply in replies) > self.max_lead

    def _pushes(self) -> list[Push]:
        metrics = {name: float(value) for name, value in self.metrics().items()}
        metrics["exchange_seconds"] = self._exchange_seconds  # of the step before
        gradients = [self.flat.gradient[part] for part in self._parts]
        after = self._cut(self.flat.statistics, self._statistic_parts)
        finite = is_finite(self.flat.gradient) and is_finite(self.flat.statistics)
        return [
            Push(
                worker=self.worker,
                sequence=self.steps,
                incarnation=reply.incarnation,
                version=reply.version,
                gradient=NOTHING if reply.shared else packed(gradients[index].cpu(), self._line.wire),
                before=reply.statistics,
                after=after[index].copy(),
                samples=self.samples,
                metrics=metrics,
                finite=finite,
                window=self._windows[index] if reply.shared else None,
            )
            for index, reply in enumerate(self._replies)
        ]

    def _send(self, pushes: list[Push]) -> Replies:
        for index, push in enumerate(pushes):
            if push.window is None:
                continue
            shared = self._shared(index)
            if not self._at_home:
                torch.from_numpy(shared.gradient).copy_(self.flat.gradient[self._parts[index]])
            shared.before[:], shared.after[:] = push.before, push.after
            pushes[index] = push._replace(before=NOTHING, after=NOTHING)
        return self.servers.push(pushes, self._windows)

    def _shared(self, index: int) -> SharedVectors:
        assert self._room is not None, "a server has answered through it"
        return self._room.vectors.part(self._parts[index], self._statistic_parts[index])

    def _cut(self, vector: Tensor, parts: list[slice]) -> list[Vector]:
        array: Any = vector.detach().cpu().numpy()
        return [array[part] for part in parts]

    @torch.no_grad()
    def _take(self, replies: list[Reply]) -> None:
        # The weights are not kept: those of a reply lie in Ray's store for as long as somebody holds them.
        self._replies = [self._took(index, reply) for index, reply in enumerate(replies)]

    def _took(self, index: int, reply: Reply) -> Reply:
        weights, statistics = self.flat.weights[self._parts[index]], reply.statistics
        if not reply.shared:
            weights.copy_(unpacked(reply.weights))
        else:
            shared = self._shared(index)
            statistics = shared.before.copy()
            if not self._at_home:
                weights.copy_(torch.from_numpy(shared.weights))
        self.flat.statistics[self._statistic_parts[index]].copy_(as_tensor(statistics))
        return reply._replace(weights=NOTHING, statistics=statistics)
