"""Servers that a worker asks by a socket beside Ray; Ray itself is played by calls in this process."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayActorError

from pipelines.training import async_backend
from pipelines.training.async_backend import RayServers
from pipelines.training.messages import NOTHING
from pipelines.training.served_shard import Address, ServedShard, connected
from pipelines.training.shared_vectors import Room
from tests.servers import plan, push

WHOLE = slice(0, 10), slice(0, 2)


@pytest.fixture
def served(tmp_path):
    return ServedShard(plan(tmp_path, num_workers=2), 0)


class Worker:
    """A worker's shared vectors, and its pushes through them."""

    def __init__(self, servers, worker=0):
        self.servers, self.worker, self.sequence = servers, worker, 0
        self.window = Room(10, 2)
        self.windows = [self.window.window(*WHOLE)]
        zeros = torch.zeros(10).numpy(), torch.zeros(2).numpy()
        (self.reply,) = servers.start(worker, zeros[:1], zeros[1:], self.windows)

    def push(self):
        self.sequence += 1
        self.window.vectors.gradient[:] = 1
        sent = push(self.reply, self.sequence, worker=self.worker)
        sent = sent._replace(gradient=NOTHING, before=NOTHING, after=NOTHING, window=self.windows[0])
        (self.reply,) = self.servers.push([sent], self.windows)()
        return self.reply.status


class Handle:
    """An actor's handle: a call is made at once, and its result is what `ray.get` waits for."""

    def __init__(self, served):
        self.served, self.asked, self.dead = served, [], 0
        self.ask, self.address = SimpleNamespace(remote=self._ask), SimpleNamespace(remote=self._address)

    def _ask(self, method, *values):
        self.asked.append(method)
        return self._unless_dead(lambda: self.served.ask(method, *values))

    def _address(self):
        return self._unless_dead(self.served.address)

    def _unless_dead(self, call):
        self.dead -= 1
        return call() if self.dead < 0 else RayActorError()


@pytest.fixture
def handle(served, monkeypatch):
    def get(result):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(async_backend.ray, "get", get)
    monkeypatch.setattr(async_backend, "RETRY_SECONDS", 0.0)
    return Handle(served)


def test_pushes_through_shared_memory_go_by_the_socket_alone(handle, served):
    worker = Worker(RayServers([handle]))
    assert [worker.push() for _ in range(5)] == ["applied"] * 5
    assert handle.asked == ["start"]
    assert served.ask("record")["staleness"] == {0: 5}
    assert torch.equal(torch.from_numpy(worker.window.vectors.weights), served._shard.state.weights)


def test_questions_of_many_are_answered_one_at_a_time(handle, served):
    workers = [Worker(RayServers([handle]), worker) for worker in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for pushed in [pool.submit(lambda one: [one.push() for _ in range(40)], one) for one in workers]:
            assert pushed.result() == ["applied"] * 40
    record = served.ask("record")
    assert record["pushes"] == {0: 40, 1: 40}
    assert sum(record["staleness"].values()) == served._shard.step == 80


def test_a_worker_that_has_not_the_key_is_refused_and_the_next_is_heard(served):
    with pytest.raises(AuthenticationError):
        connected(Address(served.address().name, b"another"))
    with pytest.raises(ConnectionRefusedError):
        connected(Address("\0nobody", b""))
    with Client(served.address().name, "AF_UNIX"):  # one that says nothing keeps nobody out
        connected(served.address()).close()


def test_what_a_server_raises_is_raised_by_its_worker(handle, served, monkeypatch):
    worker = Worker(RayServers([handle]))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(served._shard, "push", full)
    with pytest.raises(OSError, match="No space left on device"):
        worker.push()


def test_where_no_socket_is_reached_ray_is_asked_and_the_socket_not_tried_again(handle, served, monkeypatch):
    tried = []

    def unreachable(address):
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(async_backend, "connected", unreachable)
    worker = Worker(RayServers([handle]))
    assert [worker.push() for _ in range(3)] == ["applied"] * 3
    assert handle.asked == ["start", "push", "push", "push"]
    assert tried == [served.address()]


def test_a_server_that_dies_is_waited_for_and_its_successor_has_a_line_of_its_own(handle, tmp_path):
    servers = RayServers([handle])
    worker = Worker(servers)
    worker.push()
    servers._connections[0].close()  # as the end of its process does
    handle.served, handle.dead = ServedShard(plan(tmp_path, num_workers=2), 0), 2
    assert worker.push() == "lost"
    assert handle.asked == ["start", "push", "pull", "pull"]
    assert worker.push() == "applied"
    assert handle.asked == ["start", "push", "pull", "pull"]


@pytest.mark.slow
def test_a_reply_that_never_comes_is_a_pull_from_the_server_that_is_back(handle, served, tmp_path, monkeypatch):
    """The old server's process is killed between question and answer."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pipelines.training.served_shard import ServedShard\n"
        "from tests.servers import plan\n"
        "served = ServedShard(plan(Path(sys.argv[1])), 0)\n"
        "served._shard.push = lambda _: time.sleep(600)\n"
        "print(repr(tuple(served.address())), flush=True)\ntime.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    line = connected(Address(*eval(process.stdout.readline())))
    servers = RayServers([handle])
    worker = Worker(servers)
    servers._connections[0] = line
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(worker.push)
        assert not pushed.done()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert pushed.result(20) == "lost"
    assert handle.asked == ["start", "pull"]
    assert worker.push() == "applied"
