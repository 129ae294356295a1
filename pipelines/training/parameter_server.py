"""Parameter servers: each holds a slice of the flat weights and applies a gradient as soon as it arrives.

`ParameterShard` is a plain class that becomes a Ray actor at launch. The servers belong to a Ray Train backend with
replica groups: a dead worker is replaced alone while the others go on. As in DistBelief (Dean et al. 2012) the slices
are updated independently of one another; a push goes to all of them, and each counts its own global step.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from typing import Any, NamedTuple

import torch

from pipelines.training.curve import Curve
from pipelines.training.finite import is_finite
from pipelines.training.messages import (
    NOTHING,
    Push,
    Reply,
    ServerPlan,
    Status,
    Vector,
    as_tensor,
    is_rounded,
    packed,
    unpacked,
)
from pipelines.training.shared_vectors import SharedVectors, Window, Windows
from pipelines.training.snapshots import load_newest, load_snapshot, save_snapshot
from tasks.optim import FlatState


class ParameterShard:
    """One slice of the weights with its slots, its running average and its share of the BatchNorm statistics.

    Comes up from its snapshot where there is one, under a new incarnation, so that what workers computed on the
    lost state is refused. A push is applied at most once: its sequence must be beyond the worker's last.
    """

    def __init__(self, plan: ServerPlan, index: int) -> None:
        self.plan = plan
        self.index = index
        self.incarnation = secrets.token_hex(8)
        self.sequences: dict[int, int] = {}
        self.staleness: Counter[int] = Counter()
        self.refused: Counter[str] = Counter()
        self.pushes: Counter[int] = Counter()
        self.seconds = 0.0
        self.not_finite = 0  # pushes in a row
        self.state: FlatState | None = None
        self.statistics = torch.zeros(0)
        self.windows = Windows()
        kept = load_newest(plan.snapshot(index))
        if kept is not None:
            self._restore(kept)
        self.curve = None if index else Curve(plan.folder / "curve.jsonl", plan.log_steps, plan.total_steps, self.step)
        self._last_push: float | None = None  # or the first reply: before it, workers are starting

    @property
    def step(self) -> int:
        """Updates applied to this slice."""
        return 0 if self.state is None else self.state.step

    @property
    def finished(self) -> bool:
        """Whether the last update is made."""
        return self.step >= self.plan.total_steps

    @property
    def failed(self) -> bool:
        """Whether so many pushes in a row were not finite that the run is over."""
        return self.not_finite >= self.plan.max_not_finite

    def start(self, worker: int, weights: Vector, statistics: Vector, window: Window | None = None) -> Reply:
        """Take the initial values, unless there are some already: all workers offer the same ones."""
        if self.state is None:
            self._initialise(torch.from_numpy(weights.copy()), torch.from_numpy(statistics.copy()))
            self.snapshot()  # from now on, a restarted server has something to come back from
        return self.pull(worker, window)

    def pull(self, worker: int, window: Window | None = None) -> Reply:
        """The slice as it is now, in the worker's window where this server can open that."""
        return self._filled(self._reply(worker, "pulled"), self.windows.through(worker, window))

    def standing(self, worker: int) -> Reply:
        """What `pull` says beside the slice, which is empty here: for a worker that waits."""
        return self._reply(worker, "pulled")

    def push(self, push: Push) -> Reply:
        """Apply a gradient, or say why not; either way the slice as it is then."""
        assert self.state is not None, "start comes before push"
        shared = self.windows.through(push.worker, push.window)
        if shared is not None:
            push = push._replace(gradient=shared.gradient, before=shared.before, after=shared.after)
        return self._filled(self._push(push, self.state), shared)

    def _push(self, push: Push, state: FlatState) -> Reply:
        gradient = unpacked(push.gradient).float()
        staleness = self.step - push.version
        refusal = self._refusal(push, gradient, staleness)
        if refusal is not None:
            self.refused[refusal] += 1
            if refusal in ("dropped", "not_finite"):
                self.sequences[push.worker] = push.sequence
            if refusal == "not_finite":
                self.not_finite += 1
            return self._reply(push.worker, refusal)
        scale = 1 / max(1, staleness) if self.plan.policy == "scale" else 1.0
        rate = self.plan.learning_rate(self.step) * scale
        state.apply(gradient, scale)
        # A fresh push replaces the statistics exactly; a stale one adds the change it made, as TensorFlow's
        # assign_moving_average does with a variable that many workers share.
        self.statistics = as_tensor(push.after) + (self.statistics - as_tensor(push.before))
        self._account(push, staleness, rate)
        if self.step % self.plan.snapshot_steps == 0 or self.step == self.plan.total_steps:
            self.snapshot()
        return self._reply(push.worker, "applied")

    def snapshot(self) -> None:
        """Write everything to storage under a temporary name, then rename: a snapshot is whole or not there."""
        if self.state is None:
            return
        content = {
            "state": self.state.state_dict(),
            "statistics": self.statistics,
            "sequences": dict(self.sequences),
            "record": self.record(),
        }
        save_snapshot(content, self.plan.snapshot(self.index))

    def record(self) -> dict[str, Any]:
        """What happened so far: counts by staleness, by cause of refusal, by worker, and the seconds it took.

        A push that was under way when the server died is in none of them.
        """
        return {
            "staleness": dict(self.staleness),
            "refused": dict(self.refused),
            "pushes": dict(self.pushes),
            "seconds": self.seconds,
        }

    @property
    def _length(self) -> int:
        return 0 if self.state is None else len(self.state.weights)

    def _refusal(self, push: Push, gradient: torch.Tensor, staleness: int) -> Status | None:
        # What is not as long as the slice lay in a window that cannot be opened: of a worker that has died since.
        if push.incarnation != self.incarnation or len(gradient) != self._length:
            return "lost"
        if push.sequence <= self.sequences.get(push.worker, 0):
            return "duplicate"
        if self.finished:
            return "finished"
        # The worker has looked; what has travelled as bfloat16 is looked at again, since that can overflow.
        if self.failed or not push.finite or (is_rounded(push.gradient) and not is_finite(gradient)):
            return "not_finite"
        if self.plan.policy == "drop" and staleness > self.plan.max_staleness:
            return "dropped"
        return None

    def _account(self, push: Push, staleness: int, rate: float) -> None:
        now = time.monotonic()
        assert self._last_push is not None, "a push follows a reply"
        self.seconds += now - self._last_push
        self._last_push = now
        self.not_finite = 0
        self.sequences[push.worker] = push.sequence
        self.staleness[staleness] += 1
        self.pushes[push.worker] += 1
        if self.curve is not None:
            values = {**push.metrics, "learning_rate": rate, "staleness": staleness}
            self.curve.add(self.step, push.samples, values)

    def _lead(self, worker: int) -> int:
        slowest = min(self.sequences.get(other, 0) for other in range(self.plan.num_workers))
        # A finished server counts no more pushes: what it says of the workers no longer changes.
        waits = self.plan.policy == "wait" and not self.finished
        return self.sequences.get(worker, 0) - slowest if waits else 0

    def _reply(self, worker: int, status: Status) -> Reply:
        if self._last_push is None:
            self._last_push = time.monotonic()
        return Reply(
            status=status,
            weights=NOTHING,
            statistics=NOTHING,
            version=self.step,
            sequence=self.sequences.get(worker, 0),
            incarnation=self.incarnation,
            lead=self._lead(worker),
            finished=self.finished,
            not_finite=self.not_finite,
            failed=self.failed,
        )

    def _filled(self, reply: Reply, shared: SharedVectors | None) -> Reply:
        """The reply with the slice: in the worker's window, or as it travels."""
        if self.state is None:
            return reply
        weights, statistics = self.state.weights, self.statistics.numpy()
        if shared is None:
            return reply._replace(weights=packed(weights, self.plan.wire), statistics=statistics)
        shared.weights[:], shared.before[:] = weights.numpy(), statistics
        return reply._replace(shared=True)

    def _initialise(self, weights: torch.Tensor, statistics: torch.Tensor) -> None:
        self.state = FlatState(weights, self.plan.rule, self.plan.learning_rate, self.plan.average_decay)
        self.statistics = statistics

    def _restore(self, content: dict[str, Any]) -> None:
        self._initialise(content["state"]["weights"].clone(), content["statistics"])
        assert self.state is not None
        self.state.load_state_dict(content["state"])
        self.sequences = content["sequences"]
        record = content["record"]
        self.staleness, self.refused = Counter(record["staleness"]), Counter(record["refused"])
        self.pushes, self.seconds = Counter(record["pushes"]), record["seconds"]


class Assembled(NamedTuple):
    """A finished run's flat vectors, put together from all servers' snapshots."""

    weights: torch.Tensor  # (P,): the running average where one is kept
    statistics: torch.Tensor  # (S,)
    record: dict[str, Any]  # of server 0


def assemble(plan: ServerPlan) -> Assembled:
    """The final weights, from the servers' snapshots and never from a worker."""
    snapshots = [load_snapshot(plan.snapshot(index)) for index in range(plan.num_servers)]
    steps = [snapshot["state"]["step"] for snapshot in snapshots]
    assert steps == [plan.total_steps] * plan.num_servers, f"servers ended at steps {steps}"
    parts = [snapshot["state"]["slots"].get("average", snapshot["state"]["weights"]) for snapshot in snapshots]
    statistics = torch.cat([snapshot["statistics"] for snapshot in snapshots])
    return Assembled(torch.cat(parts), statistics, snapshots[0]["record"])
