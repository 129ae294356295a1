"""`paper.yaml` and the results of runs -> the tables of the report: the paper's number beside ours, row by row.

Every kind of table ends as the same plain record, `Table`, which `pipelines.report` writes as HTML, Markdown and CSV.
Whether an accuracy can be compared with the paper's is read from what was evaluated, never from the scale's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from itertools import groupby
from typing import Any, NamedTuple

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
    "measured": Kind(("paper", "ours", "95 % interval", "difference"), ("", "_low", "_high")),
    "counted": Kind(("paper", "ours", "difference"), ("",)),
    "quoted": Kind(("",), ()),
    "ours": Kind(("ours",), ("",)),
}  # fmt: skip


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
    comparisons: Sequence[str] = ()  # of our rows with each other
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


def runs_table(name: str, table: Runs, paper: Paper, scale: str, results: Mapping[str, Result]) -> Table:
    """The rows of a published table, each beside our run of it; a run that `results` lacks is shown as not run.

    results: by run, and by label where a row is only counted.
    """
    columns = {key: paper.columns[key] for key in table.columns}
    data = paper.data[table.data]
    rows, records = [], []
    for row in table.rows:
        result = results.get(row.key)
        trained = result if row.run else None
        comparable = trained is not None and not data.unlike and not departures([trained], data)
        cells, record = [Cell(row.label)], Record(model=row.label, run=row.run)
        for key, column in columns.items():
            cells += _cells(key, column, row, result, comparable)
            record |= _unrounded(key, column, row, result)
        rows.append(cells)
        samples = trained["samples"] if trained else None
        records.append(record | {"samples": samples, "comparable": str(comparable).lower()})
    header = [
        ("", "Model"),
        *((column.title, part) for column in columns.values() for part in KINDS[column.kind].parts),
    ]
    statement = data_statement(scale, results_of(table, results), data)
    compared = comparisons(table, paper, results)
    return Table(name, table.title, header, rows, records, statement, compared, table.slips, table.notes)


def results_of(table: Runs, results: Mapping[str, Result]) -> list[Result]:
    """The results of those rows of a table that were run."""
    return [results[row.key] for row in table.rows if row.run and row.key in results]


def _cells(key: str, column: Column, row: Row, result: Result | None, comparable: bool) -> list[Cell]:
    """What a row shows in the parts of one column."""
    parts = KINDS[column.kind].parts
    printed = row.published.get(key)
    paper = [] if column.kind == "ours" else [NOT_PRINTED if printed is None else Cell(printed)]
    rest = len(parts) - len(paper)
    if column.kind == "quoted":
        return paper
    if result is None:
        return [*paper, NOT_RUN, *[NOT_PRINTED] * (rest - 1)]
    if not _has(key, column, row, result):
        return [*paper, *[NOT_PRINTED] * rest]
    ours = _in_units(result[key], column)
    if column.kind == "counted":
        return [*paper, _shown(ours, column), count_difference(printed, ours, column.decimals)]
    if column.kind == "ours":
        return [_shown(ours, column)]
    low, high = (_shown(_in_units(result[f"{key}_{end}"], column), column).text for end in ("low", "high"))
    cells = [*paper, _shown(ours, column), Cell(f"{low} to {high}")]
    if column.kind == "proportion":
        cells.append(Cell(f"{result[f'{key}_correct']:,} of {result['samples']:,}"))
    return [*cells, measured_difference(printed, ours, column.decimals, comparable)]


def _shown(value: Decimal, column: Column) -> Cell:
    return Cell(f"{value:,.{column.decimals}f}")


def _in_units(value: float, column: Column) -> Decimal:
    return Decimal(str(value)) / column.unit


def _unrounded(key: str, column: Column, row: Row, result: Result | None) -> Record:
    """The paper's number and ours in the units of metrics.json."""
    printed = row.published.get(key)
    paper = None if printed is None else plain_number(Decimal(printed) * column.unit)
    record: Record = {} if column.kind == "ours" else {f"{key}_paper": paper}
    ours = result if result is not None and _has(key, column, row, result) else None
    keys = [f"{key}{end}" for end in KINDS[column.kind].ends]
    return record | {name: None if ours is None else ours[name] for name in keys}


