"""What a search leaves: `trials.csv`, `best.yaml`, and a picture of what its trials reached over their epochs."""

from __future__ import annotations

from typing import Any

import yaml

from pipelines.figures import LINE_COLORS, draw
from pipelines.page import csv_text
from pipelines.tables import METRICS
from pipelines.tuning.search import Search
from pipelines.tuning.space import nested
from pipelines.tuning.trial import Trial

UNFINISHED = "unfinished"
STOPPED_COLOR = "#bbbbbb"


def write_outcome(search: Search) -> None:
    """Write all that can be said of a search by now; nothing where no trial has reached a rung."""
    if not any(trial.rungs for trial in search.trials):
        return
    search.results.mkdir(parents=True, exist_ok=True)
    (search.results / "trials.csv").write_text(csv_text([_record(search, trial) for trial in search.trials]))
    for suffix, content in picture(search).items():
        (search.results / f"trials{suffix}").write_bytes(content)
    best = search.best()
    if best is not None:
        (search.results / "best.yaml").write_text(best_text(search, best))


def metric_of(search: Search) -> str:
    """The name of what is compared; some trial has reached a rung."""
    return next(search.metric(trial.rungs[0].metrics) for trial in search.trials if trial.rungs)


def _record(search: Search, trial: Trial) -> dict[str, Any]:
    """A trial as a line of trials.csv."""
    rungs = trial.rungs
    status, why = trial.ended or (UNFINISHED, "")
    return {
        "trial": trial.number,
        "status": status,
        "epochs": rungs[-1].epoch if rungs else 0,
        metric_of(search): rungs[-1].value if rungs else None,
        **trial.values,
        "seconds": round(sum(rung.seconds for rung in rungs), 1),
        "why": why,
    }


def best_text(search: Search, best: Trial) -> str:
    """The override that makes params.yaml train the run as the best trial was."""
    scale, table, name = search.plan.scale, search.plan.table, search.run.name
    metric, value = metric_of(search), best.rungs[-1].value
    own = "; these are the run's own values" if best.number == 0 else ""
    ended = sum(trial.ended is not None for trial in search.trials)
    words = (
        f"# {best.name} of {ended}: {metric} {value:.4g} after {best.epochs[-1]:g} epochs{own}.\n"
        f"# Measured on {search.measured.samples} images: {search.measured.rule}.\n"
        f"# For params.yaml, below scales.{scale}.recipes.{table}.runs:\n"
    )
    return words + yaml.safe_dump({name: nested(best.values)}, sort_keys=False)


def picture(search: Search) -> dict[str, bytes]:
    """The metric over epochs of all trials: those that were stopped grey, the best one thick."""
    best, metric = search.best(), metric_of(search)

    shown = [trial for trial in search.trials if trial.rungs]
    finished = [trial for trial in shown if trial.is_finished]

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()

        def line(trial: Trial, color: str, width: float, label: str) -> None:
            points = [(rung.epoch, rung.value) for rung in trial.rungs]
            axes.plot(*zip(*points, strict=True), "o-", color=color, linewidth=width, markersize=4, label=label)

        others = [trial for trial in shown if not trial.is_finished]
        for number, trial in enumerate(others):
            line(trial, STOPPED_COLOR, 1.3, "_" if number else "not to the end")  # "_": none in the legend
        for number, trial in enumerate(finished):
            name = f"{trial.number:03d}"
            color = LINE_COLORS[number % len(LINE_COLORS)]
            line(trial, color, 2.5 if trial is best else 1.3, f"{name}, best" if trial is best else name)
        axes.set(xlabel="epoch", ylabel=f"{METRICS.get(metric, metric)} on held-out images", xscale="log")
        axes.set_xticks(list(search.rungs), [f"{epoch:g}" for epoch in search.rungs])
        axes.minorticks_off()
        axes.legend(title="trial", fontsize=8.5, ncols=1 + len(finished) // 12)

    return draw(plot, 6.8, 4.2)
