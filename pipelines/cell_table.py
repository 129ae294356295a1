"""The cells that a geolocation net chooses among, as the `cells` stage leaves them: `cells.csv`, a row for each.

The S2 tokens, in the order of the net's outputs, are the names of the classes; all else says what a class stands for.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines import paths
from pipelines.config import Params
from pipelines.shards import Index

NAME = "cells.csv"
COLUMNS = ("token", "photos", "latitude", "longitude", "mean_latitude", "mean_longitude")
POSITIONS = {"centre": ("latitude", "longitude"), "mean": ("mean_latitude", "mean_longitude")}
DECIMALS = 7  # of a degree: a centimetre


class CellTable(NamedTuple):
    """tokens: of S2, ascending by cell. photos: (C,) int64, of training. positions: by name, (C, 2) degrees."""

    tokens: tuple[str, ...]
    photos: npt.NDArray[np.int64]
    positions: dict[str, npt.NDArray[np.float64]]


def write_cells(folder: Path, table: CellTable) -> None:
    """Write `cells.csv`."""
    places = np.concatenate([table.positions[name] for name in POSITIONS], axis=1).tolist()
    with (folder / NAME).open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for token, photos, place in zip(table.tokens, table.photos.tolist(), places, strict=True):
            rows.writerow((token, photos, *(f"{degrees:.{DECIMALS}f}" for degrees in place)))


def read_cells(folder: Path) -> CellTable:
    """What `write_cells` wrote. Raises ValueError that names the file where it is absent or has other columns."""
    path = folder / NAME
    try:
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; make it with: python -m pipelines.cells {folder.name}") from None
    if tuple(header) != COLUMNS:
        raise ValueError(f"{path} has the columns {', '.join(header)}; they must be {', '.join(COLUMNS)}")
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    positions = {
        name: np.array([columns[axis] for axis in axes], dtype=np.float64).T for name, axes in POSITIONS.items()
    }
    return CellTable(tuple(columns["token"]), np.array(columns["photos"], dtype=np.int64), positions)


def classes(params: Params, scale: str, table: str, index: Index) -> Sequence[str]:
    """What the outputs of a table's nets mean, in order: its cells, or else the classes of the data."""
    wanted = params.tables[table].cells
    return index.classes if wanted is None else read_cells(paths.cells(scale, wanted.partition)).tokens
