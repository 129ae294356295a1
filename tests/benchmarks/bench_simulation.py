"""Predictions of pipelines/simulation beside real asynchronous runs on this machine, whose cores they share.

    python -m tests.benchmarks.bench_simulation [--steps 160] [--calls 60] [--points 1x1,1x2,2x1,2x2] [--json PATH]

First each part alone, with one worker and nobody to wait for: the CPU time of a training step (MobileNet 0.25 at 64 px,
batch 32, read from shards), and of an exchange with a parameter server, on the worker's side and the server's, for two
lengths of the vector: what a call costs, and what a parameter. From those alone come the predictions. A point is
workers x servers: a real run of Ray Train, its rate the median over the rows of its curve's second half.

Other work on the machine takes away cores: as many processes as a run has workers spin for two seconds before it and
after, and what is predicted is multiplied by the share of a core that they got. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch

from pipelines.cluster import use_cluster
from pipelines.config import load
from pipelines.shards import INDEX, Index, Split, Stored, write_shard
from pipelines.simulation.cluster import Cluster, Outcome, simulate
from pipelines.simulation.costs import Costs
from pipelines.training.async_backend import RayServers
from pipelines.training.curve import read_curve
from pipelines.training.job import Job
from pipelines.training.launch import launch
from pipelines.training.loop import CURVE, train_local
from pipelines.training.messages import Push, ServerPlan, as_tensor
from pipelines.training.parameter_server import ParameterShard
from pipelines.training.run import Run
from pipelines.training.served_shard import ServedShard
from tasks.rules import RMSprop, Staircase
from tests.benchmarks.record import Figure, spread, write

CLASSES, SIDE, BATCH, IMAGES = 10, 64, 32, 512
PARAMETERS, STATISTICS = 215_642, 5_472  # MobileNet 0.25 with ten classes
LONGER = 8  # times as many, to tell calls from parameters


class MeasuredShard(ServedShard):
    """A server that says how much it has computed."""

    def cpu_seconds(self) -> float:
        return time.process_time()


class Exchange(NamedTuple):
    """Seconds of one push and pull: of CPU on either side, and of the clock."""

    worker: float
    server: float
    wall: float


def write_images(folder: Path) -> None:
    """Shards of small random pictures with labels."""
    rng = np.random.default_rng(0)

    def image(key: int) -> Stored:
        picture = rng.integers(0, 256, (SIDE + 8, SIDE + 16, 3), dtype=np.uint8)
        fields = json.dumps({"name": f"{key}.jpg", "label": key % CLASSES}).encode()
        return Stored(key, simplejpeg.encode_jpeg(picture, 85), fields, SIDE + 8, SIDE + 16)

    half = IMAGES // 2
    shards = [write_shard(folder, f"train-{k:06d}", map(image, range(k * half, (k + 1) * half))) for k in range(2)]
    names = tuple(f"class {number}" for number in range(CLASSES))
    (folder / INDEX).write_bytes(Index("bench", names, {"train": Split(IMAGES, tuple(shards))}, {}, {}).to_json())


def make_job(folder: Path, name: str, steps: int, **changes: Any) -> Job:
    """A run of so many updates, in a folder of its own."""
    values = load().runs("imagenet", "sample")["imagenet_w025_r128"].model_dump()
    values |= {"resolution": SIDE, "resolution_divisor": 1, "batch_size": BATCH, "decode_threads": 0, "log_steps": 10}
    values |= {"checkpoint_steps": 10**6, "epochs": steps * BATCH / IMAGES, **changes}
    (folder / name).mkdir()
    return Job(Run.model_validate(values), f"bench-{name}", folder / "shards", folder / name, IMAGES, CLASSES)


def step_seconds(folder: Path, steps: int) -> float:
    """CPU seconds of a step of serial training: of `steps` that a longer run has more than a shorter one.

    To be called in a worker of Ray, whose threads and nice are those of a real run.
    """

    def cpu_seconds(name: str, count: int) -> float:
        before = time.process_time()
        train_local(make_job(folder, name, count))
        return time.process_time() - before

    cpu_seconds("warm", 4)
    short, long = cpu_seconds("short", 8), cpu_seconds("long", 8 + steps)
    return (long - short) / steps


def make_plan(folder: Path, num_servers: int) -> ServerPlan:
    """Servers as a run has them, that never end, in a folder of their own: there they look for a snapshot."""
    rule, rate = RMSprop(0.9, 0.9, 1.0), Staircase(0.045, 0.94, 1000, 0)
    never, own = 10**9, Path(tempfile.mkdtemp(dir=folder))
    return ServerPlan("bench", num_servers, 1, own, rule, rate, 0.95, never, "none", 1, never, 100)


def exchange_seconds(folder: Path, length: int, calls: int) -> list[Exchange]:
    """Of a push and pull of so many parameters with one server: in each of five rounds of `calls`."""
    import ray

    server = ray.remote(MeasuredShard).options(num_cpus=0).remote(make_plan(folder, 1), 0)
    servers = RayServers([server])
    weights, gradient = torch.zeros(length), np.full(length, 1e-4, np.float32)
    replies = servers.start(0, [weights.numpy()], [np.zeros(STATISTICS, np.float32)], [None])
    rounds = []
    for number in range(6):
        served, worked, began = ray.get(server.cpu_seconds.remote()), time.process_time(), time.perf_counter()
        for call in range(calls):
            reply, sequence = replies[0], number * calls + call + 1
            state = reply.statistics
            push = Push(0, sequence, reply.incarnation, reply.version, gradient, state, state, BATCH, {"loss": 1.0})
            replies = servers.push([push], [None])()
            weights.copy_(as_tensor(replies[0].weights))
        took = time.process_time() - worked, time.perf_counter() - began
        served = ray.get(server.cpu_seconds.remote()) - served
        rounds.append(Exchange(took[0] / calls, served / calls, took[1] / calls))
    assert replies[0].version == 6 * calls
    ray.kill(server)
    return rounds[1:]  # the first warms up


def middle(rounds: list[Exchange]) -> Exchange:
    return Exchange(*(statistics.median(values) for values in zip(*rounds, strict=True)))


def applied_per_second(folder: Path) -> list[float]:
    """Parameters that one server updates in a second of CPU time, push by push: MobileNet's, without Ray around it."""
    length = 4_231_976
    shard = ParameterShard(make_plan(folder, 1), 0)
    nothing, gradient = np.zeros(0, np.float32), np.full(length, 1e-4, np.float32)
    reply = shard.start(0, np.zeros(length, np.float32), nothing)
    seconds = []
    for sequence in range(1, 22):
        before = time.process_time()
        push = Push(0, sequence, reply.incarnation, reply.version, gradient, nothing, nothing, BATCH, {})
        reply = shard.push(push)
        seconds.append(time.process_time() - before)
    return [length / taken for taken in seconds[1:]]


