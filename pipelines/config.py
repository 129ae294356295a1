"""`params.yaml` as one frozen, typed tree, parsed once; a key that is not here is refused.

Functions elsewhere take the values they need, so that only the stages' entry points read this file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from pipelines.crawl import Crawl
from pipelines.section import Positive, Section, Seed, parsed, read_yaml
from pipelines.training.run import Run

PARAMS_FILE = Path("params.yaml")
CHECKSUM_LENGTHS = {"md5": 32, "sha256": 64}


class File(Section):
    """One upstream archive. `bytes` and `checksum` are null where the publisher states none."""

    bytes: Positive | None
    checksum: str | None
    url: str | None = None  # null: the data set's origin joined with the file's name

    @field_validator("checksum")
    @classmethod
    def _is_a_digest(cls, value: str | None) -> str | None:
        if value is None:
            return None
        algorithm, _, digest = value.partition(":")
        if CHECKSUM_LENGTHS.get(algorithm) != len(digest) or not re.fullmatch("[0-9a-f]+", digest):
            allowed = " or ".join(f"{name}:<{length} hex digits>" for name, length in CHECKSUM_LENGTHS.items())
            raise ValueError(f"{value!r} is not {allowed}")
        return value


class Sharding(Section):
    """How a data set becomes shards."""

    seed: Seed
    samples_per_shard: Positive
    stored_short_side: Positive | None  # null: JPEG bytes go into the shards as they came
    max_pixels: Positive  # an image that claims more is bad: refused from its header alone
    max_bytes: Positive
    bad_images: Literal["error", "skip"]
    samples: dict[str, Positive | None]  # split -> the number of samples that must be found; null: any number
    options: dict[str, Any] = {}  # the source's own: see its file in pipelines/sources


class Dataset(Section):
    """Where a data set comes from and what is made of it."""

    origin: str | None  # null: it is not given; whatever files and crawl say, nothing is fetched
    homepage: str
    files: dict[str, File]
    crawl: Crawl | None = None  # of the images that its lists ask for by URL; null: there are none
    shard: Sharding


class Test(Section):
    """What a table's runs are evaluated on."""

    dataset: str
    split: str


class Partition(Section):
    """A partition of the Earth by PlaNet's rule: what it is made of, and how fine it is."""

    dataset: str
    split: str
    split_above: Positive  # photos; a cell with more is split
    keep_from: Positive  # photos; a cell with fewer is dropped

    @model_validator(mode="after")
    def _keeps_some(self) -> Partition:
        if self.keep_from > self.split_above:
            raise ValueError(f"keep_from {self.keep_from} is above split_above {self.split_above}")
        return self


class Cells(Section):
    """The classes of a geolocation net, and what a class stands for."""

    partition: str
    position: Literal["mean", "centre"]  # of its training photos, or of the cell


