"""Two asynchronous workers beside two data-parallel ones on the same cores, images per second: real Ray Train runs.

    python -m tests.benchmarks.bench_async [--rounds 3] [--steps 16] [--batch-size 16] [--resolution 224] [--json FILE]

MobileNet 1.0 as the row `imagenet_w100_r224` trains it, on made photographs of 500 x 375. Asynchronous workers have one
parameter server, with and without overlap of its exchange and the next batch. First all workers have their time, then
one of two has a quarter of it (it is stopped for the rest). Rates are over the updates of each phase, by the run's
curve; a stall is the part of a worker's step that it waits for the exchange, in the first phase. A round has one run of
each kind, in random order. Steps are those of a data-parallel run in each phase: asynchronous ones make two for each.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.cluster import use_cluster
from pipelines.config import load
from pipelines.training.curve import read_curve
from pipelines.training.job import Job
from pipelines.training.loop import CURVE
from pipelines.training.run import Run
from tests.benchmarks.photos import photo, write_images
from tests.benchmarks.record import Figure, ratios, said, write
from tests.ray_runs import launched, processes, quarter_speed, wait_for_step

ROW, IMAGES, WARM_UP = "imagenet_w100_r224", 256, 4
KINDS: dict[str, dict[str, Any]] = {
    "async": {"kind": "async", "overlap": False},
    "async, overlapped": {"kind": "async", "overlap": True},
    "ddp": {"kind": "ddp", "overlap": False},
}


def make_job(folder: Path, kind: str, options: argparse.Namespace) -> Job:
    """A run of a warm-up and two phases, in a folder of its own."""
    values = load().runs("imagenet", "sample")[ROW].model_dump()
    chosen = KINDS[kind]
    updates = (WARM_UP + 2 * options.steps) * (2 if chosen["kind"] == "async" else 1)
    together = options.batch_size * (1 if chosen["kind"] == "async" else 2)
    servers = {**values["servers"], "num_servers": 1, "snapshot_steps": 10**6, "overlap": chosen["overlap"]}
    values |= {"kind": chosen["kind"], "num_workers": 2, "servers": servers, "batch_size": options.batch_size}
    values |= {"resolution": options.resolution, "resolution_divisor": 1, "log_steps": 1, "checkpoint_steps": 10**6}
    values |= {"epochs": updates * together / IMAGES, "decode_threads": 0, "init_from": None, "teacher": None}
    own = Path(tempfile.mkdtemp(dir=folder))
    return Job(Run.model_validate(values), f"bench-{own.name}", folder / "shards", own, IMAGES, 1000)


def measure_run(job: Job) -> dict[str, float]:
    """Images per second of both phases, and the stall of the first."""
    thread, errors = launched(job)
    first, second = 2 * WARM_UP, round(0.55 * job.total_steps)
    wait_for_step(job, second)
    slow = processes("RayTrainWorker")[0]
    with quarter_speed(slow):
        thread.join()
    if errors:
        raise errors[0]
    rows = {row["step"]: row for row in read_curve(job.folder / CURVE)}

    def rate(start: int, end: int) -> float:
        return (end - start) * job.samples_per_step / (rows[end]["time"] - rows[start]["time"])

    even, slowed = rate(first, second), rate(second + 2, job.total_steps)
    waited = statistics.mean(rows[step].get("exchange_seconds", 0.0) for step in range(first + 1, second + 1))
    return {"even": even, "slowed": slowed, "stall": waited / (2 * job.run.batch_size / even)}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """What `measure_run` says, by kind, round by round."""
    (folder / "shards").mkdir()
    generator = np.random.default_rng(0)
    write_images(folder / "shards", [photo(generator) for _ in range(IMAGES)])
    use_cluster({"CPU": max(4.0, float(os.cpu_count() or 1)), "GPU": 0.0})
    results: dict[str, dict[str, list[float]]] = {kind: {"even": [], "slowed": [], "stall": []} for kind in KINDS}
    for number in range(options.rounds):
        for kind in random.sample(list(KINDS), len(KINDS)):
            found = measure_run(make_job(folder, kind, options))
            print(f"round {number + 1}, {kind}: " + ", ".join(f"{k} {v:.3g}" for k, v in found.items()), flush=True)
            for name, value in found.items():
                results[kind][name].append(value)
    return results


def figures_of(results: dict[str, dict[str, list[float]]]) -> dict[str, Figure]:
    """Each asynchronous kind beside the data-parallel one, and its stall."""
    peer = results["ddp"]
    figures = {}
    for kind in ("async", "async, overlapped"):
        own = results[kind]
        even, slowed = (ratios(own[phase], peer[phase]) for phase in ("even", "slowed"))
        figures[f"{kind}: images/s of two workers"] = Figure(even, "ratio", "higher", "two DDP workers")
        figures[f"{kind}: the same, one slowed four times"] = Figure(slowed, "ratio", "higher", "the same")
        figures[f"{kind}: stall, share of a step"] = Figure(own["stall"], "share", "lower")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="data-parallel ones of each phase, at least 8")
    parser.add_argument("--batch-size", type=int, default=16, help="of each worker")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), options)
    figures = figures_of(results)
    for title, figure in figures.items():
        print(f"{title}: {said(figure.values, 3)}")
    if options.json:
        write(options.json, "bench_async", figures, {"results": results})


if __name__ == "__main__":
    main()
