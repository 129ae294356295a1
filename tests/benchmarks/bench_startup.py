"""What commands cost to start, what a train stage does before its first step, and what a further row costs beside it.

    python -m tests.benchmarks.bench_startup [--rounds 5] [--json PATH]

Each is a fresh process; within a round they come in random order, after a round that is not recorded, in which Python
compiles what it keeps. Seconds are of the clock and of the CPU, all threads of a process together. `--help` of every
command is set beside `python -c pass` and `import torch`. The train stage trains four rows of MobileNet 0.25 on 320
drawn images in a small copy of the project that is made first. Its peer is the same stage from source, without the
bytecode that `infra/venv` compiles, as in an environment that was installed without it. A further row's cost is its
time from begin to end, in the process that has trained the first, without that of its training loop; goal: 0.2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.benchmarks.record import Figure, ratios, said, write
from tests.project import ROOT, Project

COMMANDS = (
    *("fetch", "shard", "cells", "train", "evaluate", "report", "choose", "tune", "simulate", "predict"),
    *("import_weights", "dogs_overlap", "tracking", "tracking.registry"),
)
BARE = {"python -c pass": ("-c", "pass"), "import torch": ("-c", "import torch")}
ROWS = [f"imagenet_w025_r{resolution}" for resolution in (128, 160, 192, 224)]
TABLE = "imagenet"
WHOLE = "train: all before its first step"


class Took(NamedTuple):
    """What a process took: seconds of the clock, CPU seconds, and what it said."""

    seconds: float
    cpu: float
    said: str


def run(folder: Path, *arguments: str, compiled: bool = True) -> Took:
    """Run Python in a folder and wait for its end. Raises ValueError where it fails.

    compiled: whether it may use and keep bytecode; else all is compiled from source.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if not compiled:
        environment |= {"PYTHONPYCACHEPREFIX": str(folder / "no_bytecode"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)}, stdout=output, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if status:
            raise ValueError(f"{' '.join(command)} ended with exit code {process.returncode}:\n{errors.read()}")
        return Took(seconds, usage.ru_utime + usage.ru_stime, output.read())


def make_project(folder: Path) -> Project:
    """A small copy of the project with ROWS in its one table, its data fetched and sharded."""
    project = Project(folder)
    runs = yaml.safe_load((ROOT / "params.yaml").read_text())["tables"][TABLE]["runs"]
    project.params["tables"][TABLE]["runs"] = {name: runs[name] for name in ROWS}
    project.write(project.params)
    for stage in ("fetch", "shard"):
        run(folder, "-m", f"pipelines.{stage}", TABLE)
    return project


def start_commands(folder: Path, took: dict[str, list[Took]]) -> None:
    """Start each of BARE and COMMANDS once, in random order."""
    asked = {**BARE, **{f"{name} --help": ("-m", f"pipelines.{name}", "--help") for name in COMMANDS}}
    for name in random.sample(list(asked), len(asked)):
        took.setdefault(name, []).append(run(folder, *asked[name]))


def train_rows(project: Project, *, compiled: bool = True) -> dict[str, Any]:
    """Train the rows, in a project that has none: what `startup_parts` says."""
    shutil.rmtree(project.folder / "results", ignore_errors=True)
    (project.folder / "mlflow.db").unlink(missing_ok=True)
    took = run(project.folder, "-m", "tests.benchmarks.startup_parts", str(time.monotonic()), TABLE, compiled=compiled)
    found: dict[str, Any] = json.loads(took.said.splitlines()[-1])
    return found


def whole(trained: Sequence[dict[str, Any]], number: int) -> list[float]:
    """All parts of each stage together; number: 1 for seconds of the clock, 2 for those of the CPU."""
    return [sum(part[number] for part in one["parts"]) for one in trained]


def figures_of(
    took: dict[str, list[Took]], trained: Sequence[dict[str, Any]], from_source: Sequence[dict[str, Any]]
) -> dict[str, Figure]:
    """Every figure that is written, in seconds of the clock but where it says CPU, and the ratio to `from_source`."""
    found: dict[str, list[float]] = {name: [one.seconds for one in values] for name, values in took.items()}
    found |= {f"{name}, CPU": [one.cpu for one in values] for name, values in took.items()}
    for number, suffix in ((1, ""), (2, ", CPU")):
        for place, (name, *_) in enumerate(trained[0]["parts"]):
            found[f"train: {name}{suffix}"] = [one["parts"][place][number] for one in trained]
        found[f"{WHOLE}{suffix}"] = whole(trained, number)
        found[f"{WHOLE}, from source{suffix}"] = whole(from_source, number)
    found["train: a further row, beside its loop"] = [
        statistics.median(seconds - loop for _, seconds, loop in one["rows"][1:]) for one in trained
    ]
    ratio = ratios(whole(from_source, 1), whole(trained, 1))
    return {
        **{name: Figure(values, "s", "lower") for name, values in found.items()},
        WHOLE.removeprefix("train: "): Figure(ratio, "ratio", "higher", "the same from source"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="recorded rounds (default: 5)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    random.seed(0)
    took: dict[str, list[Took]] = {}
    trained: list[dict[str, Any]] = []
    from_source: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder))
        for number in range(arguments.rounds + 1):
            start_commands(project.folder, took)
            trained.append(train_rows(project))
            from_source.append(train_rows(project, compiled=False))
            print(f"round {number} of {arguments.rounds}" if number else "warmed up", file=sys.stderr, flush=True)
    figures = figures_of({name: values[1:] for name, values in took.items()}, trained[1:], from_source[1:])
    print("| what | s | CPU s |\n| --- | ---: | ---: |")
    for name, figure in figures.items():
        if figure.unit == "ratio":
            print(f"\n{name}: {said(figure.values, 2)}x as fast as {figure.peer}")
        elif not name.endswith(", CPU"):
            cpu = figures.get(f"{name}, CPU")
            print(f"| {name} | {said(figure.values, 2)} | {said(cpu.values, 2) if cpu else ''} |")
    if arguments.json:
        write(arguments.json, "bench_startup", figures, {"rows": [one["rows"] for one in trained[1:]]})


if __name__ == "__main__":
    main()