class Table(Section):
    """A family of runs: the same task, the same data to learn from and to be tested on, and as many outputs.

    further_tests: other test sets, whose metrics begin with their key here.
    """

    task: str
    dataset: str
    cells: Cells | None = None  # null: the classes are those of the data
    test: Test
    further_tests: dict[Annotated[str, Field(pattern="^[a-z0-9]+$")], Test] = {}
    num_outputs: Positive  # the paper's: what parameters are counted at
    runs: dict[str, dict[str, Any]]

    @field_validator("runs")
    @classmethod
    def _have_plain_names(cls, runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in runs:
            if not re.fullmatch("[a-z0-9_]+", name):
                raise ValueError(f"run {name!r}: a name is of a-z, 0-9 and _ (DVC reads a dot as a level)")
        return runs


class Recipe(Section):
    """What the runs of a table share at one scale, and where single runs differ from it."""

    defaults: dict[str, Any]
    runs: dict[str, dict[str, Any]]


class Scale(Section):
    """One block of knobs. Both scales have the same keys; the code never asks which one it has."""

    datasets: dict[str, Dataset]
    partitions: dict[str, Partition] = {}
    recipes: dict[str, Recipe]


class Params(Section):
    """The whole of `params.yaml`."""

    scale: str
    tables: dict[str, Table]
    scales: dict[str, Scale]

    @model_validator(mode="after")
    def _is_consistent(self) -> Params:
        _one_of(self.scale, self.scales, "scale")
        for scale_name, scale in self.scales.items():
            for name, partition in scale.partitions.items():
                _one_of(partition.dataset, scale.datasets, f"scales.{scale_name}.partitions.{name}.dataset")
            for table_name, table in self.tables.items():
                _one_of(table.dataset, scale.datasets, f"tables.{table_name}.dataset")
                _one_of(table.test.dataset, scale.datasets, f"tables.{table_name}.test.dataset")
                for key, test in table.further_tests.items():
                    _one_of(test.dataset, scale.datasets, f"tables.{table_name}.further_tests.{key}.dataset")
                if table.cells is not None:
                    where = f"tables.{table_name}.cells.partition"
                    made_of = scale.partitions[_one_of(table.cells.partition, scale.partitions, where)].dataset
                    if made_of != table.dataset:  # dvc.yaml has the cells depend on it
                        raise ValueError(f"{where}: {table.cells.partition} is of {made_of}, not of {table.dataset}")
                _one_of(table_name, scale.recipes, f"scales.{scale_name}.recipes: table")
                for name in scale.recipes[table_name].runs:
                    _one_of(name, table.runs, f"scales.{scale_name}.recipes.{table_name}.runs: run")
        names = [name for table in self.tables.values() for name in table.runs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"run {min(twice)!r} is in two tables")
        return self

    def table_of(self, run: str) -> str | None:
        """The table that a run is a row of; None for a name that is no run's."""
        return next((name for name, table in self.tables.items() if run in table.runs), None)

    def dataset(self, name: str, scale: str | None = None) -> Dataset:
        """The data set `name` at a scale, by default the one in force. Raises ValueError for an unknown name."""
        datasets = self.scales[self._scale(scale)].datasets
        return datasets[_one_of(name, datasets, "data set")]

    def partition(self, name: str, scale: str | None = None) -> Partition:
        """The partition `name` at a scale, by default the one in force. Raises ValueError for an unknown name."""
        partitions = self.scales[self._scale(scale)].partitions
        return partitions[_one_of(name, partitions, "partition")]

    def runs(self, table_name: str, scale: str | None = None) -> dict[str, Run]:
        """Every run of a table: the scale's defaults, then the table's row, then the scale's word on that row.

        Raises ValueError that names the run and the key where a value is missing, unknown or out of range.
        """
        table = self.tables[_one_of(table_name, self.tables, "table")]
        recipe = self.scales[self._scale(scale)].recipes[table_name]
        runs = {}
        for name, row in table.runs.items():
            merged = _merge(_merge(recipe.defaults, row), recipe.runs.get(name, {}))
            runs[name] = parsed(Run, {**merged, "name": name, "task": table.task}, f"run {name}")
            for key, wanted in runs[name].origins.items():
                if self.table_of(wanted) is None and not (key == "init_from" and wanted.endswith(".pt")):
                    files = " or a .pt file" if key == "init_from" else ""
                    raise ValueError(f"run {name}: {key} is {wanted!r}; it must be a run of a table{files}")
        return runs

    def _scale(self, scale: str | None) -> str:
        return self.scale if scale is None else _one_of(scale, self.scales, "scale")


def load(path: Path = PARAMS_FILE) -> Params:
    """Parse and check a parameter file, every run in it included. Raises ValueError with file, key and value."""
    try:
        params = parsed(Params, read_yaml(path), "")
        for scale in params.scales:
            for table in params.tables:
                params.runs(table, scale)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; run this from the project's folder") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return params


def _one_of(name: str, known: dict[str, Any], what: str) -> str:
    if name not in known:
        raise ValueError(f"{what} {name!r} is unknown; there are: {', '.join(sorted(known))}")
    return name


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, block by block; a block with another `rule` is none of the base's concern."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("rule", below.get("rule")) == below.get("rule")
        ):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged
