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
from pipelines.section import Section, parsed, read_yaml

PARAMS_FILE = Path("params.yaml")
CHECKSUM_LENGTHS = {"md5": 32, "sha256": 64}

Positive = Annotated[int, Field(gt=0, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


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

    origin: str
    homepage: str
    files: dict[str, File]
    crawl: Crawl | None = None  # of the images that its lists ask for by URL; null: there are none
    shard: Sharding


class Optimizer(Section):
    """The update rule of `tasks.optim`."""

    rule: Literal["rmsprop"]
    learning_rate: Annotated[float, Field(gt=0)]
    decay: Fraction
    momentum: Fraction
    epsilon: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)] | None
    weight_average: Fraction | None  # decay of the running average of the weights; null: none is kept


class Schedule(Section):
    """Staircase decay by global step: learning_rate * rate ** floor(epoch / epochs)."""

    decay_rate: Annotated[float, Field(gt=0, le=1)]
    decay_epochs: Annotated[float, Field(gt=0)]
    warmup_steps: Annotated[int, Field(ge=0)]


class NetOptions(Section):
    """What the convolutional nets can be asked for beside width, input size and classes."""

    padding: Literal["same", "symmetric"]
    activation: Literal["relu", "relu6"]
    batch_norm_decay: Fraction
    batch_norm_epsilon: Annotated[float, Field(gt=0)]
    dropout: Fraction
    min_depth: Positive


class Augment(Section):
    """Bounds of the random crop, flip and colour of training images."""

    min_area: Fraction
    max_area: Fraction
    min_aspect: Annotated[float, Field(gt=0)]
    max_aspect: Annotated[float, Field(gt=0)]
    flip: Fraction
    brightness: Fraction
    min_saturation: Annotated[float, Field(ge=0)]
    max_saturation: Annotated[float, Field(ge=0)]
    antialias: bool
    central_fraction: Annotated[float, Field(gt=0, le=1)]  # of each side, in evaluation

    @model_validator(mode="after")
    def _is_ordered(self) -> Augment:
        for name in ("area", "aspect", "saturation"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise ValueError(f"min_{name} {low} is above max_{name} {high}")
        return self


class Servers(Section):
    """Asynchronous training: how many parameter servers, and what a late gradient means to them."""

    num_servers: Positive
    staleness: Literal["none", "scale", "drop", "wait"]
    max_staleness: Positive  # read by "drop" and "wait"
    snapshot_steps: Positive
    cpus: Annotated[float, Field(ge=0)]  # that Ray sets aside for each


# How a run is executed, watched and evaluated.
_WATCHING = ("worker_cpus", "worker_gpus", "max_failures", "decode_threads", "log_steps", "checkpoint_steps")
_PARTS: Any = {"servers": {"cpus", "snapshot_steps"}, "augment": {"central_fraction"}}
EXECUTION: Any = {**dict.fromkeys(_WATCHING, True), **_PARTS}


class Run(Section):
    """One training run: one row of a table, with every value its result depends on."""

    name: str
    task: str
    net: str
    width: Annotated[float, Field(gt=0)]
    resolution: Positive  # the paper's input size: what Mult-Adds are counted at
    resolution_divisor: Annotated[float, Field(ge=1)]
    kind: Literal["local", "ddp", "async"]
    num_workers: Positive
    worker_cpus: Annotated[float, Field(gt=0)]
    worker_gpus: Annotated[float, Field(ge=0)]
    max_failures: Annotated[int, Field(ge=-1)]  # of workers, before the run is given up; -1: never
    epochs: Annotated[float, Field(gt=0)]
    batch_size: Positive  # of one worker
    seed: Seed
    precision: Literal["32-true", "bf16-mixed"]
    decode_threads: Annotated[int, Field(ge=0)]  # 0: images are decoded where they are used
    block_shards: Positive  # shards whose samples are shuffled together
    log_steps: Positive
    checkpoint_steps: Positive
    optimizer: Optimizer
    schedule: Schedule
    net_options: NetOptions
    augment: Augment
    servers: Servers

    @model_validator(mode="after")
    def _is_trainable(self) -> Run:
        if self.resolution % self.resolution_divisor:
            raise ValueError(f"resolution {self.resolution} is not a multiple of {self.resolution_divisor}")
        if self.kind == "local" and self.num_workers != 1:
            raise ValueError(f"kind local has 1 worker, not num_workers {self.num_workers}; use ddp or async")
        return self

    def identity(self) -> dict[str, Any]:
        """The values that decide what the weights become: a run that differs in others alone is the same run."""
        values = {**self.model_dump(exclude=EXECUTION), "input_size": self.input_size}
        if self.kind != "async":
            del values["servers"]
        return values

    @property
    def input_size(self) -> int:
        """Side of the square images that the net is trained on, in pixels."""
        return round(self.resolution / self.resolution_divisor)


class Table(Section):
    """A family of runs that the paper compares: the same task, data set and class count."""

    task: str
    dataset: str
    num_classes: Positive  # the paper's: what parameters are counted at
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
            for table_name, table in self.tables.items():
                _one_of(table.dataset, scale.datasets, f"tables.{table_name}.dataset")
                _one_of(table_name, scale.recipes, f"scales.{scale_name}.recipes: table")
                for name in scale.recipes[table_name].runs:
                    _one_of(name, table.runs, f"scales.{scale_name}.recipes.{table_name}.runs: run")
        return self

    def dataset(self, name: str, scale: str | None = None) -> Dataset:
        """The data set `name` at a scale, by default the one in force. Raises ValueError for an unknown name."""
        datasets = self.scales[self._scale(scale)].datasets
        return datasets[_one_of(name, datasets, "data set")]

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
    """`base` with the values of `over`, block by block."""
    merged = dict(base)
    for key, value in over.items():
        both_blocks = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_blocks else value
    return merged
