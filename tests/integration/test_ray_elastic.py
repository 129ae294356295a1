"""An asynchronous run on a cluster that grows and shrinks: workers join and leave, and nobody else stops for it."""

import os
from itertools import pairwise

import pytest
from ray.cluster_utils import Cluster

from pipelines.cluster import leave_cluster
from pipelines.training.curve import read_curve
from pipelines.training.loop import CURVE
from tests.ray_runs import last_step, launched, processes, pushes, summary, wait_for, wait_for_step

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of one machine with room for one worker."""
    # A process whose earlier cluster had a token shows it for good, and believes only those who do the same.
    monkeypatch.setenv("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "disabled"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    leave_cluster()
    cluster.shutdown()


def pushing(job, steps):
    """The workers that push during the next steps of a run."""
    before = pushes(job)
    wait_for_step(job, last_step(job) + steps)
    after = pushes(job)
    return {rank for rank in after if after[rank] > before.get(rank, 0)}


def test_one_worker_becomes_three_and_then_two_without_a_restart(make_job, cluster):
    servers = {"num_servers": 2, "cpus": 0, "snapshot_steps": 20}
    job = make_job(kind="async", extra_workers=2, batch_size=32, epochs=200, servers=servers)
    thread, errors = launched(job)
    wait_for_step(job, 20)
    assert set(pushes(job)) == {0}
    first = processes("RayTrainWorker"), processes("ServedShard")
    assert list(map(len, first)) == [1, 2]

    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    wait_for(lambda: set(pushes(job)) == {0, 1, 2}, "all three push")
    grown = last_step(job)
    wait_for_step(job, grown + 30)

    cluster.remove_node(machines[1], allow_graceful=False)
    step = last_step(job)
    wait_for_step(job, step + 10, seconds=10)  # nobody waits for the one that is gone
    # It shares memory with the servers, so that it pushes until its own process has seen that Ray is not there.
    wait_for(lambda: len(pushing(job, 40)) == 2, "two push")
    assert 0 in pushing(job, 40)
    assert (processes("RayTrainWorker"), processes("ServedShard")) == first, "somebody was started again"
    assert thread.is_alive()
    thread.join()
    assert not errors
    done = summary(job)
    assert done["steps"] == job.total_steps == sum(done["pushes"].values())
    rows = read_curve(job.folder / CURVE)
    assert [row["step"] for row in rows] == list(range(1, job.total_steps + 1))
    longest = max(later["time"] - earlier["time"] for earlier, later in pairwise(rows))
    assert "extra_worker_failures" not in done
    print(f"\n1 worker, 3 at step {grown}, 2 from step {step}; pushes {done['pushes']}, longest pause {longest:.1f} s")
