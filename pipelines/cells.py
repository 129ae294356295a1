"""The cells stage: where photos were taken -> what a geolocation net chooses among (PlaNet, arXiv 1602.05314).

    python -m pipelines.cells planet_9800 [--scale paper]

Of a split's photos it is the coordinates alone that count. The six faces of S2's cube are split until no cell holds
more than `split_above` photos, and cells that hold fewer than `keep_from` are dropped. Writes `cells.csv` (token,
photos, centre and mean position of each cell) and a map of them.

Each shard is verified and then read; where there are many, by all of this machine's processes or by the Ray cluster
that RAY_ADDRESS names. The parent holds 8 bytes a photo, 0.8 GB of 100 million, and sorts them in place; a worker holds
the places of one shard.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines import paths
from pipelines.cell_table import CellTable, cell_files, made_of
from pipelines.command import end_process, run_stage
from pipelines.config import Params
from pipelines.files import locked, replace_folder
from pipelines.pool import pool
from pipelines.progress import counted
from pipelines.shards import Shard, read_fields, read_split

log = logging.getLogger(__name__)
FEW_PHOTOS = 100_000  # that are read in less time than further processes take to start


def cells(params: Params, scale: str, name: str) -> None:
    """Make the partition `name`: all of its folder, or nothing."""
    wanted = params.partition(name, scale)
    shards, folder = paths.shards(scale, wanted.dataset), paths.cells(scale, name)
    origin = made_of(params, scale, name)
    leaves = read_leaves(shards, wanted.split)

    from pipelines.pictures.world import cell_map
    from tasks import geocells, s2

    found = geocells.partition(leaves, wanted.split_above, wanted.keep_from)
    if not len(found.cells):
        raise ValueError(f"partition {name}: no cell holds keep_from {wanted.keep_from} of the {len(leaves):,} photos")
    positions = {"centre": s2.centres(found.cells), "mean": geocells.means(leaves, found.cells)}
    table = CellTable(tuple(s2.token(cell) for cell in found.cells.tolist()), found.photos, positions)
    drawn = {f"cells{suffix}": content for suffix, content in cell_map(found.cells, found.photos).items()}
    with locked(folder.parent):
        replace_folder(folder, cell_files(table, origin) | drawn)
    kept = int(found.photos.sum())
    log.info(
        "%s: %s cells of %s photos, the largest of %s; %s photos are in cells of fewer than %d",
        *(folder, f"{len(found.cells):,}", f"{kept:,}", f"{found.photos.max():,}"),
        *(f"{len(leaves) - kept:,}", wanted.keep_from),
    )


def read_leaves(shards: Path, split: str) -> npt.NDArray[np.uint64]:
    """The leaf cell of every photo of a split, in ascending order. Raises ValueError where one has no coordinates."""
    held = read_split(shards, split)
    leaves = np.empty(held.samples, dtype=np.uint64)
    read = partial(_shard_leaves, shards.absolute())  # a cluster's workers have another folder
    done = 0
    processes = 1 if held.samples <= FEW_PHOTOS else None
    with pool(processes) as run, counted(f"places of {shards.name}", held.samples) as advance:
        for part in run(read, held.shards):
            leaves[done : done + len(part)] = part
            done += len(part)
            advance(len(part))
    leaves.sort()
    return leaves


def _shard_leaves(shards: Path, shard: Shard) -> npt.NDArray[np.uint64]:
    """The leaf cells of the photos of one shard."""
    from tasks import s2

    places = np.empty((shard.samples, 2))
    for number, fields in enumerate(read_fields(shards, shard)):
        if "latitude" not in fields:
            raise ValueError(f"{shards / shard.name}: sample {number} has no latitude; it has {', '.join(fields)}")
        places[number] = fields["latitude"], fields["longitude"]
    try:
        return s2.leaves(places[:, 0], places[:, 1])
    except ValueError as error:
        raise ValueError(f"{shards / shard.name}: {error}") from None


def main(argv: list[str] | None = None) -> None:
    run_stage(cells, "partition", __doc__, argv)


if __name__ == "__main__":
    main()
    end_process()
