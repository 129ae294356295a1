"""What results may be compared with, and how they compare: the sentences above and under the tables of the report.

Whether an accuracy can be compared with the paper's is read from what was evaluated, never from the scale's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.paper import Column, Data, Paper, Runs

if TYPE_CHECKING:
    from pipelines.tables import Result
    from tasks.bootstrap import Difference

Kilometres = npt.NDArray[np.float64]
Errors = Callable[[str], Kilometres]  # run -> (N,) how far from the truth it places each test photo


def results_of(table: Runs, results: Mapping[str, Result]) -> list[Result]:
    """The results of those rows of a table that were run."""
    return [results[row.key] for row in table.rows if row.run and row.key in results]


def part_of(result: Result, part: str) -> Result:
    """The metrics whose names begin with a part, without it; empty where there is none of it."""
    return {key.removeprefix(f"{part}_"): value for key, value in result.items() if key.startswith(f"{part}_")}


def on_test_set(data: Data, result: Result) -> Result | None:
    """A result with what it is on a test set under the plain names; None where that set was not given."""
    found = part_of(result, data.part)
    return result if not data.part else {**result, **found} if found else None


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
    tested = [part for result in results if (part := on_test_set(data, result)) is not None]
    if not tested:
        return f"{data.source} was not given; nothing was tested on it."
    found = departures(tested, data)
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


def comparisons(table: Runs, paper: Paper, results: Mapping[str, Result], errors: Errors) -> list[str]:
    """How our runs stand to each other, where the table asks for it: a sentence for each pair, in its first column; of
    shares of photos in each of them, photo by photo.
    """
    key = table.columns[0]
    column = paper.columns[key]
    labels = {row.run: row.label for row in table.rows if not row.part}
    sentences = []
    for run, other in table.compare:
        pair = f"{labels[run]} minus {labels[other]}"
        if run not in results or other not in results:
            sentences.append(f"{pair}: not run.")
        elif column.kind == "share":
            sentences.append(_by_photos(pair, _shares(table, paper), errors(run), errors(other)))
        else:
            pair += ", its teacher" if results[run]["teacher"] == other else ""
            sentences.append(_by_intervals(pair, key, column, results[run], results[other]))
    return sentences


def printed_comparisons(table: Runs, paper: Paper) -> list[str]:
    """How printed shares of photos stand to each other, where the table asks for it: a sentence for each pair.

    The counts are those that the printed shares are nearest to. Which photos they are of is not known.
    """
    from tasks.bootstrap import independent_difference

    samples = paper.data[table.data].eval_samples
    published = {row.label: row.published for row in table.rows}
    sentences = []
    for pair in table.compare_printed:
        found = []
        for key, column in _shares(table, paper).items():
            first, second = (round(Decimal(published[label][key]) * column.unit * samples) for label in pair)
            found.append((column, independent_difference(first, samples, second, samples)))
        sentences.append(_sentence(f"{' minus '.join(pair)}, {samples:,} photos each", found))
    return sentences


def _shares(table: Runs, paper: Paper) -> dict[str, Column]:
    return {key: paper.columns[key] for key in table.columns if paper.columns[key].kind == "share"}


def _by_intervals(pair: str, key: str, column: Column, first: Result, second: Result) -> str:
    less = column.in_units(first[key]) - column.in_units(second[key])
    overlap = first[f"{key}_low"] <= second[f"{key}_high"] and second[f"{key}_low"] <= first[f"{key}_high"]
    verdict = "overlap" if overlap else "are apart"
    return f"{pair}: {less:+.{column.decimals}f} points; the intervals {verdict}."


def _by_photos(pair: str, columns: Mapping[str, Column], first: Kilometres, second: Kilometres) -> str:
    from tasks.bootstrap import paired_difference

    found = []
    for key, column in columns.items():
        radius = int(key.rpartition("_")[2])  # within_25: 25 km
        found.append((column, paired_difference(first <= radius, second <= radius)))
    return _sentence(f"{pair}, {len(first):,} photos", found)


def _sentence(pair: str, found: Sequence[tuple[Column, Difference]]) -> str:
    differences, significant = [], []
    for column, difference in found:
        name = column.title.split(",")[0].lower()
        mean, low, high = (column.in_units(share) for share in (difference.mean, difference.low, difference.high))
        decimals = column.decimals
        differences.append(f"{name} {mean:+.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})")
        significant += [name] if difference.significant else []
    verdict = "all" if len(significant) == len(found) else ", ".join(significant) or "none"
    return f"{pair}, in points: {', '.join(differences)}; significant: {verdict}."
