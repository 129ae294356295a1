"""What bfloat16 on the wire, and overlap, do to the loss curve of an asynchronous run: one worker and two servers.

    python -m tests.benchmarks.bench_wire [--seeds 3] [--json FILE] [--png FILE]

The row `imagenet_w100_r224` at sample scale, of which `dvc repro shard` must have made the data, with one worker: so
that nothing differs between runs of a seed but the line. Servers and worker share this process. What is compared is the
training loss, its mean over the last fifth of the steps, by seed, with that of float32 without overlap.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.progress import track

from pipelines import paths
from pipelines.config import load
from pipelines.figures import draw
from pipelines.shards import read_index
from pipelines.training.curve import read_curve
from pipelines.training.job import Job
from pipelines.training.loop import CURVE, train_with_servers
from pipelines.training.run import Run
from tests.benchmarks.record import Figure, ratios, said, write
from tests.servers import LocalServers

ROW, SCALE, DATASET, PEER = "imagenet_w100_r224", "sample", "imagenet", "float32"
LINES: dict[str, dict[str, Any]] = {
    PEER: {"shared_memory": False},
    "bfloat16": {"shared_memory": False, "wire": "bfloat16"},
    "overlap": {"overlap": True},
}


def losses(line: str, seed: int, shards: Path) -> list[float]:
    """The training loss of every step."""
    values = load().runs("imagenet", SCALE)[ROW].model_dump()
    servers = {**values["servers"], "num_servers": 2, "snapshot_steps": 10**6, **LINES[line]}
    values |= {"kind": "async", "num_workers": 1, "seed": seed, "log_steps": 1, "servers": servers}
    index = read_index(shards)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.model_validate(values)
        job = Job(run, "bench_wire", shards, Path(folder), index.splits["train"].samples, len(index.classes))
        train_with_servers(job, LocalServers(job.servers), rank=0)
        return [row["loss"] for row in read_curve(job.folder / CURVE)]


def last(curve: list[float]) -> float:
    return statistics.mean(curve[-len(curve) // 5 :])


def picture(curves: dict[str, list[list[float]]]) -> bytes:
    """The first seed's curves, each a running mean over ten steps."""

    def plot(figure: Any) -> None:
        axes = figure.subplots()
        for line, (curve, *_) in curves.items():
            means = [statistics.mean(curve[max(0, step - 9) : step + 1]) for step in range(len(curve))]
            axes.plot(range(1, len(curve) + 1), means, linewidth=1.3, label=line)
        axes.set(xlabel="global step", ylabel="training loss")
        axes.legend()

    return draw(plot, 6.8, 4.0)[".png"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--png", type=Path, help="draw the first seed's curves into this file")
    options = parser.parse_args()
    shards = paths.shards(SCALE, DATASET)
    if not shards.exists():
        sys.exit(f"bench_wire: there is no {shards}; `infra/venv dvc repro shard@{SCALE}-{DATASET}` makes it")
    todo = [(line, seed) for seed in range(options.seeds) for line in LINES]
    curves: dict[str, list[list[float]]] = {line: [] for line in LINES}
    for line, seed in track(todo, description="runs"):
        curves[line].append(losses(line, seed, shards))
    figures = {}
    for line in LINES:
        final = [last(curve) for curve in curves[line]]
        print(f"{line:10} loss of the last fifth: {said(final, 3)}")
        if line != PEER:
            final = ratios(final, [last(curve) for curve in curves[PEER]])
            figures[f"loss of the last fifth, {line}"] = Figure(final, "ratio", "lower", f"{PEER}, no overlap")
            print(f"{line:10} / {PEER}: {said(final, 3)}")
    if options.png:
        options.png.write_bytes(picture(curves))
    if options.json:
        write(options.json, "bench_wire", figures, {"curves": curves})


if __name__ == "__main__":
    main()
