"""How a trial is trained: rung by rung, in the process that Ray Tune gives it.

The kinds of training are those of the run. A `local` one trains in this very process; the others are Ray Train runs
with workers, and perhaps servers, of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pipelines.training import launch
from pipelines.training.evaluation import evaluate_run
from pipelines.training.job import Job, trained_net
from pipelines.training.loop import CHECKPOINT, WEIGHTS, export, train_async
from pipelines.training.parameter_server import Assembled, assemble
from pipelines.training.snapshots import load_snapshot
from pipelines.training.teaching import store_predictions
from pipelines.tuning.held_out import Measured
from pipelines.tuning.trial import Rung, Trial


@dataclass(frozen=True)
class Segment(Job):
    """The beginning of a run: the same in all but its end, after the update `last`."""

    last: int = 0

    @property
    def total_steps(self) -> int:
        return self.last


def segment(trial: Trial, last: int) -> Segment:
    """A trial up to an update, with a checkpoint after every epoch."""
    job = trial.job
    values = {field.name: getattr(job, field.name) for field in fields(job)}
    run = job.run.model_copy(update={"checkpoint_steps": trial.steps_per_epoch})
    # Ray takes over what an earlier run of the same name left.
    return Segment(**{**values, "run": run, "name": f"{job.name}-{last}"}, last=last)


def climb(
    trial: Trial,
    measured: Measured,
    compared: Callable[[Mapping[str, float]], float],
    apart: Callable[..., Any],
    report: Callable[[Rung], None],
) -> None:
    """Train a trial from rung to rung, from where it stands on.

    compared: which of the metrics counts. apart(function, *arguments): calls it on a worker's share of the machine.
    report: is told of each rung, and returns if the trial is to go on.
    """
    _ask_teacher(trial.job, apart)
    for number, epoch in enumerate(trial.epochs):
        rungs = trial.rungs
        if number == len(rungs):
            began = time.time()
            train_up_to(trial, epoch)
            metrics = apart(measure, trial.job, measured)
            now = time.time()
            rungs.append(Rung(epoch, compared(metrics), metrics, now - began, now))
            trial.write(rungs)
        elif rungs[number].decided:
            continue
        report(rungs[number])
        rungs[number] = replace(rungs[number], decided=True)
        trial.write(rungs)


def _ask_teacher(job: Job, apart: Callable[..., Any]) -> None:
    if job.teacher is not None and job.teacher.teaching.stored is not None:
        apart(store_predictions, job.teacher, job.shards, "train", job.run.precision, job.run.decode_threads)


def train_up_to(trial: Trial, epoch: float) -> None:
    """Train a trial up to a rung and leave the weights that are to be measured in its folder.

    A run that has parameter servers leaves their snapshots. Any other keeps no checkpoint of its last update, so it is
    trained one update beyond the rung, which is made again by who goes on.
    """
    wanted = trial.steps(epoch)
    job = segment(trial, wanted)
    if job.run.kind == "async":
        _train_async(job)
        state = assemble(job.servers)
    elif wanted == trial.job.total_steps:
        launch.LAUNCHERS[job.run.kind](job)
        return
    else:
        if _checkpoint_step(job) != wanted:
            launch.LAUNCHERS[job.run.kind](segment(trial, wanted + 1))
        content = load_snapshot(job.folder / CHECKPOINT)
        assert content["state"]["step"] == wanted, f"{content['state']['step']} of {wanted} steps"
        slots = content["state"]["slots"]
        state = Assembled(slots.get("average", content["state"]["weights"]), content["statistics"], {})
    export(job, state.weights, state.statistics)


def _checkpoint_step(job: Job) -> int | None:
    path = job.folder / CHECKPOINT
    return load_snapshot(path)["state"]["step"] if path.exists() else None


def _train_async(job: Segment) -> None:
    from pipelines.training.async_backend import ParameterServerConfig

    snapshots = [job.servers.snapshot(index) for index in range(job.servers.num_servers)]
    if all(path.exists() and load_snapshot(path)["state"]["step"] == job.last for path in snapshots):
        return  # killed between the end of training and the record of what it reached
    launch._fit(train_async, job, ParameterServerConfig(plan=job.servers, server_cpus=job.run.servers.cpus))


def measure(job: Job, measured: Measured) -> dict[str, float]:
    """The task's metrics of the weights in a run's folder. Raises ValueError where a sample is bad or has no label."""
    net = trained_net(job.run, job.num_outputs, job.folder / WEIGHTS)
    metrics = evaluate_run(net, job.run, measured.shards, measured.split, measured.test_set).metrics
    assert metrics["samples"] == measured.samples, f"{metrics['samples']} of {measured.samples} samples"
    return metrics
