"""Where the time of a whole `dvc repro` goes, stage by stage, and how long one takes that has nothing to do.

    git clone . /tmp/clean && python -m tests.benchmarks.bench_repro --folder /tmp/clean [--json PATH]

Runs `infra/venv dvc repro` in a clone of the project, with the environment that is there or that it makes first (which
is told apart), and shows what it says. DVC names each stage that it begins, on a line of its own; a stage's time is
that from its line to the next, what DVC itself does for it included. CPU seconds are those of the commands and of DVC
as Linux counts them: processes that Ray starts beside them are not in it, nor rows that are trained side by side.
Training loops are what the rows that were trained meanwhile say of themselves: those that are trained side by side
overlap, and are together more than the stage. With `--command` another command runs in place of `infra/venv dvc repro`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.files import read_json
from tests.benchmarks.record import Figure, said, write

VENV = "infra/venv"
COMMAND = f"{VENV} dvc repro"
BEGINS = "Running stage '"
DVC_FIRST = "dvc, before the first stage"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Stage:
    """What a stage took, or DVC before the first. name: as in dvc.yaml. seconds: of the clock. cpu: CPU seconds."""

    name: str
    seconds: float
    cpu: float


@dataclass(frozen=True)
class Line:
    """A line of the table: the stages of one name. loops: seconds in training loops; None where nothing was trained."""

    name: str
    stages: int
    seconds: float
    cpu: float
    loops: float | None = None


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process and of those that it has waited for, and they for theirs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def timed(lines: Iterable[str], clock: Callable[[], float], cpu: Callable[[], float], began: float) -> Iterator[Stage]:
    """The stages of a `dvc repro` that says `lines`, each when it is over. began: `clock()` when DVC was started."""
    name, cpu_before = DVC_FIRST, 0.0
    for line in lines:
        if line.startswith(BEGINS):
            now, used = clock(), cpu()
            yield Stage(name, now - began, used - cpu_before)
            name, began, cpu_before = line.removeprefix(BEGINS).partition("'")[0].partition("@")[0], now, used
    yield Stage(name, clock() - began, cpu() - cpu_before)


def repro(command: Sequence[str], folder: Path) -> list[Stage]:
    """Run a `dvc repro` in a folder and show what it says. Raises ValueError where it fails."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # else DVC's lines come late, and out of order
    began = time.monotonic()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None

        def shown(lines: Iterable[str]) -> Iterator[str]:
            for line in lines:
                print(f"{time.monotonic() - began:8.1f} s  {line}", end="", flush=True)
                yield line

        # At the end of its output the process is there still, at least for its parent to ask about.
        found = list(timed(shown(process.stdout), time.monotonic, lambda: cpu_seconds(process.pid), began))
    if process.returncode:
        raise ValueError(f"{shlex.join(command)} in {folder} ended with exit code {process.returncode}")
    return found


def training_loops(folder: Path, since: float) -> dict[str, float]:
    """By table, the seconds of the training loops of the rows that were trained after a moment of `time.time`."""
    seconds: dict[str, float] = {}
    for path in sorted((folder / "results").glob("*/*/train/*/run.json")):
        if path.stat().st_mtime >= since:
            table = path.parts[-4]
            seconds[table] = seconds.get(table, 0.0) + read_json(path)["summary"]["seconds"]
    return seconds


def environment(folder: Path) -> float:
    """Seconds until a clone's environment is there, which its script makes or mends."""
    began = time.monotonic()
    subprocess.run([VENV, "true"], cwd=folder, check=True)
    return time.monotonic() - began


def table(stages: Iterable[Stage], loops: Mapping[str, float]) -> list[Line]:
    """The stages by name, in the order in which they were run. loops: of each table of params.yaml."""
    lines: dict[str, Line] = {}
    for stage in stages:
        before = lines.get(stage.name, Line(stage.name, 0, 0.0, 0.0))
        lines[stage.name] = Line(
            stage.name,
            before.stages + 1,
            before.seconds + stage.seconds,
            before.cpu + stage.cpu,
            loops.get(stage.name.removeprefix("train_")) if stage.name.startswith("train_") else None,
        )
    return list(lines.values())


def table_text(lines: Sequence[Line]) -> str:
    """The table in Markdown, with a line for all."""
    with_loops = [line.loops for line in lines if line.loops is not None]
    whole = Line(
        "all",
        sum(line.stages for line in lines),
        sum(line.seconds for line in lines),
        sum(line.cpu for line in lines),
        sum(with_loops) if with_loops else None,
    )
    texts = ["| stage | stages | s | share | CPU s | cores busy | in training loops, s |"]
    texts.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for line in (*lines, whole):
        shares = f"{line.seconds / whole.seconds:.1%} | {line.cpu:.1f} | {line.cpu / line.seconds:.2f}"
        loops = "" if line.loops is None else f"{line.loops:.1f}"
        texts.append(f"| {line.name} | {line.stages} | {line.seconds:.1f} | {shares} | {loops} |")
    return "\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="a clone of the project (default: this folder)")
    parser.add_argument("--command", default=COMMAND, help="run there (default: %(default)s)")
    parser.add_argument("--again", type=int, default=3, help="runs of it that have nothing to do (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    if not (arguments.folder / "dvc.yaml").is_file():
        parser.error(f"--folder {arguments.folder} has no dvc.yaml; name a clone of the project")
    command = shlex.split(arguments.command)
    figures: dict[str, Figure] = {}
    details: dict[str, Any] = {"command": command}
    try:
        if command[0] == VENV:
            seconds = environment(arguments.folder)
            print(f"environment: {seconds:.1f} s")
            details["environment, s"] = seconds
        since = time.time()
        stages = repro(command, arguments.folder)
        again = [sum(stage.seconds for stage in repro(command, arguments.folder)) for _ in range(arguments.again)]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    lines = table(stages, training_loops(arguments.folder, since))
    whole = sum(line.seconds for line in lines)
    print(f"\n{table_text(lines)}\n\nall: {whole / 60:.1f} minutes")
    if len(lines) == 1:
        print("No stage had anything to do: for the whole take a clone that was never run.")
    else:
        figures["the whole"] = Figure([whole], "s", "lower")
    if again:
        print(f"again, with nothing to do: {said(again, 1)} s")
        figures["again, with nothing to do"] = Figure(again, "s", "lower")
    if arguments.json:
        figures |= {line.name: Figure([line.seconds], "s", "lower") for line in lines[1:]}
        write(arguments.json, "bench_repro", figures, {**details, "stages": [asdict(stage) for stage in stages]})


if __name__ == "__main__":
    main()
