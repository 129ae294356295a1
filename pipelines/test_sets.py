"""The test sets of a table as they lie on the disk, with what is known of them beside their images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import paths
from pipelines.cell_table import current_cells
from pipelines.config import Params
from pipelines.shards import Index, read_index

if TYPE_CHECKING:
    from pipelines.training.reader import SplitReader
    from tasks.base import Pairs, TestSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestData:
    """A test set as it lies on the disk. name: what its metrics begin with; "" for the table's own."""

    __test__ = False  # pytest takes it for a test by its name

    name: str
    dataset: str
    split: str
    shards: Path
    index: Index
    reader: SplitReader
    test_set: TestSet

    def prefixed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values under the names that they have in metrics.json."""
        return {f"{self.name}_{key}" if self.name else key: value for key, value in values.items()}


def read_tests(params: Params, scale: str, table_name: str) -> list[TestData]:
    """The test sets of a table, its own first; of the further ones those that are given."""
    from pipelines.training.reader import SplitReader
    from tasks.base import Places, TestSet

    table = params.tables[table_name]
    cells = current_cells(params, scale, table.cells.partition) if table.cells else None
    places = Places(cells.positions[table.cells.position], cells.photos) if table.cells and cells else None
    found = []
    for name, test in {"": table.test, **table.further_tests}.items():
        shards = paths.shards(scale, test.dataset)
        index = read_index(shards)
        if name and not index.splits:
            log.warning("%s is not given: %s goes without it", test.dataset, table_name)
            continue
        reader = SplitReader(shards, test.split)
        classes = cells.tokens if cells else index.classes
        pairs = read_pairs(paths.raw(scale, test.dataset), index.dataset, reader)
        test_set = TestSet(classes, pairs, places)
        found.append(TestData(name, test.dataset, test.split, shards, index, reader, test_set))
    return found


def read_pairs(raw: Path, dataset: str, reader: SplitReader) -> Pairs | None:
    """The pairs that a data set's publisher compares, by the samples' places in a split; None where it has none."""
    import numpy as np

    from pipelines.sources import SOURCES
    from tasks.base import Pairs

    read = SOURCES[dataset].pairs
    if read is None:
        return None
    pairs = read(raw)
    places = {name: place for place, name in enumerate(reader.column("name"))}
    first, second = (
        [places[name] for name in side] for side in zip(*((p.first, p.second) for p in pairs), strict=True)
    )
    same, fold = zip(*((pair.is_same, pair.fold) for pair in pairs), strict=True)
    return Pairs(np.array(first), np.array(second), np.array(same), np.array(fold))
