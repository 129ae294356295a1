"""Where everything lies, relative to the project's folder. The two scales never share a path."""

from __future__ import annotations

from pathlib import Path

DATA = Path("data")
RESULTS = Path("results")


def raw(scale: str, dataset: str) -> Path:
    """Upstream archives and their `manifest.json`."""
    return DATA / scale / "raw" / dataset


def shards(scale: str, dataset: str) -> Path:
    """WebDataset tars and their `index.json`."""
    return DATA / scale / "shards" / dataset


def cells(scale: str, name: str) -> Path:
    """A partition of the Earth: `cells.csv` and a map of it."""
    return DATA / scale / "cells" / name


def contact_sheet(scale: str, dataset: str) -> Path:
    """A picture of what the shards hold."""
    return DATA / scale / "contact_sheets" / f"{dataset}.png"


def results(scale: str, table: str) -> Path:
    """What the runs of a table leave: `train/<run>/` and `metrics.json`."""
    return RESULTS / scale / table


def report(scale: str) -> Path:
    """The finished tables and figures."""
    return RESULTS / scale / "report"


def work(scale: str) -> Path:
    """Checkpoints and snapshots of unfinished runs: never a DVC output, since DVC deletes those before a stage."""
    return RESULTS / scale / "work"


def kept_row(scale: str, run: str) -> Path:
    """A finished row where DVC does not remove it."""
    return RESULTS / scale / "rows" / run


def predictions(scale: str, dataset: str, digest: str) -> Path:
    """What a teacher predicts of a data set: beside the shards, by a digest of all that it depends on."""
    return DATA / scale / "predictions" / dataset / f"{digest[:16]}.npy"


def job_name(run: str, fingerprint: str) -> str:
    """A name that no run of other params, data or code has."""
    return f"{run}-{fingerprint[:12]}"


def spools(scale: str) -> Path:
    """What MLflow is to be told, run by run."""
    return RESULTS / scale / "mlflow"


def spool(scale: str, run: str, fingerprint: str) -> Path:
    """What MLflow is to be told of one run."""
    return spools(scale) / job_name(run, fingerprint)
