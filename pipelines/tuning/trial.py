"""One trial of a search: a run that is trained rung by rung, and measured at each. Its folder holds all that it is:

    rungs.json           what it reached at each rung, and whether it was let go on from there
    ended.json           how it ended: finished, stopped or failed, and why
    curve.jsonl          the training's own
    checkpoint.pt, server_*.pt, weights.pt, ray/    to go on from; gone once it has ended

A rung is the end of an epoch. Up to there a trial trains as any run does, its workers then end, and what they leave on
the disk is measured and, if the trial goes on, trained on: a stopped trial leaves no workers behind, and a killed one
goes on from its last checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.files import read_json, write_json

if TYPE_CHECKING:
    from pipelines.training.job import Job

RUNGS, ENDED, CURVE = "rungs.json", "ended.json", "curve.jsonl"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


@dataclass(frozen=True)
class Rung:
    """What a trial reached. value: of the metric that is compared. metrics: all scalars of the evaluator.

    seconds: of training and measuring since the rung before. time: Unix seconds of its end. decided: whether the trial
    was let go on from here.
    """

    epoch: float
    value: float
    metrics: Mapping[str, float]
    seconds: float
    time: float
    decided: bool = False


@dataclass(frozen=True)
class Trial:
    """A trial as the process that trains it needs it.

    values: those drawn for it, by dotted key. epochs: its rungs, of which the last one is its end.
    """

    number: int
    values: Mapping[str, Any]
    job: Job
    epochs: Sequence[float]

    @property
    def name(self) -> str:
        return f"trial {self.number:03d}"

    @property
    def rungs(self) -> list[Rung]:
        """What it has reached so far."""
        path = self.job.folder / RUNGS
        return [Rung(**rung) for rung in read_json(path)] if path.exists() else []

    @property
    def curve(self) -> Path:
        """The curve of its training."""
        return self.job.folder / CURVE

    @property
    def ended(self) -> tuple[str, str] | None:
        """How it ended and why; None while it has not."""
        path, rungs = self.job.folder / ENDED, self.rungs
        if path.exists():
            record = read_json(path)
            return record["status"], record["why"]
        return (FINISHED, "") if rungs and rungs[-1].epoch == self.epochs[-1] else None

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end."""
        return self.ended is not None and self.ended[0] == FINISHED

    def write(self, rungs: Sequence[Rung]) -> None:
        """Remember what it has reached."""
        write_json(self.job.folder / RUNGS, [asdict(rung) for rung in rungs])

    def begin(self) -> None:
        """Make its folder, and forget that it failed before."""
        self.job.folder.mkdir(parents=True, exist_ok=True)
        (self.job.folder / ENDED).unlink(missing_ok=True)

    def end(self, status: str, why: str = "") -> None:
        """Remember how it ended."""
        self.job.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.job.folder / ENDED, {"status": status, "why": why})

    def steps(self, epoch: float) -> int:
        """Updates of the weights up to a rung; whole epochs are rounded up to whole updates one by one."""
        return self.job.total_steps if epoch == self.epochs[-1] else round(epoch) * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Updates of the weights in an epoch, rounded up."""
        return ceil(self.job.num_samples / self.job.samples_per_step)


def clear(trial: Trial) -> None:
    """Remove what an ended trial would have gone on from."""
    folder = trial.job.folder
    shutil.rmtree(folder / "ray", ignore_errors=True)
    for path in (*folder.glob("server_*.pt"), folder / "checkpoint.pt", folder / "weights.pt"):
        path.unlink(missing_ok=True)
