"""Machines of a Ray cluster on one machine: network namespaces with addresses of their own, joined by a bridge."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS = 240.0  # on a machine that has much else to do


@dataclass(frozen=True)
class Node:
    """A namespace: its name, its own address, and the end of its cable that lies outside of it."""

    name: str
    address: str
    cable: str

    def command(self, *arguments: str) -> list[str]:
        """Those arguments as a command that runs on this node."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def processes(self, title: str = "") -> list[int]:
        """The ids of the processes that run on this node, of those whose command begins so."""
        found = []
        for pid in _run("ip", "netns", "pids", self.name).split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended since
            if command.startswith(title):
                found.append(int(pid))
        return found

    def kill(self) -> None:
        """SIGKILL all that runs here, until nothing does."""
        while pids := self.processes():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def cut(self) -> None:
        """Pull the cable."""
        _run("ip", "link", "set", self.cable, "down")

    def mend(self) -> None:
        """Plug it in again."""
        _run("ip", "link", "set", self.cable, "up")


@contextmanager
def network(count: int) -> Iterator[list[Node]]:
    """Nodes that reach one another and nothing else; skips the test where the system allows none."""
    number = os.getpid() % 100_000
    bridge = f"mnb{number}"
    nodes = [Node(f"mn{number}-{index}", f"10.77.0.{index + 1}", f"mn{number}v{index}") for index in range(count)]
    try:
        try:
            _run("ip", "link", "add", bridge, "type", "bridge")
            _run("ip", "link", "set", bridge, "up")
            for node in nodes:
                _join(node, bridge)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
        yield nodes
    finally:
        with suppress(OSError, subprocess.CalledProcessError):  # of what was never made
            _run("ip", "link", "del", bridge)
        for node in nodes:
            with suppress(OSError, subprocess.CalledProcessError):
                node.kill()
                _run("ip", "netns", "del", node.name)  # and its cable


def _join(node: Node, bridge: str) -> None:
    inside = f"{node.cable}i"
    _run("ip", "netns", "add", node.name)
    _run("ip", "link", "add", node.cable, "type", "veth", "peer", "name", inside, "netns", node.name)
    _run("ip", "link", "set", node.cable, "master", bridge, "up")
    _run(*node.command("ip", "addr", "add", f"{node.address}/24", "dev", inside))
    _run(*node.command("ip", "link", "set", inside, "up"))
    _run(*node.command("ip", "link", "set", "lo", "up"))


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def ray_cluster(nodes: Sequence[Node], folder: Path, cpus: int, **settings: str) -> Iterator[RayCluster]:
    """A Ray cluster guarded by a token: a head, which has no CPU for work, and `cpus` of each of the other nodes.

    settings: environment variables, as of Ray's own configuration. Logs lie in `folder`.
    """
    temporary = Path(tempfile.mkdtemp(prefix="mn", dir="/tmp"))  # the paths of sockets must be short
    cluster = RayCluster(nodes, folder, temporary, cpus, settings)
    try:
        cluster.begin()
        yield cluster
    finally:
        for node in nodes[::-1]:
            node.kill()
        for process in cluster.started:
            process.wait(timeout=30)
        shutil.rmtree(temporary, ignore_errors=True)


class RayCluster:
    """What `ray_cluster` yields."""

    def __init__(
        self, nodes: Sequence[Node], folder: Path, temporary: Path, cpus: int, settings: dict[str, str]
    ) -> None:
        self.head, *self.others = nodes
        self.folder, self.temporary, self.cpus = folder, temporary, cpus
        self.started: list[subprocess.Popen[Any]] = []
        (folder / "token").write_text("f" * 64)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        guard = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        self.environment = {**kept, **guard, "OMP_NUM_THREADS": "1", **settings}

    def begin(self) -> None:
        """Start the head, then the others."""
        self._wait_for(self._start(self.head, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"))
        self.join(*self.others)

    def join(self, *nodes: Node) -> None:
        """Have nodes join, also those that were killed."""
        address = f"--address={self.head.address}:6379"
        for joining in [self._start(node, address, f"--num-cpus={self.cpus}") for node in nodes]:
            self._wait_for(joining)

    def drive(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """A program on the head that uses the cluster; what it says goes to `driver.log`."""
        with (self.folder / "driver.log").open("w") as log:
            process = subprocess.Popen(
                self.head.command(sys.executable, "-c", code, *arguments),
                cwd=ROOT,
                env={**self.environment, "RAY_ADDRESS": f"{self.head.address}:6379"},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.started.append(process)
        return process

    def _start(self, node: Node, *options: str) -> tuple[subprocess.Popen[Any], Path]:
        command = [
            *(RAY, "start", "--block", "--disable-usage-stats", "--include-log-monitor=false"),
            *(f"--node-ip-address={node.address}", f"--temp-dir={self.temporary / node.name}"),
            *("--object-store-memory=100000000", *options),
        ]
        log = self.folder / f"{node.name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                node.command(*command), cwd=self.folder, env=self.environment, stdout=file, stderr=subprocess.STDOUT
            )
        self.started.append(process)
        return process, log

    def _wait_for(self, started: tuple[subprocess.Popen[Any], Path]) -> None:
        process, log = started
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
