"""What workers and parameter servers say to each other, and the plan that both are made from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.training.run import MAX_NOT_FINITE
from pipelines.training.shared_vectors import Window
from tasks.rules import Rule, Staircase

Vector = NDArray[np.float32]
Sent = NDArray[Any]  # a vector on its way: float32, or bfloat16 as the uint16 of its bits, which NumPy has no type for
Policy = Literal["none", "scale", "drop", "wait"]
Wire = Literal["float32", "bfloat16"]
Status = Literal["pulled", "applied", "duplicate", "dropped", "lost", "not_finite", "finished"]
NOTHING: Vector = np.zeros(0, np.float32)


class ServerPlan(NamedTuple):
    """What every server of a run is told.

    policy: what a gradient means that was computed on weights `staleness` updates old. none: applied as it is (the
    paper's); scale: its learning rate is divided by max(1, staleness) (Zhang et al. 2015, arXiv 1511.05950); drop:
    refused beyond max_staleness; wait: applied, and a worker that is more than max_staleness pushes ahead of the
    slowest one waits (stale synchronous parallel, Ho et al. 2013).
    max_not_finite: gradients in a row, of whichever workers, that are not finite; from then on every push is refused.
    wire: the type in which gradients and weights travel between machines.
    """

    name: str
    num_servers: int
    num_workers: int
    folder: Path  # snapshots and the curve; on storage that every node sees
    rule: Rule
    learning_rate: Staircase
    average_decay: float | None
    total_steps: int
    policy: Policy
    max_staleness: int
    snapshot_steps: int
    log_steps: int
    max_not_finite: int = MAX_NOT_FINITE
    wire: Wire = "float32"

    def actor_name(self, index: int) -> str:
        """The name under which workers find the server's actor."""
        return f"{self.name}-server-{index}"

    def snapshot(self, index: int) -> Path:
        """Where a server keeps its state."""
        return self.folder / f"server_{index}.pt"


class Push(NamedTuple):
    """A worker's gradient for one slice: (P_i,), and what its step did to the BatchNorm statistics: (S_i,) float32.

    sequence: the worker's count of pushes, from 1; version: the server's step when the weights were pulled.
    finite: whether the whole gradient and all statistics are, of which this is a slice: servers refuse a push together.
    window: where the three vectors are, if the last reply was `shared`; they are empty here then.
    """

    worker: int
    sequence: int
    incarnation: str
    version: int
    gradient: Sent
    before: Vector
    after: Vector
    samples: int
    metrics: dict[str, float]
    finite: bool = True
    window: Window | None = None


class Reply(NamedTuple):
    """What became of a push, and the slice as it is now.

    lead: how many pushes the worker is ahead of the slowest one, where it should wait at all.
    not_finite: how many pushes in a row were not, up to now. failed: they are too many, and no more is applied.
    shared: the slice is in the worker's window (weights, and statistics in `before`), and empty here.
    """

    status: Status
    weights: Sent
    statistics: Vector
    version: int
    sequence: int
    incarnation: str
    lead: int
    finished: bool
    not_finite: int = 0
    failed: bool = False
    shared: bool = False


def packed(vector: torch.Tensor, wire: Wire) -> Sent:
    """(N,) float32 as it travels; bfloat16 is rounded to the nearest."""
    if wire == "float32":
        return vector.numpy()
    return vector.to(torch.bfloat16).view(torch.uint16).numpy()


def unpacked(sent: Sent) -> torch.Tensor:
    """What `packed` made: a view, float32 or bfloat16."""
    tensor = as_tensor(sent)
    return tensor.view(torch.bfloat16) if is_rounded(sent) else tensor


def is_rounded(sent: Sent) -> bool:
    """Whether it is bfloat16."""
    return sent.dtype == np.uint16


def as_tensor(array: Sent) -> torch.Tensor:
    """A view of an array that arrived through Ray: read-only memory, which is only read here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
