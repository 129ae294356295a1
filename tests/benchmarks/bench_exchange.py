"""One push and pull of MobileNet's 4.2 M parameters through one parameter server, and its update, against their peers.

    python -m tests.benchmarks.bench_exchange [--rounds 12] [--json FILE]

An exchange is `RemoteOptimizer.step` without its closure, in three ways: through Ray, through Ray in bfloat16, and
through memory that both processes see. Peers, on the same machine in the same run and interleaved: a flat all-reduce of
the same bytes between two processes by torch's gloo, and a server that is sent and answers with a state dict of tensors
(Ray's parameter-server example); and, for what of an exchange is Ray's own, an actor that is sent as many bytes,
answers with as many and does nothing. The update is `FlatState.apply` beside `torch.optim.RMSprop`, on one flat vector,
in CPU time. Needs no GPU. Each figure is the median over rounds, with the 10th and 90th percentile.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from pipelines.training.async_backend import RayServers
from pipelines.training.messages import ServerPlan
from pipelines.training.remote_optimizer import Line, RemoteOptimizer
from pipelines.training.served_shard import ServedShard
from tasks.nets import NetSpec, build
from tasks.optim import FlatState
from tasks.rules import RMSprop, Staircase
from tests.benchmarks.record import Figure, faster, ratios, said, write

SPEC = NetSpec("mobilenet", 1.0, 1000, "same", "relu6", 0.9997, 0.001, 0.001, 8)
RULE, RATE = RMSprop(0.9, 0.9, 1.0), Staircase(0.045, 0.94, 1000, 0)
LINES = {"ray": Line(1), "bfloat16": Line(1, wire="bfloat16"), "shared": Line(1, shared_memory=True)}
CALLS = {"ray": 8, "bfloat16": 8, "shared": 8, "gloo": 8, "bare": 8, "state_dict": 2, "update": 4, "torch_update": 4}
# Each process touches each page of Ray's store once, over the first hundred exchanges or so: 8 us a page on a virtual
# machine, 70 ms an exchange.
WARMING = 25  # rounds


@ray.remote
class AllReduce:
    """One of two processes that sum a vector by gloo."""

    def __init__(self, rank: int, port: int, length: int) -> None:
        torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        self.vector = torch.ones(length)

    def reduce(self, calls: int) -> float:
        """The mean time of an all-reduce."""
        torch.distributed.barrier()
        begin = time.perf_counter()
        for _ in range(calls):
            torch.distributed.all_reduce(self.vector)
        return (time.perf_counter() - begin) / calls


@ray.remote
class StateDictServer:
    """Keeps weights by name, applies gradients by name."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = {name: value.clone() for name, value in weights.items()}

    def push(self, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights after a step."""
        for name, gradient in gradients.items():
            self.weights[name].sub_(gradient, alpha=1e-3)
        return self.weights


@ray.remote
class Bare:
    """Answers with as much as it is sent."""

    def __init__(self, length: int) -> None:
        self.vector = torch.ones(length).numpy()

    def exchange(self, _: Any) -> Any:
        """The vector."""
        return self.vector


def make_worker(name: str) -> RemoteOptimizer:
    """A worker of a server of its own, with a gradient that every step pushes again."""
    line, never = LINES[name], 10**9
    folder = Path(tempfile.mkdtemp())
    plan = ServerPlan(name, 1, 1, folder, RULE, RATE, None, never, "none", 1, never, 100, wire=line.wire)
    server = ray.remote(ServedShard).options(num_cpus=0).remote(plan, 0)
    worker = RemoteOptimizer(build(SPEC), lambda _: None, RayServers([server]), line, 0, 32, dict, None)
    worker.flat.gradient.fill_(1e-4)
    return worker


def repeated(call: Callable[[], Any], calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Mean seconds of a call."""
    began = clock()
    for _ in range(calls):
        call()
    return (clock() - began) / calls


def ways(length: int) -> dict[str, Callable[[int], float]]:
    """Mean seconds of so many calls, by the name of what is called."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    peers = [AllReduce.options(num_cpus=0).remote(rank, port, length) for rank in range(2)]
    named = {name: value.detach() for name, value in build(SPEC).named_parameters()}
    dicts = StateDictServer.options(num_cpus=0).remote(named)
    gradients = {name: torch.full_like(value, 1e-4) for name, value in named.items()}
    bare, gradient = Bare.options(num_cpus=0).remote(length), torch.full((length,), 1e-4)
    state = FlatState(torch.zeros(length), RULE, RATE, None)
    parameter = torch.nn.Parameter(torch.zeros(length))
    parameter.grad = gradient.clone()
    peer = torch.optim.RMSprop([parameter], lr=0.045, alpha=0.9, momentum=0.9, eps=1.0)
    workers = {name: make_worker(name) for name in LINES}
    return {
        **{name: lambda calls, worker=worker: repeated(worker.step, calls) for name, worker in workers.items()},
        "gloo": lambda calls: max(ray.get([each.reduce.remote(calls) for each in peers])),
        "bare": lambda calls: repeated(lambda: ray.get(bare.exchange.remote(gradient.numpy())), calls),
        "state_dict": lambda calls: repeated(lambda: ray.get(dicts.push.remote(gradients)), calls),
        "update": lambda calls: repeated(lambda: state.apply(gradient), calls, time.process_time),
        "torch_update": lambda calls: repeated(peer.step, calls, time.process_time),
    }


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of one call, round by round, for each way, after those that warm up."""
    called = ways(sum(parameter.numel() for parameter in build(SPEC).parameters()))
    times: dict[str, list[float]] = {name: [] for name in called}
    for _ in range(rounds + WARMING):
        for name in random.sample(list(called), len(called)):
            times[name].append(called[name](CALLS[name]))
    return {name: values[WARMING:] for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(
        address="local",
        num_cpus=max(4, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    times = measure(arguments.rounds)
    for name, values in times.items():
        print(f"{name:14} {said([1e3 * value for value in values], 1)} ms")
    figures = {
        f"push and pull, {name} / gloo": Figure(ratios(times[name], times["gloo"]), "ratio", "lower", "gloo all-reduce")
        for name in LINES
    }
    figures["push and pull, ray / bare call"] = Figure(
        ratios(times["ray"], times["bare"]), "ratio", "lower", "a call of Ray's with the same bytes"
    )
    for name, way in (("ray", "Ray"), ("shared", "shared memory")):
        title = f"push and pull through {way}"
        figures |= faster(title, times[name], times["state_dict"], "state dicts through Ray", "ms")
    figures |= faster("update", times["update"], times["torch_update"], "torch.optim.RMSprop", "ms")
    for title, figure in figures.items():
        if figure.unit == "ratio":
            print(f"{title}: {said(figure.values, 2)}x {figure.peer}")
    if arguments.json:
        write(arguments.json, "bench_exchange", figures, {"seconds": times})


if __name__ == "__main__":
    main()
