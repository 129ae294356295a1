"""A search as it is planned: its trials with all that each depends on, and what they have reached so far.

Nothing of a search is left to chance or to memory: its trials are a function of params.yaml, the data, the code and the
options, and what they reached lies on the disk. So the same command goes on where it was killed, or, with more trials,
beyond where it ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import paths
from pipelines.config import Params
from pipelines.plan import Plan, make_plan
from pipelines.section import parsed
from pipelines.shards import read_index
from pipelines.tables import METRICS
from pipelines.training import rows
from pipelines.training.run import Run
from pipelines.tuning.held_out import Measured, part
from pipelines.tuning.space import Law, changed, check_space, default_space, draw, parse_space
from pipelines.tuning.trial import FAILED, Trial

MODES = {"max": 1, "min": -1}  # the sign that makes more better


class Options(NamedTuple):
    """What is asked for on the command line; `epochs`, `metric` and `concurrent` may be left open."""

    search: Sequence[str] = ()
    trials: int = 16
    concurrent: int | None = None
    epochs: float | None = None
    reduction: int = 3
    seed: int = 0
    metric: str | None = None
    mode: str = "max"


@dataclass(frozen=True)
class Search:
    """A search around one run. plan: of the run, with the data that trials learn from. folder: for its trials' work.

    rungs: epochs at which trials are measured and, but at the last, stopped. fingerprint: of all that its trials depend
    on; with another number of them it is the same search.
    """

    plan: Plan
    run: Run
    space: Mapping[str, Law]
    measured: Measured
    trials: Sequence[Trial]
    rungs: Sequence[float]
    options: Options
    fingerprint: str
    folder: Path

    @property
    def results(self) -> Path:
        """Where the outcome lies."""
        return results_folder(self.plan.scale, self.run.name)

    @property
    def pending(self) -> list[Trial]:
        """The trials that have not ended, and those that failed."""
        return [trial for trial in self.trials if trial.ended is None or trial.ended[0] == FAILED]

    def metric(self, metrics: Mapping[str, float]) -> str:
        """The name of what is compared."""
        return self.options.metric or next(name for name in METRICS if name in metrics)

    def compared(self, metrics: Mapping[str, float]) -> float:
        """What is compared. Raises ValueError for a metric that the task has not, and for one that is no number."""
        name = self.metric(metrics)
        if name not in metrics:
            raise ValueError(f"--metric {name} is unknown; task {self.run.task} has: {', '.join(sorted(metrics))}")
        if not math.isfinite(metrics[name]):
            raise ValueError(f"{name} is {metrics[name]}")
        return metrics[name]

    def best(self) -> Trial | None:
        """The best of the trials that were trained to the end; None while there is none."""
        finished = [trial for trial in self.trials if trial.is_finished]
        sign = MODES[self.options.mode]
        return max(finished, key=lambda trial: sign * trial.rungs[-1].value, default=None)


def results_folder(scale: str, run: str) -> Path:
    """Where the outcome of a search around a run lies."""
    return paths.results(scale, "tuning") / run


def make_search(params: Params, scale: str, name: str, options: Options) -> Search:
    """Plan a search around a run; holds out data, where that is still to be done.

    Raises ValueError for an unknown run, a value that no run may have, shards that are absent, a teacher or a start
    that is not trained, and whatever the train stage would refuse.
    """
    table = params.table_of(name)
    if table is None:
        known = ", ".join(run for one in params.tables.values() for run in one.runs)
        raise ValueError(f"run {name!r} is unknown; there are: {known}")
    own = params.runs(table, scale)[name]
    epochs = own.epochs if options.epochs is None else options.epochs
    run = parsed(Run, {**own.model_dump(), "epochs": epochs}, f"run {name}")
    space = parse_space(options.search) or default_space(run)
    check_space(run, space)
    plan = make_plan(params, scale, table, name)
    plan.unfinished(name)  # raises where a net that it needs is not trained
    data = paths.work(scale) / "tuning" / "data" / f"{plan.index.dataset}-{plan.index.digest[:12]}"
    shards, index, measured = part(plan, data)
    trials_plan = replace(plan, runs={**plan.runs, name: run}, shards=shards, index=index)
    rungs = rungs_of(run.epochs, options.reduction)
    fingerprint = rows.fingerprint(
        run=trials_plan.fingerprint(name),
        space={key: law.text for key, law in space.items()},
        measured=[read_index(measured.shards).digest, measured.split],
        rungs=rungs,
        chosen=[options.reduction, options.seed, options.metric, options.mode],
    )
    folder = (paths.work(scale) / "tuning" / paths.job_name(name, fingerprint)).resolve()
    trials = make_trials(trials_plan, run, draw(run, space, options.trials, options.seed), rungs, folder)
    return Search(trials_plan, run, space, measured, trials, rungs, options, fingerprint, folder)


def rungs_of(epochs: float, reduction: int) -> list[float]:
    """Epoch 1 and its multiples by powers of `reduction`, as far as they lie before the end, and the end."""
    rungs: list[float] = []
    epoch = 1
    while epoch < epochs:
        rungs.append(epoch)
        epoch *= reduction
    return [*rungs, epochs]


def make_trials(
    plan: Plan, run: Run, drawn: Sequence[Mapping[str, Any]], rungs: Sequence[float], folder: Path
) -> list[Trial]:
    """The trials, each checked as the train stage checks a run."""
    trials = []
    for number, values in enumerate(drawn):
        varied = changed(run, values, f"run {run.name}, trial {number:03d}")
        one = replace(plan, runs={**plan.runs, run.name: varied})
        try:
            one.check(run.name)
        except ValueError as error:
            drawn_values = ", ".join(f"{key} {value}" for key, value in values.items())
            raise ValueError(f"trial {number:03d} ({drawn_values}): {error}") from None
        job = one.job(run.name)
        job = replace(job, folder=folder / f"trial_{number:03d}", name=f"{job.name}-trial-{number:03d}")
        trial = Trial(number, values, job, rungs)
        # A rung that is reached only with the last update of all is no rung.
        reached = [epoch for epoch in rungs if epoch == rungs[-1] or trial.steps(epoch) < job.total_steps]
        trials.append(replace(trial, epochs=reached))
    return trials
