"""Gradients that are not finite: nothing of them is applied, they are counted, and too many in a row end the run."""

from threading import Thread

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.training import loop
from pipelines.training.curve import read_curve
from pipelines.training.finite import FiniteOptimizer, is_finite
from pipelines.training.loop import CURVE, SUMMARY, WEIGHTS, train_local, train_with_servers
from pipelines.training.messages import packed
from pipelines.training.parameter_server import assemble
from pipelines.training.snapshots import load_snapshot
from tasks.optim import FlatState
from tasks.rules import RMSprop, Staircase
from tests.servers import LocalServers, plan, push, started


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 12345, 99999])
def test_one_element_tells(value, place):
    vector = torch.ones(100_000)
    assert is_finite(vector)
    vector[place] = value
    assert not is_finite(vector)


def test_a_sum_that_overflows_is_of_finite_numbers_all_the_same():
    assert is_finite(torch.full((1000,), 3e38))
    assert is_finite(torch.zeros(0))
    both = torch.zeros(1000)
    both[3], both[4] = float("inf"), -float("inf")
    assert not is_finite(both)


def test_a_refused_step_changes_nothing_but_the_step():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = FiniteOptimizer(
        net, lambda flat: None, lambda weights: FlatState(weights, RMSprop(0.9, 0.9, 1.0), Staircase(0.1, 1, 1, 0), 0.9)
    )

    def step(images):
        def closure():
            optimizer.zero_grad()
            net(images).pow(2).sum().backward()
            return 0.0

        optimizer.step(closure)

    step(torch.randn(8, 4))
    state = optimizer.flat_state
    before = [vector.clone() for vector in (state.weights, optimizer.flat.statistics, *state.slots.values())]
    step(torch.full((8, 4), float("nan")))
    after = [state.weights, optimizer.flat.statistics, *state.slots.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert (optimizer.steps, optimizer.refused, optimizer.in_row) == (2, 1, 1)
    step(torch.randn(8, 4))
    assert (optimizer.steps, optimizer.refused, optimizer.in_row) == (3, 1, 0)
    assert not torch.equal(before[0], state.weights)


def test_a_server_refuses_a_slice_that_bfloat16_cannot_hold_and_applies_the_next(tmp_path):
    shard, reply = started(plan(tmp_path, wire="bfloat16"))
    kept = shard.pull(0).weights.copy()
    gradient = torch.ones(10)
    gradient[7] = 3.4e38
    refused = shard.push(push(reply, 1)._replace(gradient=packed(gradient, "bfloat16")))
    assert (refused.status, refused.version, refused.sequence, refused.not_finite) == ("not_finite", 0, 1, 1)
    assert np.array_equal(refused.weights, kept)
    assert shard.record()["refused"] == {"not_finite": 1}
    assert shard.push(push(refused, 1)).status == "duplicate"
    applied = shard.push(push(refused, 2))
    assert (applied.status, applied.version, applied.not_finite) == ("applied", 1, 0)
    assert [row["step"] for row in read_curve(tmp_path / "curve.jsonl")] == [1]


def test_what_is_not_finite_in_one_slice_is_refused_by_the_servers_of_all(tmp_path):
    shard, reply = started(plan(tmp_path))
    assert shard.push(push(reply, 1, finite=False)).status == "not_finite"
    assert shard.step == 0


def test_too_many_in_a_row_end_the_run_for_everybody(tmp_path):
    shard, reply, other = started(plan(tmp_path, num_workers=2, max_not_finite=3), workers=2)
    for sequence in (1, 2):
        reply = shard.push(push(reply, sequence, finite=False))
    assert shard.push(push(other, 1, worker=1)).status == "applied"  # the row begins anew
    for sequence in (3, 4, 5):
        reply = shard.push(push(shard.pull(0), sequence, finite=False))
        assert reply.failed == (sequence == 5)
    last = shard.push(push(shard.pull(1), 2, worker=1))
    assert (last.status, last.failed, last.version) == ("not_finite", True, 1)


@pytest.fixture
def poison(monkeypatch):
    """Makes the gradients of some calls NaN, in one element, after they are finished."""
    finish = loop.finish_gradient

    def poison(calls, element=-1):
        count = 0

        def poisoned(flat, **options):
            nonlocal count
            finish(flat, **options)
            if count in calls:
                flat.gradient[element] = float("nan")
            count += 1

        monkeypatch.setattr(loop, "finish_gradient", poisoned)

    return poison


def test_a_local_run_counts_them_and_ends_finite(make_job, poison):
    poison({3, 4, 8})
    job = make_job()
    train_local(job)
    assert '"not_finite": 3' in (job.folder / SUMMARY).read_text()
    assert all(torch.isfinite(value).all() for value in load_snapshot(job.folder / WEIGHTS).values())
    assert [row["step"] for row in read_curve(job.folder / CURVE)] == list(range(1, 25))


def test_two_servers_refuse_the_same_pushes(make_job, poison):
    poison({2, 3, 9}, element=0)  # which is in the first server's slice
    job = make_job(kind="async", servers={"num_servers": 2})
    servers = LocalServers(job.servers)
    assert train_with_servers(job, servers, rank=0) is None
    assert [shard.record()["refused"] for shard in servers.shards] == [{"not_finite": 3}] * 2
    final = assemble(job.servers)
    assert torch.isfinite(final.weights).all()
    assert torch.isfinite(final.statistics).all()
    assert final.record["pushes"] == {0: 24}


DIVERGES = {"optimizer": {"learning_rate": 1e30}, "epochs": 8}
LINE = r"run imagenet_w025_r128: 10 gradients in a row were not finite, at step \d+; lower learning_rate"


def test_a_local_run_that_has_run_away_ends_with_one_line(make_job):
    job = make_job(**DIVERGES)
    with pytest.raises(ValueError, match=LINE) as error:
        train_local(job)
    assert "\n" not in str(error.value)
    assert not (job.folder / WEIGHTS).exists()


def test_all_workers_of_an_asynchronous_run_that_has_run_away_are_told(make_job):
    job = make_job(kind="async", num_workers=2, servers={"num_servers": 2, "staleness": "wait"}, **DIVERGES)
    servers = LocalServers(job.servers)
    said = []
    threads = [Thread(target=lambda rank=rank: said.append(train_with_servers(job, servers, rank))) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(said) == 2
    assert all(line.startswith("run imagenet_w025_r128: 1") for line in said)
