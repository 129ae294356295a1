"""`paper.yaml`, the paper's published numbers, as one typed tree. Read by `pipelines.report` alone."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.section import Section, parsed, read_yaml

PAPER_FILE = Path(__file__).with_name("paper.yaml")


class Data(Section):
    """How much the published accuracies were evaluated on."""

    num_classes: int
    eval_samples: int


class Column(Section):
    """One published quantity; its key is the key of `metrics.json`."""

    title: str
    kind: Literal["measured", "counted", "quoted"]
    unit: Decimal  # a printed number times this is in the units of metrics.json
    decimals: int  # that ours is shown with


class Row(Section):
    """A net of a published table: our run of it and the numbers as printed; a column left out was not printed."""

    label: str
    run: str
    published: dict[str, str]


class Published(Section):
    """What all published tables have."""

    title: str
    slips: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Runs(Published):
    """Rows that were trained: Tables 4 to 9."""

    kind: Literal["runs"]
    results: str  # the table of params.yaml whose metrics.json has the runs
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


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
    data: dict[str, Data]
    columns: dict[str, Column]
    tables: dict[str, Annotated[Runs | Layers | Costs, Field(discriminator="kind")]]
    figures: dict[str, Figure]

    @property
    def runs(self) -> dict[str, Runs]:
        """The tables whose rows were trained, by name."""
        return {name: table for name, table in self.tables.items() if isinstance(table, Runs)}


def load_paper(path: Path = PAPER_FILE) -> Paper:
    """Parse and check the published numbers. Raises ValueError that names the file and the key."""
    return parsed(Paper, read_yaml(path), str(path))
