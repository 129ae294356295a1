"""What trials are measured on: never the test split.

- Data with labels: their `val` split, unless a table tests on it; else a part of `train` is held out, and no trial
  learns from it. That part is the last tenth of the samples, in the order of the shards. Which images those are is
  chance: `shard` deals a split's samples to its shards in shuffled order.
- Data without labels (of runs that learn from a teacher alone): the `val` split of the data set that their table tests
  on, unless a table tests on that very split.

The held-out part becomes shards of its own: whole ones are linked, and the one that the border runs through is written
anew as two. So trials read both parts as any run reads its data.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipelines import paths
from pipelines.cell_table import current_cells
from pipelines.config import Params
from pipelines.files import locked
from pipelines.shards import BLOCK, INDEX, OFFSETS, Index, Shard, Split, Stored, read_index, read_offsets, write_shard

if TYPE_CHECKING:
    from pipelines.plan import Plan
    from tasks.base import TestSet

SHARE = 0.1  # of the samples of `train`
TRAIN, VAL, HELD_OUT = "train", "val", "held_out"


class Measured(NamedTuple):
    """What trials are measured on. rule: in words. samples: how many there are."""

    shards: Path
    split: str
    samples: int
    rule: str
    test_set: TestSet


def border(samples: int) -> int:
    """How many samples of `train`, the first ones, trials learn from. Raises ValueError where there are not two."""
    if samples < 2:
        raise ValueError(f"{samples} sample is too few to hold some out")
    return samples - max(1, round(SHARE * samples))


def part(plan: Plan, folder: Path) -> tuple[Path, Index, Measured]:
    """The shards that a table's trials learn from, their index, and what the trials are measured on.

    folder: for shards of the two parts, where `train` is parted; it is made. Raises ValueError where nothing is left to
    measure on.
    """
    table, tested = plan.params.tables[plan.table], _tested(plan.params)
    if not _has_labels(plan):
        shards = paths.shards(plan.scale, table.test.dataset)
        index = read_index(shards)
        if VAL not in index.splits or (table.test.dataset, VAL) in tested:
            raise ValueError(
                f"{plan.shards} has no labels, and {shards} no split {VAL} that no table tests on: there is nothing to "
                "measure trials on"
            )
        return plan.shards, plan.index, _measured(plan, shards, index, VAL, f"the {VAL} split of {index.dataset}")
    if VAL in plan.index.splits and (table.dataset, VAL) not in tested:
        rule = f"the {VAL} split of {plan.index.dataset}"
        return plan.shards, plan.index, _measured(plan, plan.shards, plan.index, VAL, rule)
    with locked(folder.parent):
        index = write_parts(plan.shards, plan.index, folder)
    rule = f"the last tenth of {TRAIN} of {index.dataset}, which no trial learns from"
    return folder, index, _measured(plan, folder, index, HELD_OUT, rule)


def _tested(params: Params) -> set[tuple[str, str]]:
    """(data set, split) of all that any table tests on."""
    tables = params.tables.values()
    return {(test.dataset, test.split) for table in tables for test in (table.test, *table.further_tests.values())}


def _has_labels(plan: Plan) -> bool:
    from pipelines.training.reader import SplitReader
    from tasks import TASKS
    from tasks.base import View

    reader, first = SplitReader(plan.shards, TRAIN), np.zeros(1, np.int64)
    _, fields = next(reader.read(first))
    (height,), (width,) = reader.image_sizes(first)
    fields["view"] = View((0, 0, int(height), int(width)), flipped=False)
    return bool(TASKS[plan.params.tables[plan.table].task].collator(plan.classes)([fields]))


def _measured(plan: Plan, shards: Path, index: Index, split: str, rule: str) -> Measured:
    from tasks.base import Places, TestSet

    wanted = plan.params.tables[plan.table].cells
    cells = None if wanted is None else current_cells(plan.params, plan.scale, wanted.partition)
    places = Places(cells.positions[wanted.position], cells.photos) if wanted and cells else None
    classes = plan.classes if cells or index.dataset == plan.index.dataset else index.classes
    return Measured(shards.resolve(), split, index.splits[split].samples, rule, TestSet(classes, None, places))


def write_parts(shards: Path, index: Index, folder: Path) -> Index:
    """Make `folder` a set of shards whose splits are the two parts of `train`; what is there already is left alone."""
    if not (folder / INDEX).exists():
        fresh = folder.with_name(f".{folder.name}.fresh")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        parts = _parts(shards, index.splits[TRAIN], fresh)
        splits = {name: Split(sum(shard.samples for shard in part), tuple(part)) for name, part in parts.items()}
        (fresh / INDEX).write_bytes(Index(index.dataset, index.classes, splits, {}, {}).to_json())
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)
    return read_index(folder)


def _parts(shards: Path, split: Split, target: Path) -> dict[str, list[Shard]]:
    """The shards of each part, linked or written into `target`."""
    limit = border(split.samples)
    parts: dict[str, list[Shard]] = {TRAIN: [], HELD_OUT: []}
    ends = np.cumsum([0, *(shard.samples for shard in split.shards)]).tolist()
    for shard, (start, stop) in zip(split.shards, pairwise(ends), strict=True):
        if start < limit < stop:
            number = shard.name.removesuffix(".tar").rpartition("-")[2]
            for name, begin, end in ((TRAIN, start, limit), (HELD_OUT, limit, stop)):
                samples = _stored(shards, shard, begin - start, end - start)
                parts[name].append(write_shard(target, f"{name}_cut-{number}", samples))
            continue
        for file in (shard.name, shard.offsets_name):
            (target / file).symlink_to((shards / file).resolve())
        parts[TRAIN if stop <= limit else HELD_OUT].append(shard)
    return parts


def _stored(shards: Path, shard: Shard, start: int, stop: int) -> Iterator[Stored]:
    """The samples of a shard from one place in it to another, as they are stored, under the keys that they have."""
    table = read_offsets(shards, shard)
    columns = {name: table[:, place].tolist() for place, name in enumerate(OFFSETS)}
    with (shards / shard.name).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        for row in range(start, stop):
            values = {name: column[row] for name, column in columns.items()}
            at, fields_at = values["image_offset"], values["fields_offset"]
            yield Stored(
                _key(tar, at),
                tar[at : at + values["image_bytes"]],
                tar[fields_at : fields_at + values["fields_bytes"]],
                values["height"],
                values["width"],
            )


def _key(tar: mmap.mmap, image: int) -> int:
    """The key of the sample whose image begins there: its member's header, a block before, begins with the name."""
    return int(tar[image - BLOCK : image - BLOCK + 8])
