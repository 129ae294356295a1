"""`paper.yaml` and the results of runs -> the tables of the report: the paper's number beside ours, row by row.

Every kind of table ends as the same plain record, `Table`, which `pipelines.report` writes as HTML, Markdown and CSV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from itertools import groupby
from typing import Any, NamedTuple

from pipelines.comparisons import data_statement, departures, on_test_set, part_of, results_of
from pipelines.paper import Column, Data, Paper, Row, Runs

Result = Mapping[str, Any]  # what metrics.json says of one run
Record = dict[str, str | int | float | None]


class Kind(NamedTuple):
    """How a kind of column is shown: its parts on the page, and our numbers in the CSV by what their keys end in."""

    parts: tuple[str, ...]
    ends: tuple[str, ...]


KINDS = {
    # A share of the samples, so that it is told as a count as well.
    "proportion": Kind(
        ("paper", "ours", "95 % interval", "correct", "difference"), ("", "_low", "_high", "_correct")
    ),
    # The same where there are many beside each other.
    "share": Kind(("paper", "ours", "photos, interval"), ("", "_low", "_high", "_correct")),
    "measured": Kind(("paper", "ours", "95 % interval", "difference"), ("", "_low", "_high")),
    "counted": Kind(("paper", "ours", "difference"), ("",)),
    "quoted": Kind(("",), ()),
    "ours": Kind(("ours",), ("",)),
}  # fmt: skip
OF_DATA = ("proportion", "share", "measured")  # kinds


class Cell(NamedTuple):
    """A value as it is shown. `mark` says how it stands to the paper's: same, differs, apart (other data), missing; or
    that it may take two lines: long.
    """

    text: str
    mark: str = ""


NOT_PRINTED = Cell("-", "missing")
NOT_RUN = Cell("not run", "missing")
NOT_GIVEN = Cell("not given", "missing")  # the test set


@dataclass(frozen=True)
class Table:
    """A finished table. `header` and each row have one entry a column; `records` hold the numbers unrounded."""

    name: str
    title: str
    header: Sequence[tuple[str, str]]  # (group, column)
    rows: Sequence[Sequence[Cell]]
    records: Sequence[Record]
    statement: str = ""  # what data the accuracies are of
    comparisons: Sequence[str] = ()  # of our rows with each other
    printed_comparisons: Sequence[str] = ()  # of the paper's
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


class _Ours(NamedTuple):
    """What a row has of ours. `missing`: what it shows in place of a result."""

    result: Result | None
    missing: Cell
    comparable: bool


def runs_table(name: str, table: Runs, paper: Paper, scale: str, results: Mapping[str, Result]) -> Table:
    """The rows of a published table, each beside our run of it; a run that `results` lacks is shown as not run.

    results: by run, and by label where a row is only counted.
    """
    columns = {key: paper.columns[key] for key in table.columns}
    data = paper.data[table.data]
    of_data = any(column.kind in OF_DATA for column in columns.values())
    parts = {key: _parts(key, column, table) for key, column in columns.items()}
    in_parts = any(row.part for row in table.rows)
    rows, records = [], []
    for row in table.rows:
        ours = _ours(row, data, results)
        cells, record = [Cell(row.label)], Record(model=row.label, run=row.run)
        if in_parts:
            record["part"] = row.part
        for key, column in columns.items():
            cells += _cells(key, column, parts[key], row, ours)
            record |= _unrounded(key, column, parts[key], row, ours.result)
        rows.append(cells)
        if of_data:
            samples = ours.result["samples"] if row.run and ours.result else None
            record |= {"samples": samples, "comparable": str(ours.comparable).lower()}
        records.append(record)
    header = [("", "Model"), *((column.title, part) for key, column in columns.items() for part in parts[key])]
    statement = data_statement(scale, results_of(table, results), data) if of_data else ""
    return Table(name, table.title, header, rows, records, statement, slips=table.slips, notes=table.notes)


def _ours(row: Row, data: Data, results: Mapping[str, Result]) -> _Ours:
    if row.run is None:
        return _Ours(results.get(row.key), NOT_PRINTED, comparable=False)
    if row.run not in results:
        return _Ours(None, NOT_RUN, comparable=False)
    tested = on_test_set(data, results[row.run])
    if tested is None:
        return _Ours(None, NOT_GIVEN, comparable=False)
    shown = {**part_of(tested, row.part), "samples": tested["samples"]} if row.part else tested
    return _Ours(shown, NOT_RUN, comparable=not data.unlike and not departures([tested], data))


def _parts(key: str, column: Column, table: Runs) -> tuple[str, ...]:
    """What a column of a table is made of: not of the paper's numbers where it has none."""
    printed = any(key in row.published for row in table.rows)
    return tuple(part for part in KINDS[column.kind].parts if printed or part != "paper")


