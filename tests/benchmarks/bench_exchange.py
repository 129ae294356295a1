"""One push and pull of MobileNet's 4.2 M parameters through one parameter server, against its peers.

    python -m tests.benchmarks.bench_exchange [--json FILE]

Peers, on the same machine in the same run and interleaved: a flat all-reduce of the same bytes between two processes by
torch's gloo, and a server that is sent and answers with a state dict of tensors (Ray's parameter-server example).
Needs no GPU. Wall times; each figure is the median over rounds, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch

from pipelines.training.async_backend import RayServers
from pipelines.training.parameter_server import ParameterShard, Push, ServerPlan, as_tensor
from tasks.nets import NetSpec, build
from tasks.rules import RMSprop, Staircase

ROUNDS, CALLS = 12, 8
SPEC = NetSpec("mobilenet", 1.0, 1000, "same", "relu6", 0.9997, 0.001, 0.001, 8)


@ray.remote
class AllReduce:
    """One of two processes that sum a vector by gloo."""

    def __init__(self, rank: int, port: int, length: int) -> None:
        torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        self.vector = torch.ones(length)

    def seconds(self, calls: int) -> float:
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


def exchange(servers: RayServers, gradient: np.ndarray, replies: list, sequence: int) -> list:
    """A push and a pull, as `RemoteOptimizer.step` makes them, the copy into the worker's weights included."""
    reply = replies[0]
    push = Push(
        0, sequence, reply.incarnation, reply.version, gradient, reply.statistics, reply.statistics, 32, {"loss": 1.0}
    )
    return servers.push([push])


def measure() -> dict[str, list[float]]:
    """Seconds of one exchange, round by round, for each way."""
    net = build(SPEC)
    named = {name: value.detach() for name, value in net.named_parameters()}
    length = sum(value.numel() for value in named.values())
    statistics_length = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plan = ServerPlan(
        name="bench",
        num_servers=1,
        num_workers=1,
        folder=Path(tempfile.mkdtemp()),
        rule=RMSprop(0.9, 0.9, 1.0),
        learning_rate=Staircase(0.045, 0.94, 1000, 0),
        average_decay=None,
        total_steps=10**9,
        policy="none",
        max_staleness=1,
        snapshot_steps=10**9,
        log_steps=100,
    )
    server = ray.remote(ParameterShard).options(num_cpus=0).remote(plan, 0)
    peers = [AllReduce.options(num_cpus=0).remote(rank, port, length) for rank in range(2)]
    dicts = StateDictServer.options(num_cpus=0).remote(named)
    servers = RayServers([server])
    gradient = np.full(length, 1e-4, np.float32)
    weights = torch.zeros(length)
    replies = servers.start(0, [weights.numpy()], [np.zeros(statistics_length, np.float32)])
    gradients = {name: torch.full_like(value, 1e-4) for name, value in named.items()}
    times: dict[str, list[float]] = {"server": [], "gloo": [], "state_dict": []}
    sequence = 0
    for _ in range(ROUNDS + 2):
        begin = time.perf_counter()
        for _ in range(CALLS):
            sequence += 1
            replies = exchange(servers, gradient, replies, sequence)
            weights.copy_(as_tensor(replies[0].weights))
        times["server"].append((time.perf_counter() - begin) / CALLS)
        times["gloo"].append(max(ray.get([peer.seconds.remote(CALLS) for peer in peers])))
        begin = time.perf_counter()
        for _ in range(2):
            ray.get(dicts.push.remote(gradients))
        times["state_dict"].append((time.perf_counter() - begin) / 2)
    assert replies[0].version == sequence
    return {name: values[2:] for name, values in times.items()}  # two rounds to warm up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    times = measure()
    for name, values in times.items():
        low, middle, high = (1e3 * f(values) for f in (min, statistics.median, max))
        print(f"{name:12s} {middle:7.1f} ms ({low:.1f} to {high:.1f})")
    ratios = {
        "server / gloo all-reduce": [a / b for a, b in zip(times["server"], times["gloo"], strict=True)],
        "state dict / server": [a / b for a, b in zip(times["state_dict"], times["server"], strict=True)],
    }
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds": times, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
