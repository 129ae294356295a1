"""How a worker and its servers exchange vectors: shared memory, bfloat16 on the wire, overlap with the next step."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.training.curve import read_curve
from pipelines.training.messages import NOTHING, packed, unpacked
from pipelines.training.parameter_server import ParameterShard
from pipelines.training.remote_optimizer import Line, RemoteOptimizer
from pipelines.training.shared_vectors import Room, Windows
from tasks.optim import FlatState, flatten
from tests.servers import LocalServers, plan, push, started

IMAGES, WANTED = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def closure_of(net, zero_grad):
    def closure():
        zero_grad()
        loss = nn.functional.cross_entropy(net(IMAGES), WANTED)
        loss.backward()
        return float(loss)

    return closure


class Worker:
    """A worker with a toy net, and its servers in this process."""

    def __init__(self, servers, worker=0, **line):
        self.net = make_net()
        self.servers = servers
        line = Line(len(servers.shards), **line)
        self.optimizer = RemoteOptimizer(self.net, lambda _: None, servers, line, worker, 8, dict, None)
        self.closure = closure_of(self.net, self.optimizer.zero_grad)

    def steps(self, number):
        return [self.optimizer.step(self.closure) for _ in range(number)]

    def weights(self):
        return torch.cat([shard.state.weights for shard in self.servers.shards])


def delayed(the_plan, steps, delay):
    """The oracle: one flat state, each gradient of the weights as they were so many updates ago."""
    net = make_net()
    flat = flatten(net)
    state = FlatState(flat.weights.clone(), the_plan.rule, the_plan.learning_rate, the_plan.average_decay)
    seen = [state.weights.clone()]
    closure = closure_of(net, flat.clear_gradient)
    for step in range(steps):
        flat.weights.copy_(seen[max(0, step - delay)])
        closure()
        state.apply(flat.gradient)
        seen.append(state.weights.clone())
    return state.weights


@pytest.mark.parametrize("num_servers", [1, 3])
@pytest.mark.parametrize("shared_memory", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_weights_are_those_of_delayed_updates(tmp_path, num_servers, shared_memory, overlap):
    the_plan = plan(tmp_path, num_servers=num_servers)
    worker = Worker(LocalServers(the_plan), shared_memory=shared_memory, overlap=overlap)
    worker.steps(12)
    assert torch.equal(worker.weights(), delayed(the_plan, 12, delay=int(overlap)))
    counted = {0: 1, 1: 11} if overlap else {0: 12}
    assert all(shard.record()["staleness"] == counted for shard in worker.servers.shards)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_slice_is_not_sent_where_memory_is_shared(tmp_path, overlap):
    servers = LocalServers(plan(tmp_path, num_servers=2))
    worker = Worker(servers, shared_memory=True, overlap=overlap)
    seen = []
    asked = servers.push

    def push(pushes, windows):
        replies = asked(pushes, windows)
        seen.extend([*[push.gradient for push in pushes], *[reply.weights for reply in replies()]])
        return replies

    servers.push = push
    worker.steps(3)
    assert len(seen) == 12
    assert all(len(vector) == 0 for vector in seen)


def test_two_workers_through_shared_memory_keep_their_own_views(tmp_path):
    servers = LocalServers(plan(tmp_path, num_workers=2))
    one, other = (Worker(servers, worker, shared_memory=True) for worker in range(2))
    before = other.optimizer.flat.weights.clone()
    one.steps(2)
    assert torch.equal(other.optimizer.flat.weights, before), "another worker's push changed this one's weights"
    other.steps(1)
    assert torch.equal(other.optimizer.flat.weights, servers.shards[0].state.weights)
    assert servers.shards[0].record()["staleness"] == {0: 2, 2: 1}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("shared_memory", [False, True])
def test_what_was_computed_on_a_lost_state_is_refused_and_the_worker_goes_on(tmp_path, shared_memory, overlap):
    the_plan = plan(tmp_path, snapshot_steps=2)
    servers = LocalServers(the_plan)
    worker = Worker(servers, shared_memory=shared_memory, overlap=overlap)
    worker.steps(5)
    servers.shards[0].curve.close()
    servers.shards[0] = ParameterShard(the_plan, 0)
    assert servers.shards[0].step == 4
    worker.steps(4)
    assert servers.shards[0].record()["refused"] == {"lost": 1 + overlap}
    assert servers.shards[0].step == 4 + 4 - 1 - overlap
    if not overlap:
        assert torch.equal(worker.optimizer.flat.weights, servers.shards[0].state.weights)


def test_bfloat16_is_rounded_on_the_wire_and_not_in_the_server(tmp_path):
    servers = LocalServers(plan(tmp_path, wire="bfloat16", average_decay=None))
    worker = Worker(servers, wire="bfloat16")
    worker.steps(1)
    state = servers.shards[0].state
    oracle = FlatState(flatten(make_net()).weights, state.rule, state.learning_rate, None)
    net = make_net()  # the worker pulls rounded weights, too
    flat = flatten(net)
    flat.weights.copy_(flat.weights.bfloat16().float())
    closure_of(net, flat.clear_gradient)()
    oracle.apply(flat.gradient.bfloat16().float())
    assert torch.equal(state.weights, oracle.weights)
    assert not torch.equal(state.weights, state.weights.bfloat16().float())
    assert torch.equal(worker.optimizer.flat.weights, state.weights.bfloat16().float())
    assert len(servers.pull(0, [None])[0].weights.tobytes()) == 2 * len(state.weights)


def test_bfloat16_packs_as_torch_rounds():
    values = torch.tensor([1.0, 1.00390625, 1.01171875, -3e38, 1e-40, float("inf"), float("nan"), 0.1])
    sent = packed(values, "bfloat16")
    assert (sent.dtype, sent.nbytes) == (np.uint16, 2 * len(values))
    assert torch.equal(unpacked(sent).nan_to_num(), values.bfloat16().nan_to_num())
    assert packed(values, "float32").dtype == np.float32


@pytest.mark.parametrize("line", [{}, {"overlap": True}, {"wire": "bfloat16", "shared_memory": False}], ids=str)
@pytest.mark.slow
def test_a_run_learns_over_any_line_and_says_what_the_exchange_took(make_job, line):
    from pipelines.training.loop import train_with_servers

    servers = {"num_servers": 2, **line}
    job = make_job(kind="async", epochs=12, servers=servers, optimizer={"learning_rate": 0.02})
    train_with_servers(job, LocalServers(job.servers), rank=0)
    rows = read_curve(job.folder / "curve.jsonl")
    assert len(rows) == job.total_steps
    assert np.median([row["loss"] for row in rows[-10:]]) < 0.6 * np.median([row["loss"] for row in rows[:5]])
    assert all(0 < row["exchange_seconds"] < 10 for row in rows[1:])


WHOLE = slice(0, 10), slice(0, 2)


def test_a_push_through_a_window_that_is_gone_is_lost_and_changes_nothing(tmp_path):
    shard, reply = started(plan(tmp_path))
    gone = Room(10, 2).window(*WHOLE)._replace(machine="elsewhere")
    before = shard.state.weights.clone()
    late = push(reply, 1)._replace(gradient=NOTHING, before=NOTHING, after=NOTHING, window=gone)
    assert shard.push(late).status == "lost"
    assert torch.equal(shard.state.weights, before)
    assert (shard.step, shard.record()["refused"]) == (0, {"lost": 1})


def test_a_window_shows_another_process_the_same_memory():
    room = Room(10, 2)
    window = room.window(slice(3, 7), slice(1, 2))
    code = (
        "from pipelines.training.shared_vectors import *\n"
        f"seen = Windows().through(0, {window!r})\n"
        "assert seen.gradient.tolist() == [3, 4, 5, 6]\n"
        "seen.weights[:] = 8\nseen.before[:] = 9"
    )
    room.vectors.gradient[:] = np.arange(10)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert room.vectors.weights.tolist() == [0, 0, 0, 8, 8, 8, 8, 0, 0, 0]
    assert room.vectors.before.tolist() == [0, 9]
    assert room.vectors.after.tolist() == [0, 0]


def test_a_window_of_another_machine_or_of_a_dead_process_is_none():
    code = (
        "import time; from pipelines.training.shared_vectors import *\n"
        "room = Room(10, 2); print(repr(room.window(slice(0, 10), slice(0, 2))), flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    from pipelines.training.shared_vectors import Window

    window = eval(owner.stdout.readline(), {"Window": Window})
    windows = Windows()
    assert windows.through(0, window._replace(machine="elsewhere")) is None
    assert windows.through(0, None) is None
    seen = windows.through(0, window)
    assert seen.weights.tolist() == [0] * 10
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    seen.weights[:] = 1  # the memory is there as long as somebody sees it
    assert windows.through(0, window) is seen
    assert windows.through(0, window._replace(token="of a process to come")) is None
    assert Windows().through(1, window) is None


def test_a_new_process_of_the_same_worker_is_seen_through_its_own_window():
    windows = Windows()
    one, other = Room(10, 2), Room(10, 2)
    windows.through(0, one.window(*WHOLE)).weights[:] = 1
    windows.through(0, other.window(*WHOLE)).weights[:] = 2
    assert (one.vectors.weights[0], other.vectors.weights[0]) == (1, 2)


def test_a_net_without_batch_norm_has_no_statistics_to_share():
    seen = Windows().through(0, Room(10, 0).window(slice(0, 10), slice(0, 0)))
    assert (len(seen.weights), len(seen.before)) == (10, 0)