def make_costs(step: float, short: Exchange, long: Exchange) -> Costs:
    """The simulation's costs: what both lengths have in common is a call's, the rest is the vector's."""
    worker, server = ((b - a) / (LONGER - 1) for a, b in zip(short[:2], long[:2], strict=True))
    worker, server = max(0.0, worker), max(0.0, server)
    return Costs(
        batch_size=BATCH,
        step=step,
        collect=0.0,
        serialise=worker,
        load=0.0,
        request=max(0.0, short.worker - worker),
        serve=max(0.0, short.server - server),
        apply=server,
        answer=0.0,
        push_bytes=0.0,
        pull_bytes=0.0,
        gradient_bytes=0.0,
        link_bytes=math.inf,
        latency=max(0.0, short.wall - short.worker - short.server) / 2,
    )


def spin() -> float:
    """The part of a core that a busy process gets, in two seconds."""
    began, computed = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < 2:
        pass
    return (time.process_time() - computed) / (time.perf_counter() - began)


def core_share(processes: int) -> float:
    """What each of so many busy processes gets beside all else that runs here: Ray's workers, whose nice Ray sets."""
    import ray

    spinning = ray.remote(spin).options(num_cpus=0)
    return statistics.mean(ray.get([spinning.remote() for _ in range(processes)]))


