"""What a report is made of, read from the folders that `train` and `evaluate` leave."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from pipelines import paths
from pipelines.comparisons import Kilometres
from pipelines.config import Params
from pipelines.page import Picture
from pipelines.tables import Result
from pipelines.training.curve import read_curve
from pipelines.training.rows import read_record
from pipelines.training.run import Run

log = logging.getLogger(__name__)
CURVE_POINTS = 200  # a longer curve is averaged down to so many

Losses = Sequence[tuple[int, float]]  # (global step, mean training loss since the entry before)


@dataclass(frozen=True)
class Inputs:
    """The runs of a scale, by name and in the order of params.yaml. `planned` and `table_of` have all of them."""

    scale: str
    planned: Mapping[str, Run]
    table_of: Mapping[str, str]  # of params.yaml
    results: Mapping[str, Result]
    losses: Mapping[str, Losses]
    staleness: Mapping[int, int]  # of all asynchronous runs together

    def pictures(self, run: str) -> list[Picture]:
        """A run's evaluation pictures under the names that `evaluate` gave them; none where it was not run."""
        return read_pictures(self.scale, self.table_of[run], run) if run in self.results else []

    def errors(self, run: str) -> Kilometres:
        """How far from the truth a run that was evaluated places each test photo."""
        return read_errors(self.scale, self.table_of[run], run, self.results[run]["samples"])


def read_inputs(params: Params, scale: str) -> Inputs:
    """Everything that was trained and evaluated: the tables that were not are logged, and are to be shown as not run.

    Raises ValueError for a file that is broken, or missing where its table was evaluated, and where no table was.
    """
    runs = {table: params.runs(table, scale) for table in params.tables}
    evaluated = [table for table in runs if metrics_path(scale, table).exists()]
    for table in runs.keys() - set(evaluated) if evaluated else ():
        log.warning(
            "%s is not evaluated: its rows are shown as not run; make it with: %s", table, _evaluate(scale, table)
        )
    metrics = {table: read_metrics(scale, table, runs[table]) for table in evaluated or runs}
    folders = {run: paths.results(scale, name) / "train" / run for name, table in metrics.items() for run in table}
    return Inputs(
        scale=scale,
        planned={run: values for planned in runs.values() for run, values in planned.items()},
        table_of={run: table for table, planned in runs.items() for run in planned},
        results={run: result for table in metrics.values() for run, result in table.items()},
        losses={run: read_losses(folder) for run, folder in folders.items()},
        staleness=sum((read_staleness(folder) for folder in folders.values()), Counter[int]()),
    )


def metrics_path(scale: str, table: str) -> Path:
    """What `evaluate` found of a table's runs."""
    return paths.results(scale, table) / "metrics.json"


def read_metrics(scale: str, table: str, planned: Mapping[str, Run]) -> dict[str, Result]:
    """What the runs of a table reached. Raises ValueError that names the file and the command that makes it."""
    path = metrics_path(scale, table)
    command = _evaluate(scale, table)
    try:
        results: dict[str, Result] = json.loads(path.read_text())["runs"]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; make it with: {command}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); make it again with: {command}") from None
    if stray := set(results) - set(planned):
        raise ValueError(f"{path} has {min(stray)}, which params.yaml lacks; make it again with: {command}")
    return results


def read_losses(folder: Path) -> Losses:
    """The training loss of a run, averaged down to CURVE_POINTS entries. Raises ValueError for a run without any."""
    rows = read_curve(folder / "curve.jsonl")
    if not rows:
        raise ValueError(f"{folder / 'curve.jsonl'}: missing or empty; train the run again: python -m pipelines.train")
    size = math.ceil(len(rows) / CURVE_POINTS)
    bins = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [(part[-1]["step"], fmean(row["loss"] for row in part)) for part in bins]


def read_staleness(folder: Path) -> Counter[int]:
    """How many gradients of a run arrived how many updates late; empty where it was not asynchronous."""
    record = read_record(folder)
    counts = record["summary"].get("staleness", {}) if record else {}
    return Counter({int(updates): pushes for updates, pushes in counts.items()})


def read_pictures(scale: str, table: str, run: str) -> list[Picture]:
    """What `evaluate` drew of a run. Raises ValueError that names a missing file and the command that makes it."""
    folder = paths.results(scale, table) / "evaluation" / run
    try:
        words: list[dict[str, str]] = json.loads((folder / "pictures.json").read_text())
        return [Picture(**entry, statement="", files=_picture_files(folder / entry["name"])) for entry in words]
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} does not exist; make it with: {_evaluate(scale, table)}") from None


def read_errors(scale: str, table: str, run: str, samples: int) -> Kilometres:
    """(samples,) the errors of a geolocation run, in the order of evaluation, which is the same for all runs.

    Raises ValueError that names the file, where it is missing or of other photos, and the command that makes it.
    """
    path = paths.results(scale, table) / "evaluation" / run / "photos.csv"
    try:
        with path.open(newline="") as file:
            errors = [float(row["error_km"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; make it with: {_evaluate(scale, table)}") from None
    if len(errors) != samples:
        raise ValueError(
            f"{path} has {len(errors)} photos, metrics.json {samples}; make it again with: {_evaluate(scale, table)}"
        )
    return np.array(errors)


def _picture_files(stem: Path) -> dict[str, bytes]:
    """A picture by suffix, with its data where there is a table of its name."""
    table = stem.with_suffix(".csv")
    suffixes = (".png", ".svg", *([".csv"] if table.exists() else []))
    return {suffix: stem.with_suffix(suffix).read_bytes() for suffix in suffixes}


def _evaluate(scale: str, table: str) -> str:
    return f"python -m pipelines.evaluate {table} --scale {scale}"
