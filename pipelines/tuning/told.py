"""What MLflow is told of a search: a run for it, and below that one for each trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines import paths, tracking
from pipelines.tracking.spool import FINISHED, read_record
from pipelines.tuning.outcome import metric_of
from pipelines.tuning.search import MODES, Search
from pipelines.tuning.trial import FAILED, Trial


def spools(search: Search) -> list[Path]:
    """All of a search: its own, which MLflow must know first, then those of the trials."""
    return [_own(search), *(_of(search, trial) for trial in search.trials)]


def _own(search: Search) -> Path:
    return paths.spool(search.plan.scale, f"{search.run.name}_tuning", search.fingerprint)


def _of(search: Search, trial: Trial) -> Path:
    return paths.spool(search.plan.scale, f"{search.run.name}_tuning_{trial.number:03d}", search.fingerprint)


def begin_search(search: Search) -> None:
    """Say that a search begins or goes on."""
    options = search.options
    params = {
        "search": {key: law.text for key, law in search.space.items()},
        **{key: getattr(options, key) for key in ("reduction", "seed", "mode")},
        "rungs": list(search.rungs),
        "measured_on": search.measured.rule,
        "run": search.run.model_dump(),
    }
    tags = {"search": search.run.name}
    _begin(search, _own(search), f"{search.run.name} tuning", params, tags, _best_curve(search), commit_steps=1)
    _write_best_curve(search)


def begin_trial(search: Search, trial: Trial) -> None:
    """Say that a trial begins or goes on."""
    parent = read_record(_own(search))
    assert parent is not None, "a search begins before its trials"
    tags = {"search": search.run.name, tracking.PARENT: parent.id}
    run = trial.job.run
    # What a restart of its training goes back to.
    commit_steps = run.servers.snapshot_steps if run.kind == "async" else trial.steps_per_epoch
    _begin(search, _of(search, trial), trial.name, run.model_dump(), tags, trial.curve, commit_steps)


def _begin(
    search: Search,
    spool: Path,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    curve: Path,
    commit_steps: int,
) -> None:
    plan = search.plan
    tracking.begin(
        spool,
        experiment=f"{plan.table}-{plan.scale}-tuning",
        name=name,
        params=params,
        tags={"scale": plan.scale, "kind": search.run.kind, "fingerprint": search.fingerprint, **tags},
        data=tracking.Data(plan.index.dataset, plan.index.digest, str(plan.shards)),
        curve=curve,
        commit_steps=commit_steps,
    )


def end_trial(search: Search, trial: Trial) -> None:
    """Say what a trial has reached, rung by rung, and how it ended; once more is as good as once."""
    if trial.ended is None:
        return
    status, _ = trial.ended
    if not trial.rungs or status == FAILED:
        tracking.finish(_of(search, trial), status="FAILED")
        return
    last, name = trial.rungs[-1], metric_of(search)
    tracking.finish(
        _of(search, trial),
        metrics={"epochs": last.epoch, **{f"held_out/{key}": value for key, value in last.metrics.items()}},
        # By epoch, where training's own curve goes by global step.
        histograms={f"rungs/{name}": {str(round(rung.epoch)): rung.value for rung in trial.rungs}},
    )


def end_search(search: Search, status: str = FINISHED) -> None:
    """Say what the best trial was, with the files of the outcome; with another status, that the search may go on."""
    _write_best_curve(search)
    for trial in search.trials:
        if trial.ended is None and read_record(_of(search, trial)) is not None:
            tracking.finish(_of(search, trial), status="KILLED")
    tracking.finish(_own(search), status=status)
    best = search.best()
    if best is not None:
        name = metric_of(search)
        metrics = {
            f"best_{name}": best.rungs[-1].value,
            "best_trial": best.number,
            "trials": len(search.trials),
        }
        tracking.log_evaluation(_own(search), metrics, sorted(search.results.iterdir()))


def _best_curve(search: Search) -> Path:
    return search.folder / "best.jsonl"


def _write_best_curve(search: Search) -> None:
    """The best value so far, over the count of rungs that trials have reached: the curve of the search's own run."""
    reached = sorted((rung.time, rung.value) for trial in search.trials for rung in trial.rungs)
    best, sign, lines = float("nan"), MODES[search.options.mode], []
    for step, (at, value) in enumerate(reached, start=1):
        best = value if step == 1 or sign * value > sign * best else best
        lines.append(json.dumps({"step": step, "time": at, f"best_{metric_of(search)}": best}) + "\n")
    _best_curve(search).write_text("".join(lines))
