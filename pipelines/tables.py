"""`paper.yaml` and `metrics.json` -> the tables of the report: the paper's number beside ours, row by row.

Every kind of table ends as the same plain record, `Table`, which `pipelines.report` writes as HTML, Markdown and CSV.
Whether an accuracy can be compared with the paper's is read from what was evaluated, never from the scale's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from itertools import groupby
from typing import Any, NamedTuple

from pipelines.paper import Column, Data, Paper, Runs

Metrics = Mapping[str, Any]  # a metrics.json: the data evaluated on, and one row of results for each run
Result = Mapping[str, Any]  # one of these rows
Record = dict[str, str | int | float | None]

PARTS = {  # what is shown of a published quantity, by the kind of its column
    "measured": ("paper", "ours", "95 % interval", "correct", "difference"),
    "counted": ("paper", "ours", "difference"),
    "quoted": ("",),
}


class Cell(NamedTuple):
    """A value as it is shown. `mark` says how it stands to the paper's: same, differs, apart (other data), missing."""

    text: str
    mark: str = ""


NOT_PRINTED = Cell("-", "missing")
NOT_RUN = Cell("not run", "missing")


@dataclass(frozen=True)
class Table:
    """A finished table. `header` and each row have one entry a column; `records` hold the numbers unrounded."""

    name: str
    title: str
    header: Sequence[tuple[str, str]]  # (group, column)
    rows: Sequence[Sequence[Cell]]
    records: Sequence[Record]
    statement: str = ""  # what data the accuracies are of
    slips: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The groups of columns and how many columns each has."""
        return [(group, len(list(columns))) for group, columns in groupby(self.header, lambda names: names[0])]

    @property
    def starts(self) -> set[int]:
        """Where a group of columns begins, but for the first."""
        return {i for i in range(1, len(self.header)) if self.header[i][0] != self.header[i - 1][0]}


def runs_table(name: str, table: Runs, paper: Paper, metrics: Metrics) -> Table:
    """The rows of a published table, each beside our run of it; a run that `metrics` lacks is shown as not run."""
    columns = {key: paper.columns[key] for key in table.columns}
    data = paper.data[metrics["dataset"]]
    rows, records, results = [], [], []
    for row in table.rows:
        result = metrics["runs"].get(row.run)
        comparable = result is not None and not departures(metrics, [result], data)
        cells, record = [Cell(row.label)], Record(model=row.label, run=row.run)
        for key, column in columns.items():
            printed = row.published.get(key)
            cells.append(NOT_PRINTED if printed is None else Cell(printed))
            cells += _ours(key, column, printed, result, comparable)
            record |= _unrounded(key, column, printed, result)
        rows.append(cells)
        samples = result["samples"] if result else None
        records.append(record | {"samples": samples, "comparable": str(comparable).lower()})
        results += [result] if result else []
    header = [("", "Model"), *((column.title, part) for column in columns.values() for part in PARTS[column.kind])]
    statement = data_statement(metrics, results, data)
    return Table(name, table.title, header, rows, records, statement, table.slips, table.notes)


def _ours(key: str, column: Column, printed: str | None, result: Result | None, comparable: bool) -> list[Cell]:
    """What stands beside a printed number."""
    if column.kind == "quoted":
        return []
    if result is None:
        return [NOT_RUN] + [NOT_PRINTED] * (len(PARTS[column.kind]) - 2)
    ours = _in_units(result[key], column)
    shown = Cell(f"{ours:,.{column.decimals}f}")
    if column.kind == "counted":
        return [shown, count_difference(printed, ours, column.decimals)]
    low, high = (_in_units(result[f"{key}_{end}"], column) for end in ("low", "high"))
    interval = Cell(f"{low:.{column.decimals}f} to {high:.{column.decimals}f}")
    count = Cell(f"{result[f'{key}_correct']:,} of {result['samples']:,}")
    return [shown, interval, count, measured_difference(printed, ours, column.decimals, comparable)]


def _in_units(value: float, column: Column) -> Decimal:
    return Decimal(str(value)) / column.unit


def _unrounded(key: str, column: Column, printed: str | None, result: Result | None) -> Record:
    """The paper's number and ours in the units of metrics.json."""
    record: Record = {f"{key}_paper": None if printed is None else plain_number(Decimal(printed) * column.unit)}
    ends = {"measured": ("", "_low", "_high", "_correct"), "counted": ("",), "quoted": ()}[column.kind]
    return record | {f"{key}{end}": None if result is None else result[f"{key}{end}"] for end in ends}


