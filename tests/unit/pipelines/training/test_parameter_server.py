"""The parameter servers as plain objects in this process: serial equivalence, exactly-once, policies, snapshots."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from threading import Thread

import numpy as np
import pytest
import torch

from pipelines.training.curve import read_curve
from pipelines.training.loop import export, train_local, train_with_servers
from pipelines.training.parameter_server import ParameterShard, assemble
from pipelines.training.remote_optimizer import slices
from pipelines.training.run import MomentumUpdates
from tasks.optim import FlatState
from tasks.rules import Adagrad, Momentum, RMSprop, Staircase
from tests.servers import LocalServers, plan, push, started


def learned(losses):
    """Whether the loss has fallen well: by medians, since the toy batches of 8 make single steps jump."""
    return np.median(losses[-10:]) < 0.6 * np.median(losses[:5])


MOMENTUM = MomentumUpdates(
    rule="momentum", momentum=0.9, learning_rate=0.01, weight_decay=1e-4, clip_norm=10.0, weight_average=None
)


@pytest.mark.parametrize(
    ("num_servers", "updates"),
    [
        (3, None),
        pytest.param(1, None, marks=pytest.mark.slow),
        pytest.param(3, MOMENTUM, marks=pytest.mark.slow),
    ],
)
def test_one_worker_equals_serial_training_bit_for_bit(make_job, one_thread, num_servers, updates):
    def made(**values):
        schedule = {"decay_epochs": 1 if updates is None else [3, 6.5]}
        job = make_job(epochs=8, optimizer={"learning_rate": 0.02}, schedule=schedule, **values)
        return job if updates is None else replace(job, run=job.run.model_copy(update={"optimizer": updates}))

    serial = made()
    train_local(serial)
    job = made(kind="async", servers={"num_servers": num_servers})
    train_with_servers(job, LocalServers(job.servers), rank=0)
    final = assemble(job.servers)
    export(job, final.weights, final.statistics)
    one, other = (torch.load(folder / "weights.pt", weights_only=True) for folder in (serial.folder, job.folder))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert final.record["staleness"] == {0: job.total_steps}
    rows, serial_rows = read_curve(job.folder / "curve.jsonl"), read_curve(serial.folder / "curve.jsonl")
    assert [row["loss"] for row in rows] == [row["loss"] for row in serial_rows]
    assert learned([row["loss"] for row in rows])
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in serial_rows]


@pytest.mark.slow
def test_two_workers_and_two_servers_learn(make_job):
    job = make_job(
        kind="async", num_workers=2, epochs=12, servers={"num_servers": 2}, optimizer={"learning_rate": 0.02}
    )
    servers = LocalServers(job.servers)
    errors = []

    def work(rank):
        try:
            train_with_servers(job, servers, rank)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    final = assemble(job.servers)
    assert sum(final.record["pushes"].values()) == sum(final.record["staleness"].values()) == job.total_steps
    assert set(final.record["pushes"]) == {0, 1}
    assert learned([row["loss"] for row in read_curve(job.folder / "curve.jsonl")])


def test_a_push_is_applied_once(tmp_path):
    shard, reply = started(plan(tmp_path))
    assert shard.push(push(reply, 1)).status == "applied"
    after = shard.push(push(reply, 1))
    assert after.status == "duplicate"
    assert (after.version, after.sequence) == (1, 1)
    assert shard.record()["refused"] == {"duplicate": 1}


def test_staleness_is_counted(tmp_path):
    shard, first, second = started(plan(tmp_path, num_workers=2), workers=2)
    shard.push(push(first, 1))
    shard.push(push(first, 2))
    shard.push(push(second, 1, worker=1))
    assert shard.record()["staleness"] == {0: 1, 1: 1, 2: 1}
    assert shard.record()["pushes"] == {0: 2, 1: 1}
    assert [row["staleness"] for row in read_curve(tmp_path / "curve.jsonl")] == [0, 1, 2]


def test_policy_scale_divides_the_rate_by_the_staleness(tmp_path):
    shard, reply = started(plan(tmp_path, policy="scale"))
    oracle = FlatState(torch.zeros(10), shard.plan.rule, shard.plan.learning_rate, 0.9)
    for sequence, scale in ((1, 1.0), (2, 1.0), (3, 0.5), (4, 1 / 3)):  # staleness 0, 1, 2, 3
        shard.push(push(reply, sequence))
        oracle.apply(torch.ones(10), scale)
    assert torch.equal(torch.from_numpy(shard.pull(0).weights), oracle.weights)


def test_policy_drop_refuses_what_is_too_stale(tmp_path):
    shard, reply = started(plan(tmp_path, policy="drop"))
    statuses = [shard.push(push(reply, sequence)).status for sequence in range(1, 6)]
    assert statuses == ["applied", "applied", "applied", "dropped", "dropped"]
    assert shard.step == 3
    assert shard.record()["refused"] == {"dropped": 2}


def test_policy_wait_tells_the_lead(tmp_path):
    shard, reply, _ = started(plan(tmp_path, policy="wait", num_workers=2), workers=2)
    assert [shard.push(push(reply, sequence)).lead for sequence in (1, 2, 3)] == [1, 2, 3]
    shard.push(push(shard.pull(1), 1, worker=1))
    assert shard.pull(0).lead == 2
    assert shard.pull(1).lead == 0


def test_nobody_waits_for_a_server_that_is_done(tmp_path):
    """It counts no more pushes: a lead that it told would be told for ever, while others still have steps to make."""
    shard, reply, _ = started(plan(tmp_path, policy="wait", num_workers=2, total_steps=3), workers=2)
    assert [shard.push(push(reply, sequence)).lead for sequence in (1, 2, 3)] == [1, 2, 0]
    assert shard.standing(0).lead == 0


def test_a_waiting_worker_is_told_how_it_stands_without_the_weights(tmp_path):
    shard, reply, _ = started(plan(tmp_path, policy="wait", num_workers=2), workers=2)
    shard.push(push(reply, 1))
    standing = shard.standing(0)
    assert (len(standing.weights), len(standing.statistics)) == (0, 0)
    assert (standing.lead, standing.version, standing.sequence) == (1, 1, 1)


def test_a_waiting_worker_goes_on_when_the_slow_one_has_caught_up(make_job):
    job = make_job(kind="async", num_workers=2, servers={"num_servers": 1, "staleness": "wait", "max_staleness": 1})
    servers = LocalServers(job.servers)
    leads = Counter()

    class Watching(LocalServers):
        def __init__(self):
            self.shards, self.lock = servers.shards, servers.lock

        def push(self, pushes, windows):
            replies = super().push(pushes, windows)
            leads[max(reply.lead for reply in replies())] += 1
            return replies

    threads = [Thread(target=train_with_servers, args=(job, Watching(), rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert assemble(job.servers).record["staleness"]
    assert max(leads) <= 2


def test_no_push_is_applied_after_the_last_step(tmp_path):
    shard, reply = started(plan(tmp_path, total_steps=2))
    statuses = [shard.push(push(reply, sequence)) for sequence in (1, 2, 3)]
    assert [status.status for status in statuses] == ["applied", "applied", "finished"]
    assert [status.finished for status in statuses] == [False, True, True]
    assert assemble(shard.plan).record["pushes"] == {0: 2}


def test_statistics_are_replaced_when_fresh_and_moved_when_stale(tmp_path):
    shard, first, second = started(plan(tmp_path, num_workers=2), workers=2)
    shard.push(push(first, 1, after=np.array([0.25, 4.0], np.float32)))
    assert shard.pull(0).statistics.tolist() == [0.25, 4.0]
    shard.push(push(second, 1, worker=1, after=np.array([1.0, -1.0], np.float32)))
    assert shard.pull(0).statistics.tolist() == [1.25, 3.0]


def test_a_restarted_server_comes_back_from_its_snapshot_and_refuses_what_was_computed_on_lost_state(tmp_path):
    shard, reply = started(plan(tmp_path))
    for sequence in range(1, 5):
        reply = shard.push(push(reply, sequence))
    kept = shard.pull(0)
    kept_weights = kept.weights.copy()
    lost = shard.push(push(reply, 5))  # beyond the snapshot of step 4
    shard.curve.close()
    back = ParameterShard(shard.plan, 0)
    assert back.step == 4
    assert np.array_equal(back.pull(0).weights, kept_weights)
    assert back.pull(0).sequence == 4
    assert back.push(push(lost, 6)).status == "lost"
    assert back.step == 4
    fresh = back.pull(0)
    assert fresh.incarnation != lost.incarnation
    assert back.push(push(fresh, 6)).status == "applied"
    assert [row["step"] for row in read_curve(tmp_path / "curve.jsonl")] == [1, 2, 3, 4, 5]
    assert back.record()["staleness"] == {0: 5}


def test_a_server_killed_before_its_first_step_has_a_snapshot(tmp_path):
    shard, reply = started(plan(tmp_path))
    back = ParameterShard(shard.plan, 0)
    assert np.array_equal(back.pull(0).weights, reply.weights)
    assert back.push(push(back.pull(0), 1)).status == "applied"


@pytest.mark.parametrize("rule", [RMSprop(0.9, 0.9, 1.0), Adagrad(0.1), Momentum(0.9)], ids=str)
def test_a_server_updates_by_any_rule_and_listed_rates_through_a_restart(tmp_path, rule):
    rate = Staircase(0.1, 0.5, (3, 5), 2)
    shard, reply = started(plan(tmp_path, rule=rule, learning_rate=rate, total_steps=8))
    oracle = FlatState(torch.zeros(10), rule, rate, 0.9)
    for step in range(8):
        if step == 4:
            shard.curve.close()
            shard = ParameterShard(shard.plan, 0)
            reply = shard.pull(0)
        reply = shard.push(push(reply, step + 1, gradient=(-2.0) ** step))
        assert reply.status == "applied"
        oracle.apply(torch.full((10,), (-2.0) ** step))
    assert torch.equal(torch.from_numpy(reply.weights), oracle.weights)
    assert torch.equal(assemble(shard.plan).weights, oracle.evaluated)
    rates = [row["learning_rate"] for row in read_curve(tmp_path / "curve.jsonl")]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.025])


def test_a_torn_write_leaves_the_snapshot_before(tmp_path):
    started(plan(tmp_path))
    (tmp_path / "server_0.pt.tmp").write_bytes(b"torn")
    assert ParameterShard(plan(tmp_path), 0).step == 0


@pytest.mark.parametrize(("length", "num_servers"), [(1, 1), (63, 2), (64, 2), (1000, 3), (4_231_976, 7), (0, 2)])
def test_slices_are_contiguous_and_nearly_equal(length, num_servers):
    parts = slices(length, num_servers)
    assert len(parts) == num_servers
    assert parts[0].start == 0
    assert parts[-1].stop == length
    assert all(one.stop == other.start for one, other in pairwise(parts))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_curve_rows_are_json(tmp_path):
    shard, reply = started(plan(tmp_path))
    shard.push(push(reply, 1))
    (line,) = (tmp_path / "curve.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["step"] == 1
    assert row["loss"] == 0.5
    assert row["learning_rate"] == pytest.approx(0.1)