def _has(key: str, column: Column, row: Row, result: Result) -> bool:
    """Whether there is a number of ours: a net that is only counted has no accuracy, and not every test set has all
    that the paper does not print (pairs, for one).
    """
    if column.kind == "ours":
        return key in result
    return column.kind == "counted" or row.run is not None


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


def departures(results: Sequence[Result], data: Data) -> list[str]:
    """How what these results are of differs from the full test set and inputs; empty where it does not."""
    found = []
    others = sorted({result["test_dataset"] for result in results} - {data.dataset})
    if others:
        found.append(f"tested on {' and '.join(others)} ({data.source}: {data.dataset})")
    for key, full, what in (
        ("num_classes", data.num_classes, data.classes),
        ("eval_samples", data.eval_samples, "test images"),
    ):
        if counts := sorted({result[key] for result in results} - {full}):
            found.append(f"{' or '.join(f'{count:,}' for count in counts)} {what} ({data.source}: {full:,})")
    divisors = sorted({result["resolution"] / result["input_size"] for result in results} - {1.0})
    if divisors:
        found.append(f"inputs divided by {' or '.join(f'{divisor:g}' for divisor in divisors)}")
    return found


def data_statement(scale: str, results: Sequence[Result], data: Data) -> str:
    """What the accuracies are of, and whether they can be compared with the paper's and with each other."""
    if not results:
        return "None of these was run."
    found = departures(results, data)
    if found:
        statement = f"Accuracies at {scale} scale are of the {scale} data: {', '.join(found)}."
    else:
        classes = f" of {data.num_classes:,} {data.classes}" if data.num_classes else ""
        same = "" if data.unlike else ", as the paper's are"
        statement = f"Accuracies are of {data.eval_samples:,} test images{classes} at full input size{same}."
    if data.unlike:
        statement += f" {data.unlike}"
    if found or data.unlike:
        statement += " Ours cannot be compared with the paper's; Mult-Adds and parameters can."
    epochs = sorted({result["epochs"] for result in results})
    if len(epochs) > 1:
        statement += f" Not all were trained alike: for {epochs[0]:g} to {epochs[-1]:g} epochs."
    return statement


def comparisons(table: Runs, paper: Paper, results: Mapping[str, Result]) -> list[str]:
    """How our runs stand to each other, where the table asks for it: a sentence for each pair, in its first column."""
    key = table.columns[0]
    column = paper.columns[key]
    labels = {row.run: row.label for row in table.rows}
    sentences = []
    for run, other in table.compare:
        pair = f"{labels[run]} minus {labels[other]}"
        if run not in results or other not in results:
            sentences.append(f"{pair}: not run.")
            continue
        first, second = results[run], results[other]
        if first["teacher"] == other:
            pair += ", its teacher"
        less = _in_units(first[key], column) - _in_units(second[key], column)
        overlap = first[f"{key}_low"] <= second[f"{key}_high"] and second[f"{key}_low"] <= first[f"{key}_high"]
        verdict = "overlap" if overlap else "are apart"
        sentences.append(f"{pair}: {less:+.{column.decimals}f} points; the intervals {verdict}.")
    return sentences


METRICS = {"top1": "top-1", "mean_ap": "mean AP", "tar": "TAR at FAR 1e-4"}  # the first that a result has is its task's
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
        "Final loss is the mean over the last logged steps. Losses of different tasks, or of labels and of a teacher, "
        "are different quantities. Staleness is counted in asynchronous runs only.",
        "Mult-Adds and parameters are those of the paper's net: with as many outputs as the paper's data ask for and "
        "at full resolution, whatever the run was trained on.",
    )
    return Table("runs", "All runs", header, rows, records, notes=notes)