def plain_number(value: Decimal) -> int | float:
    """As a CSV should say it: a whole number without a fraction."""
    return int(value) if value == int(value) else float(value)


def measured_difference(printed: str | None, ours: Decimal, decimals: int, comparable: bool) -> Cell:
    """Ours less the paper's, in the units printed; marked where ours is of other data than the paper's."""
    if printed is None:
        return NOT_PRINTED
    difference = f"{ours - Decimal(printed):+.{decimals}f}"
    return Cell(difference) if comparable else Cell(f"{difference}, other data", "apart")


def count_difference(printed: str | None, exact: Decimal, decimals: int) -> Cell:
    """How an exact count stands to a printed one in its last digit: equal (rounded or cut off) or by how much not."""
    if printed is None:
        return NOT_PRINTED
    published = Decimal(printed)
    last_digit = Decimal(1).scaleb(int(published.as_tuple().exponent))
    if exact.quantize(last_digit, ROUND_HALF_UP) == published:
        return Cell("equal", "same")
    if exact.quantize(last_digit, ROUND_DOWN) == published:
        return Cell("equal, cut off", "same")
    return Cell(f"{exact - published:+,.{decimals}f} ({exact / published - 1:+.2%})", "differs")


def departures(metrics: Metrics, results: Sequence[Result], data: Data) -> list[str]:
    """How the data that these results are of differs from the paper's; empty where the accuracies can be compared."""
    found = []
    if metrics["num_classes"] != data.num_classes:
        found.append(f"{metrics['num_classes']:,} classes (the paper: {data.num_classes:,})")
    if metrics["eval_samples"] != data.eval_samples:
        found.append(f"{metrics['eval_samples']:,} validation images (the paper: {data.eval_samples:,})")
    divisors = sorted({result["resolution"] / result["input_size"] for result in results} - {1.0})
    if divisors:
        found.append(f"inputs divided by {' or '.join(f'{divisor:g}' for divisor in divisors)}")
    return found


def data_statement(metrics: Metrics, results: Sequence[Result], data: Data) -> str:
    """What the accuracies are of, and whether they can be compared with the paper's and with each other."""
    found = departures(metrics, results, data)
    statement = (
        f"Accuracies at {metrics['scale']} scale are of the {metrics['scale']} data: {', '.join(found)}. "
        "They cannot be compared with the paper's; Mult-Adds and parameters can."
        if found
        else f"Accuracies are of {data.eval_samples:,} validation images of {data.num_classes:,} classes at full "
        "input size, as the paper's are."
    )
    epochs = sorted({result["epochs"] for result in results})
    if len(epochs) > 1:
        statement += f" These rows were trained for {epochs[0]:g} to {epochs[-1]:g} epochs; the paper trains all alike."
    return statement


TRAINING = (  # how the runs were made: key, heading, format
    ("input_size", "input, px", "{}"),
    ("kind", "kind", "{}"),
    ("num_workers", "workers", "{}"),
    ("epochs", "epochs", "{:g}"),
    ("steps", "steps", "{:,}"),
    ("final_loss", "final loss", "{:.3f}"),
    ("top1", "top-1", "{:.1%}"),
    ("top5", "top-5", "{:.1%}"),
    ("mean_staleness", "mean staleness", "{:.2f}"),
    ("train_seconds", "seconds", "{:,.0f}"),
    ("images_per_second", "images/s", "{:,.0f}"),
    ("mult_adds", "Mult-Adds", "{:,}"),
    ("parameters", "parameters", "{:,}"),
    ("parameters_all", "with biases, BN", "{:,}"),
)


def training_table(planned: Sequence[str], results: Mapping[str, Result], final_losses: Mapping[str, float]) -> Table:
    """Every run of params.yaml: how it was made, what it reached and what it costs."""
    rows, records = [], []
    for name in planned:
        result = {**results[name], "final_loss": final_losses[name]} if name in results else {}
        values = [result.get(key) for key, _, _ in TRAINING]
        missing = NOT_PRINTED if result else NOT_RUN
        shown = [
            missing if value is None else Cell(form.format(value))
            for value, (_, _, form) in zip(values, TRAINING, strict=True)
        ]
        rows.append([Cell(name), *shown])
        records.append(Record(run=name) | {key: result.get(key) for key, _, _ in TRAINING})
    header = [("", "Run"), *(("", heading) for _, heading, _ in TRAINING)]
    notes = (
        "Final loss is the mean over the last logged steps. Staleness is counted in asynchronous runs only.",
        "Mult-Adds and parameters are those of the paper's net: 1,000 classes and the full resolution.",
    )
    return Table("runs", "All runs", header, rows, records, notes=notes)
