"""The cells that a geolocation net chooses among, as the `cells` stage leaves them: `cells.csv`, a row for each, and
`cells.json`, what they were made of.

The S2 tokens, in the order of the net's outputs, are the names of the classes; all else says what a class stands for.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines import paths
from pipelines.config import Params
from pipelines.files import read_json
from pipelines.shards import read_given

TABLE, ORIGIN = "cells.csv", "cells.json"
COLUMNS = ("token", "photos", "latitude", "longitude", "mean_latitude", "mean_longitude")
POSITIONS = {"centre": ("latitude", "longitude"), "mean": ("mean_latitude", "mean_longitude")}
DECIMALS = 7  # of a degree: a centimetre


class CellTable(NamedTuple):
    """tokens: of S2, ascending by cell. photos: (C,) int64, of training. positions: by name, (C, 2) degrees."""

    tokens: tuple[str, ...]
    photos: npt.NDArray[np.int64]
    positions: dict[str, npt.NDArray[np.float64]]


def cell_files(table: CellTable, made_of: dict[str, Any]) -> dict[str, bytes]:
    """`cells.csv` and `cells.json`, by name."""
    places = np.concatenate([table.positions[name] for name in POSITIONS], axis=1).tolist()
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for token, photos, place in zip(table.tokens, table.photos.tolist(), places, strict=True):
        rows.writerow((token, photos, *(f"{degrees:.{DECIMALS}f}" for degrees in place)))
    return {TABLE: text.getvalue().encode(), ORIGIN: (json.dumps(made_of, indent=2) + "\n").encode()}


def read_cells(folder: Path) -> CellTable:
    """The table of `cell_files`. Raises ValueError that names the file where it holds something else."""
    path = folder / TABLE
    with path.open(newline="") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    if tuple(header) != COLUMNS:
        raise ValueError(f"{path} has the columns {', '.join(header) or 'none'}; they must be {', '.join(COLUMNS)}")
    try:
        columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
        positions = {
            name: np.array([columns[axis] for axis in axes], dtype=np.float64).T for name, axes in POSITIONS.items()
        }
        return CellTable(tuple(columns["token"]), np.array(columns["photos"], dtype=np.int64), positions)
    except ValueError as error:
        raise ValueError(f"{path} is no table of cells: {error}") from None


def made_of(params: Params, scale: str, name: str) -> dict[str, Any]:
    """All that the partition `name` depends on: its values, and the digest of the shards that it is made of."""
    partition = params.partition(name, scale)
    return {**partition.model_dump(), "digest": read_given(paths.shards(scale, partition.dataset)).digest}


def current_cells(params: Params, scale: str, name: str) -> CellTable:
    """The cells of the partition `name`. Raises ValueError with the command that makes them where there are none, or
    where they were made of other photos or with other values.
    """
    folder = paths.cells(scale, name)
    found = None
    if not (folder / ORIGIN).exists():
        found = f"{folder / TABLE} does not exist"
    elif read_json(folder / ORIGIN) != made_of(params, scale, name):
        found = f"{folder} is of other photos, or of other values in params.yaml"
    if found is not None:
        raise ValueError(f"{found}; make it with: python -m pipelines.cells {name} --scale {scale}")
    return read_cells(folder)
