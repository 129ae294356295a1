"""What got slower or faster between two records of a benchmark, or two folders of records.

    python -m tests.benchmarks.compare OLD NEW [--threshold PERCENT]

A figure is worse, or better, where its median has moved by the threshold or more and a two-sided Mann-Whitney test of
the rounds of both records gives p < 0.01. The test assumes nothing of how times are distributed, which have long tails,
and claims no more than a few rounds can show; a bootstrap of the median of five rounds does. The threshold stands for
what no test of rounds sees: those of one process are more alike than processes are, which differ by some percent in
where their memory lies and at what clock they run. Fewer than 5 rounds against 5 cannot reach that p, whatever they
say, and are not judged. Of many figures one in a hundred may be a false alarm if noise alone moves it past the
threshold: run it again.

On another machine only ratios are judged, as their peers were measured there too. Exits with 1 where a figure got
worse, with 2 where there is nothing to compare.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError
from scipy.stats import mannwhitneyu

from tests.benchmarks.record import Figure, Record, spread

ALPHA = 0.01
RECORD = TypeAdapter(Record)
WORSE, BETTER, SAME = "worse", "better", "within noise"


class Row(NamedTuple):
    """A line of the table."""

    benchmark: str
    figure: str
    old: str
    new: str
    change: str
    verdict: str


def load(path: Path) -> Record:
    """The record in a file. Raises ValueError of one line that names it."""
    try:
        return RECORD.validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from None


def records(path: Path) -> dict[str, Record]:
    """Of a file or a folder's JSON files, by benchmark. Raises ValueError where there is none, or two of one kind."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found: dict[str, Record] = {}
    for file in files:
        record = load(file)
        if record.benchmark in found:
            raise ValueError(f"{file}: another file of this folder has {record.benchmark} too; one of each is allowed")
        found[record.benchmark] = record
    if not found:
        raise ValueError(f"{path}: the folder has no *.json")
    return found


def change(old: Figure, new: Figure) -> float:
    """Of the median, as a part of the old one."""
    before, after = (spread(figure.values).median for figure in (old, new))
    if before == 0:
        return 0.0 if after == 0 else math.inf
    return after / before - 1


def verdict(old: Figure, new: Figure, threshold: float, same_machine: bool) -> str:
    """Which of WORSE, BETTER and SAME, or why none. threshold: a part of the old median."""
    if (old.unit, old.better, old.peer) != (new.unit, new.better, new.peer):
        return "unit or peer changed"
    if old.unit != "ratio" and not same_machine:
        return "other machine"
    if 2 / math.comb(len(old.values) + len(new.values), len(old.values)) >= ALPHA:
        return "too few rounds"
    moved = change(old, new)
    if abs(moved) < threshold or not mannwhitneyu(old.values, new.values).pvalue < ALPHA:
        return SAME
    return WORSE if (moved > 0) == (old.better == "lower") else BETTER


def rows(old: Record, new: Record, threshold: float) -> Iterator[Row]:
    """Of all figures of one benchmark, in the order of the new record."""
    for name in dict.fromkeys([*new.figures, *old.figures]):
        before, after = old.figures.get(name), new.figures.get(name)
        moved, judged = "-", "only in OLD" if before else "only in NEW"
        if before and after:
            moved = f"{change(before, after):+.1%}"
            judged = verdict(before, after, threshold, old.machine == new.machine)
        yield Row(new.benchmark, name, median(before), median(after), moved, judged)


def median(figure: Figure | None) -> str:
    return f"{spread(figure.values).median:,.4g} {figure.unit}" if figure else "-"


def differences(old: Record, new: Record) -> str:
    """One line: what of machine, versions and options is not the same; empty where all is. Commits are to differ."""
    found = []
    for before, after in ((old.machine, new.machine), (old.versions, new.versions)):
        keys = [key for key in dict.fromkeys([*before, *after]) if key != "commit"]
        found += [f"{key} {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]
    said = [" ".join(options(record)) or "none" for record in (old, new)]
    if said[0] != said[1]:
        found.append(f"options {said[0]} -> {said[1]}")
    if old.machine != new.machine:
        found.append("another machine: only ratios are judged")
    return "; ".join(found)


def options(record: Record) -> list[str]:
    """Of its command, without where the record was to be written."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json")
    return parser.parse_known_args(record.command[3:])[1]


def table(lines: list[Row]) -> str:
    """Aligned: names to the left, numbers to the right."""
    cells = [tuple(Row._fields), *lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligns = "<<>>><"
    formatted = [[f"{c:{a}{w}}" for c, a, w in zip(line, aligns, widths, strict=True)] for line in cells]
    return "\n".join("  ".join(line).rstrip() for line in formatted)


def percent(text: str) -> float:
    """Of the command line, as a part."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of percent from 0 on")
    return value / 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD", help="a record that --json wrote, or a folder of them")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--threshold", type=percent, default=percent("5"), metavar="PERCENT", help="5 if not given")
    arguments = parser.parse_args()
    try:
        old, new = records(arguments.old), records(arguments.new)
        common = [name for name in new if name in old]
        if not common:
            raise ValueError(f"{arguments.new}: of {', '.join(new)}, while {arguments.old} is of {', '.join(old)}")
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    for name in common:
        if said := differences(old[name], new[name]):
            print(f"warning: {name}: {said}", file=sys.stderr)
    for name in sorted(old.keys() ^ new.keys()):
        print(f"warning: {name}: only in {'OLD' if name in old else 'NEW'}", file=sys.stderr)
    lines = [row for name in common for row in rows(old[name], new[name], arguments.threshold)]
    print(table(lines))
    return int(any(row.verdict == WORSE for row in lines))


if __name__ == "__main__":
    sys.exit(main())
