"""`paper.yaml`, the paper's published numbers, as one typed tree. Read by `pipelines.report` alone."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.section import Section, parsed, read_yaml

PAPER_FILE = Path(__file__).with_name("paper.yaml")


class Data(Section):
    """The test set of published accuracies. Where the paper's is not public: ours, and why the two do not compare."""

    dataset: str  # in params.yaml
    num_classes: int  # 0: it has none
    classes: str = "classes"  # what is counted by `num_classes`
    eval_samples: int
    source: str = "the paper"  # whose these counts are
    unlike: str = ""  # a sentence; empty where accuracies can be compared
    part: str = ""  # what the names of its metrics begin with, where it is not the first test set of its runs


class Column(Section):
    """One published quantity, or one of ours alone; its key is the key of `metrics.json`, unless `metric` is."""

    title: str
    kind: Literal["proportion", "share", "measured", "counted", "quoted", "ours"]
    metric: str = ""
    unit: Decimal  # a printed number times this is in the units of metrics.json
    decimals: int  # that ours is shown with

    def in_units(self, value: float) -> Decimal:
        """A number of metrics.json as the column shows it."""
        return Decimal(str(value)) / self.unit


class CountedNet(Section):
    """A net whose cost is counted and that is never trained: values of `tasks.nets.NetSpec`, and its input size."""

    net: str
    width: float
    min_depth: int
    num_classes: int
    resolution: int


class Row(Section):
    """A net of a published table: our run of it, or its count alone, and the numbers as printed; or those alone.

    A column left out of `published` was not printed. A row with a `part` shows those metrics of its run whose names
    begin with it, and no cost: that is in the run's own row.
    """

    label: str
    run: str | None = None
    part: str = ""
    net: CountedNet | None = None
    published: dict[str, str] = {}

    @model_validator(mode="after")
    def _has_one_source(self) -> Row:
        if self.run is not None and self.net is not None:
            raise ValueError(f"row {self.label!r} must have either run or net")
        if self.run is None and self.net is None and not self.published:
            raise ValueError(f"row {self.label!r} must have run, net or published")
        if self.part and self.run is None:
            raise ValueError(f"row {self.label!r} has a part, but no run that it is of")
        return self

    @property
    def key(self) -> str:
        """What the row's result is found by."""
        return self.run or self.label


class Published(Section):
    """What all published tables have."""

    title: str
    section: str
    slips: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Runs(Published):
    """Rows that were trained: Tables 4 to 12 and 14."""

    kind: Literal["runs"]
    data: str  # what the accuracies are of
    columns: tuple[str, ...]  # the accuracy first
    rows: tuple[Row, ...]
    compare: tuple[tuple[str, str], ...] = ()  # two of our runs each, the first less the second
    compare_printed: tuple[tuple[str, str], ...] = ()  # the same of printed shares: labels of rows
    pictures: str | None = None  # the run whose evaluation pictures are shown


class Layers(Published):
    """The layers of MobileNet in order: Table 1."""

    kind: Literal["layers"]
    rows: tuple[tuple[str, str, str], ...]  # type and stride, filter shape, input size


class Costs(Published):
    """Mult-Adds and parameters as printed: of each type of layer, in per cent (Table 2), or in millions (Table 3).

    The rows have the names that `tasks.nets.complexity` gives to what it counts.
    """

    kind: Literal["shares", "example"]
    label: str  # what a row is
    columns: tuple[str, str]
    rows: dict[str, tuple[str, str]]


class Figure(Section):
    """A figure drawn of the rows of a table, accuracy against `x`."""

    title: str
    caption: str
    table: str
    x: str


class Paper(Section):
    """The whole of `paper.yaml`."""

    title: str
    citation: str
    url: str
    notes: tuple[str, ...]
    sections: tuple[str, ...]
    data: dict[str, Data]
    columns: dict[str, Column]
    tables: dict[str, Annotated[Runs | Layers | Costs, Field(discriminator="kind")]]
    figures: dict[str, Figure]

    @model_validator(mode="after")
    def _compares_what_was_kept(self) -> Paper:
        for name, table in self.runs.items():
            if table.compare and self.data[table.data].part:  # photo by photo, of which there are the first test set's
                raise ValueError(f"table {name}: compare is for a run's own test set, not {self.data[table.data].part}")
        return self

    @property
    def runs(self) -> dict[str, Runs]:
        """The tables whose rows were trained, by name."""
        return {name: table for name, table in self.tables.items() if isinstance(table, Runs)}


def load_paper(path: Path = PAPER_FILE) -> Paper:
    """Parse and check the published numbers. Raises ValueError that names the file and the key."""
    return parsed(Paper, read_yaml(path), str(path))
