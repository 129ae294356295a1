"""All benchmarks that this machine can run, one after another, and their ratios as a table in Markdown.

    python -m tests.benchmarks [--only NAME ...] [--out FOLDER]

Each is a process of its own with its usual options, which writes its record into the folder; `compare` sets two such
folders side by side. The table is of all records that the folder then has. Some take many minutes, and all want a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.benchmarks.compare import records
from tests.benchmarks.record import ROOT, Record, gpu, spread

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
ELSEWHERE = {
    "bench_repro": "it runs the whole graph, in a clone of the project that it is given",
    "bench_wire": "it compares losses, not speed, and needs the shards that `dvc repro shard` makes",
}
NO_GPU = {"bench_gpu": "torch finds no CUDA device"}
HEAD = ("figure", "peer, in the same run", "median", "10th to 90th percentile", "command")


def run(name: str, out: Path) -> bool:
    """Whether the benchmark ended well. A record of an earlier run is gone if not."""
    path = out.resolve() / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--json", str(path)]
    print(f"\n{name}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def times(value: float) -> str:
    """A ratio to three digits."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}x"


def table(found: Iterable[Record]) -> str:
    """Markdown: each figure that is a ratio to a peer."""
    lines = [HEAD, ("---", "---", "---:", "---:", "---")]
    for record in found:
        for name, figure in record.figures.items():
            if figure.unit == "ratio" and figure.peer:
                middle, low, high = map(times, spread(figure.values))
                title = name if figure.better == "higher" else f"{name} (lower is better)"
                around = f"{low} to {high}" if len(figure.values) > 1 else "one round"
                lines.append((title, figure.peer, middle, around, f"`{record.benchmark}`"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machines(found: Iterable[Record]) -> list[str]:
    """A line for each machine that the records are of. Cores are left out: some benchmarks use fewer than there are."""
    kinds = dict.fromkeys((record.machine["cpu"], record.machine["gpu"]) for record in found)
    return [f"Measured on {cpu}, {gpu or 'no GPU'}." for cpu, gpu in kinds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NAMES, metavar="NAME", help="none: the table alone")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    chosen = NAMES if arguments.only is None else arguments.only
    left_out = ELSEWHERE | (NO_GPU if gpu() is None else {})
    for name in filter(left_out.get, chosen):
        print(f"{name} is left out: {left_out[name]}")
    failed = [name for name in chosen if name not in left_out and not run(name, arguments.out)]
    try:
        found = records(arguments.out).values()
        print("", table(found), "", *machines(found), sep="\n")
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    if failed:
        print(f"benchmarks: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