def real_run(folder: Path, workers: int, servers: int, steps: int) -> dict[str, float]:
    """The rate and the mean staleness of a run, and the part of a core that was to be had around it."""
    name = f"async_{workers}x{servers}"
    settings = {"num_servers": servers, "staleness": "none", "max_staleness": 8, "snapshot_steps": 10**6, "cpus": 0}
    settings["shared_memory"] = False  # as between machines
    job = make_job(folder, name, steps, kind="async", num_workers=workers, servers=settings)
    busy = min(workers, os.cpu_count() or 1)
    before = core_share(busy)
    launch(job)
    share = (before + core_share(busy)) / 2
    rows = read_curve(job.folder / CURVE)
    rows = rows[len(rows) // 2 : -1]
    return {
        "images_per_second": statistics.median(row["images_per_second"] for row in rows),
        "staleness": statistics.mean(row["staleness"] for row in rows),
        "core_share": share,
    }


def predicted(costs: Costs, workers: int, servers: int) -> Outcome:
    """What the simulation says of a machine with as many cores as this one."""
    return simulate(costs, Cluster(workers, servers, cores=os.cpu_count() or 1, rounds=100))


def measure(
    folder: Path, steps: int, calls: int, points: list[tuple[int, int]]
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """The parts, then every point: predicted and real. What is compared from run to run, and all there is."""
    import ray

    (folder / "shards").mkdir()
    write_images(folder / "shards")
    use_cluster({"CPU": 4.0, "GPU": 0.0})
    step = ray.get(ray.remote(step_seconds).options(num_cpus=1).remote(folder, steps // 2))
    rounds = [exchange_seconds(folder, times * PARAMETERS, calls) for times in (1, LONGER)]
    short, long = map(middle, rounds)
    costs, applied = make_costs(step, short, long), applied_per_second(folder)
    parts = {"step": step, "short": short._asdict(), "long": long._asdict(), "applied": spread(applied).median}
    title = f"Push and pull of {LONGER * PARAMETERS / 1e6:.1f} M parameters"
    figures = {
        "Training step of MobileNet 0.25 at 64 px": Figure([1e3 * step], "ms", "lower"),
        "Parameters a server updates": Figure([rate / 1e9 for rate in applied], "G/s", "higher"),
        f"{title}, worker's time": Figure([1e3 * exchange.worker for exchange in rounds[1]], "ms", "lower"),
        f"{title}, server's time": Figure([1e3 * exchange.server for exchange in rounds[1]], "ms", "lower"),
    }
    compared = []
    for workers, servers in points:
        outcome, real = predicted(costs, workers, servers), real_run(folder, workers, servers, steps)
        rate = outcome.images_per_second * real["core_share"]
        point = {"workers": workers, "servers": servers, "predicted": rate, "predicted_staleness": outcome.staleness}
        compared.append({**point, **real, "ratio": rate / real["images_per_second"]})
        print(said(compared[-1]), flush=True)
        figures |= missed(compared[-1])
    return figures, {"parts": parts, "costs": costs.__dict__, "points": compared}


def missed(point: dict[str, float]) -> dict[str, Figure]:
    """By how many times a prediction is off, whichever way: 1 is perfect."""
    title = f"Simulated rate, workers: {point['workers']}, servers: {point['servers']}; times off"
    return {title: Figure([max(point["ratio"], 1 / point["ratio"])], "ratio", "lower", "a real run")}


def said(point: dict[str, float]) -> str:
    """One point as a line."""
    return (
        f"{point['workers']} workers, {point['servers']} servers: predicted {point['predicted']:6.0f} images/s, "
        f"real {point['images_per_second']:6.0f}, predicted / real {point['ratio']:.2f}; staleness "
        f"{point['predicted_staleness']:.2f}, real {point['staleness']:.2f}; {point['core_share']:.2f} of a core each"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160, help="updates of a real run, at least 40")
    parser.add_argument("--calls", type=int, default=60, help="exchanges in a round")
    parser.add_argument("--points", default="1x1,1x2,2x1,2x2", help="workers x servers (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    points = [(int(workers), int(servers)) for workers, servers in (p.split("x") for p in arguments.points.split(","))]
    torch.set_num_threads(1)  # as in a Ray worker of one CPU
    with tempfile.TemporaryDirectory() as folder:
        figures, details = measure(Path(folder), arguments.steps, arguments.calls, points)
    parts = details["parts"]
    print(f"a step: {1e3 * parts['step']:.1f} ms of CPU; a server updates {parts['applied'] / 1e9:.2f} G parameters/s")
    for name, length in (("short", PARAMETERS), ("long", LONGER * PARAMETERS)):
        values = ", ".join(f"{side} {1e3 * seconds:.2f}" for side, seconds in parts[name].items())
        print(f"an exchange of {length / 1e6:.2f} M parameters, ms: {values}")
    if arguments.json:
        write(arguments.json, "bench_simulation", figures, details)


if __name__ == "__main__":
    main()