def _cells(key: str, column: Column, parts: Sequence[str], row: Row, ours: _Ours) -> list[Cell]:
    """What a row shows in the parts of one column."""
    printed, result, metric = row.published.get(key), ours.result, column.metric or key
    paper = [] if parts[0] == "ours" else [NOT_PRINTED if printed is None else Cell(printed)]
    rest = len(parts) - len(paper)
    if column.kind == "quoted":
        return paper
    if result is None:
        return [*paper, ours.missing, *[NOT_PRINTED] * (rest - 1)]
    if not _has(metric, column, row, result):
        return [*paper, *[NOT_PRINTED] * rest]
    value = column.in_units(result[metric])
    cells = [*paper, _shown(value, column)]
    if column.kind == "counted":
        return [*cells, count_difference(printed, value, column.decimals)]
    if column.kind == "ours":
        return cells
    low, high = (_shown(column.in_units(result[f"{metric}_{end}"]), column).text for end in ("low", "high"))
    interval = f"{low} to {high}"
    if column.kind == "share":
        return [*cells, Cell(f"{_correct(metric, result)}, {interval}", "long")]
    cells.append(Cell(interval))
    if column.kind == "proportion":
        cells.append(Cell(_correct(metric, result)))
    return [*cells, measured_difference(printed, value, column.decimals, ours.comparable)]


def _shown(value: Decimal, column: Column) -> Cell:
    return Cell(f"{value:,.{column.decimals}f}")


def _correct(metric: str, result: Result) -> str:
    return f"{result[f'{metric}_correct']:,} of {result['samples']:,}"


def _unrounded(key: str, column: Column, parts: Sequence[str], row: Row, result: Result | None) -> Record:
    """The paper's number and ours in the units of metrics.json."""
    printed, metric = row.published.get(key), column.metric or key
    paper = None if printed is None else plain_number(Decimal(printed) * column.unit)
    record: Record = {} if parts[0] == "ours" else {f"{metric}_paper": paper}
    ours = result if result is not None and _has(metric, column, row, result) else None
    keys = [f"{metric}{end}" for end in KINDS[column.kind].ends]
    return record | {name: None if ours is None else ours[name] for name in keys}


def _has(metric: str, column: Column, row: Row, result: Result) -> bool:
    """Whether there is a number of ours: a net that is only counted has no accuracy, a part of a run's metrics no cost,
    and not every test set has all that the paper does not print (pairs, for one).
    """
    if column.kind == "ours":
        return metric in result
    return not row.part if column.kind == "counted" else row.run is not None


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


METRICS = {  # the first that a result has is its task's
    "top1": "top-1",
    "within_25": "within 25 km",
    "mean_ap": "mean AP",
    "tar": "TAR at FAR 1e-4",
    "ap": "COCO AP",
}
TRAINING = (  # how the runs were made: key, heading, format
    ("dataset", "trained on", "{}"),
    ("metric", "metric", "{}"),
    ("reached", "reached", "{:.1%}"),
    ("input_size", "input, px", "{}"),
    ("kind", "kind", "{}"),
    ("num_workers", "workers", "{}"),
    ("epochs", "epochs", "{:g}"),
    ("steps", "steps", "{:,}"),
    ("final_loss", "final loss", "{:.3f}"),
    ("mean_staleness", "mean staleness", "{:.2f}"),
    ("train_seconds", "seconds", "{:,.0f}"),
    ("images_per_second", "images/s", "{:,.0f}"),
    ("mult_adds", "Mult-Adds", "{:,}"),
    ("parameters", "parameters", "{:,}"),
    ("parameters_all", "with biases, BN", "{:,}"),
    ("init_from", "starts from", "{}"),
    ("teacher", "teacher", "{}"),
)


def training_table(planned: Sequence[str], results: Mapping[str, Result], final_losses: Mapping[str, float]) -> Table:
    """Every run of params.yaml: how it was made, what it reached and what it costs."""
    rows, records = [], []
    for name in planned:
        result: dict[str, Any] = {}
        if name in results:
            metric = next(key for key in METRICS if key in results[name])
            reached = {"metric": METRICS[metric], "reached": results[name][metric]}
            result = {**results[name], **reached, "final_loss": final_losses[name]}
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
        "Final loss is the mean over the last logged steps. Losses of different tasks, of SSD and Faster R-CNN, or of "
        "labels and a teacher, are different quantities. Staleness is counted in asynchronous runs only.",
        "Mult-Adds and parameters are those of the paper's net: with as many outputs as the paper's data ask for and "
        "at full resolution, whatever the run was trained on.",
    )
    return Table("runs", "All runs", header, rows, records, notes=notes)
