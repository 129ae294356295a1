"""The trials of a search on Ray Tune: side by side as the cluster allows, the worse ones stopped early by ASHA.

ASHA (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934) stops a trial at a rung
where it is not among the best 1 / reduction of those that have reached it so far. After a kill it is told first what
the trials had reached, and a decision that was made before holds.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler

from pipelines.cluster import total, use_cluster
from pipelines.files import locked
from pipelines.training.run import Run
from pipelines.tuning.search import Search
from pipelines.tuning.trial import FAILED, STOPPED, Rung, Trial

log = logging.getLogger(__name__)

EPOCH, VALUE, NUMBER = "epoch", "value", "trial"  # what Tune is told of a trial
# Ctrl-C is ours, since Tune would end as if its work were done; so are the records of trials, and what is printed.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
IN_PROCESS = "local"  # the kind of run that trains in the process that Tune gives to its trial


class Watcher(NamedTuple):
    """Who is told what becomes of the trials, in this process."""

    started: Callable[[Trial], None]
    reached: Callable[[Trial, Rung], None]
    ended: Callable[[Trial], None]


def run_trials(search: Search, watcher: Watcher) -> None:
    """Run the trials that have not ended until they have. Raises ValueError where the cluster is too small for one."""
    os.environ.update({name: value for name, value in TUNE_ENVIRONMENT.items() if name not in os.environ})
    bundles = max((trial.job.run.bundles for trial in search.trials), key=lambda one: total(one)["CPU"])
    use_cluster(*bundles)
    largest = total(bundles)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    storage = search.folder / "ray"
    shutil.rmtree(storage, ignore_errors=True)  # of a killed process; what counts is in the trials' folders
    # A run with workers of its own asks Ray for them itself, and its trial's process only waits: it takes a byte, since
    # Tune asks for no trial that takes nothing.
    share = largest if search.run.kind == IN_PROCESS else {"CPU": 0.0, "memory": 1.0}
    trainable = tune.with_resources(tune.with_parameters(_run_trial, search=search), share)
    tuner = tune.Tuner(
        trainable,
        param_space={NUMBER: tune.grid_search([trial.number for trial in search.pending])},
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(search),
            max_concurrent_trials=_concurrent(search, largest),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=search.run.max_failures),
            callbacks=[_Teller(search, watcher)],
        ),
    )
    tuner.fit()
    assert all(trial.ended for trial in search.trials), "Tune has ended, and a trial has not"
    shutil.rmtree(storage, ignore_errors=True)


def _concurrent(search: Search, largest: dict[str, float]) -> int:
    """How many trials at once: as many as asked for, and as fit."""
    there = ray.cluster_resources()
    fit = min(int(there.get(name, 0) / amount) for name, amount in largest.items() if amount > 0)
    return max(1, min(fit, search.options.concurrent or fit))


class _Past(NamedTuple):
    """A trial as ASHA knows it: by its id."""

    trial_id: str


def _scheduler(search: Search) -> ASHAScheduler:
    """ASHA, having seen what trials reached before; but not the last rung of one about which it has not decided yet."""
    scheduler: Any = ASHAScheduler(
        time_attr=EPOCH,
        metric=VALUE,
        mode=search.options.mode,
        max_t=search.rungs[-1],  # type: ignore[arg-type]  # epochs may be fractions: ASHA only compares them
        grace_period=search.rungs[0],  # type: ignore[arg-type]
        reduction_factor=search.options.reduction,
    )
    for trial in search.trials:
        scheduler.on_trial_add(None, _Past(_past_id(trial)))
    pending = {trial.number for trial in search.pending}
    seen = [
        (rung, trial) for trial in search.trials for rung in trial.rungs if rung.decided or trial.number not in pending
    ]
    for rung, trial in sorted(seen, key=lambda one: one[0].time):
        scheduler.on_trial_result(None, _Past(_past_id(trial)), {EPOCH: rung.epoch, VALUE: rung.value})
    return scheduler


def _past_id(trial: Trial) -> str:
    return f"before-{trial.number}"


def _run_trial(config: dict[str, Any], search: Search) -> None:
    """What the process of a trial does. An error in it is the trial's end, and not the search's."""
    from pipelines.tuning.climb import climb

    trial = search.trials[config[NUMBER]]

    def report(rung: Rung) -> None:
        tune.report({EPOCH: rung.epoch, VALUE: rung.value})  # does not return in a trial that is stopped

    try:
        with locked(trial.job.folder):  # a process of a killed search may take a while to end
            trial.begin()
            climb(trial, search.measured, search.compared, _apart(trial.job.run), report)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is told in trials.csv
        reason = (str(error).splitlines() or [""])[0]
        trial.end(FAILED, reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}")


def _apart(run: Run) -> Callable[..., Any]:
    """How a trial has something done beside its training: here, or by a worker of its own."""

    def here(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def by_worker(function: Callable[..., Any], *arguments: Any) -> Any:
        # "DEFAULT": not within what Tune has set aside for the trial's own process.
        place: Any = {"num_cpus": run.worker_cpus, "num_gpus": run.worker_gpus, "scheduling_strategy": "DEFAULT"}
        task = ray.remote(**place)(function)
        try:
            return ray.get(task.remote(*arguments))
        except RayTaskError as error:  # its text is a traceback
            raise error.cause from None

    return here if run.kind == IN_PROCESS else by_worker


class _Teller(TrialProgressCallback):
    """Says what becomes of trials: to their folders how they ended, and all of it to the watcher.

    In place of Tune's own, which prints.
    """

    def __init__(self, search: Search, watcher: Watcher) -> None:
        super().__init__()
        self.search, self.watcher = search, watcher

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:  # type: ignore[override]
        self.watcher.started(self._of(trial))

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:  # type: ignore[override]
        one = self._of(trial)
        self.watcher.reached(one, next(rung for rung in one.rungs if rung.epoch == result[EPOCH]))

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:  # type: ignore[override]
        self._end(trial, STOPPED)  # unless it has come to its own end

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:  # type: ignore[override]
        self._end(trial, FAILED, f"its process ended {self.search.run.max_failures + 1} times")

    def _end(self, trial: Any, status: str, why: str = "") -> None:
        one = self._of(trial)
        if one.ended is None:
            one.end(status, why)
        self.watcher.ended(one)

    def _of(self, trial: Any) -> Trial:
        return self.search.trials[trial.config[NUMBER]]
