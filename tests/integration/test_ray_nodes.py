"""Training over machines with addresses of their own, one of which is lost or cannot be reached for a while.

| fault | lost | in the end |
| --- | --- | --- |
| a machine is killed, with a worker and a server | its server's updates since a snapshot, pushes under way | as ever |
| no network to it for 30 s | pushes under way, the worker, which is replaced; no update | as ever |

Ray takes a machine for dead that has not answered `RAY_health_check_failure_threshold` times; the head's environment
says how often. Of its 5 an interruption of 30 s uses up more than all, since connections come back half a minute late.
"""

import json
import time

import pytest

from pipelines.training.curve import read_curve
from pipelines.training.loop import CURVE, SUMMARY, WEIGHTS
from pipelines.training.snapshots import load_newest
from tests.nodes import network, ray_cluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]  # each some one or two minutes, of Ray's own waiting

SETTINGS = {"RAY_health_check_failure_threshold": "10", "RAY_health_check_period_ms": "1000"}
CUT_SECONDS = 30
DRIVER = """
import sys
from pathlib import Path
from pipelines.training.job import Job
from pipelines.training.launch import launch
from pipelines.training.run import Run
folder, shards = map(Path, sys.argv[1:])
run = Run.model_validate_json((folder / "run.json").read_text())
launch(Job(run, folder.name, shards, folder, 96, 3))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two machines that have room for one worker each, and for both servers."""
    with network(3) as nodes, ray_cluster(nodes, tmp_path_factory.mktemp("cluster"), 4, **SETTINGS) as running:
        yield running


@pytest.fixture
def job(make_job, tmp_path):
    servers = {"num_servers": 2, "cpus": 0.5, "snapshot_steps": 20}
    made = make_job(
        tmp_path / f"run_{time.time_ns()}", kind="async", num_workers=2, worker_cpus=3, epochs=25, servers=servers
    )
    (made.folder / "run.json").write_text(made.run.model_dump_json())
    return made


class Launched:
    """A job that runs on a cluster."""

    def __init__(self, cluster, job):
        self.cluster, self.job = cluster, job
        self.process = cluster.drive(DRIVER, str(job.folder), str(job.shards))

    def step(self):
        return max((row["step"] for row in read_curve(self.job.folder / CURVE)), default=0)

    def wait_for(self, step, seconds=240):
        """How many seconds it took to come to a step."""
        began = time.monotonic()
        while self.step() < step:
            log = (self.cluster.folder / "driver.log").read_text()
            assert self.process.poll() is None, log
            assert time.monotonic() < began + seconds, f"still at step {self.step()}:\n{log}"
            time.sleep(0.1)
        return time.monotonic() - began

    def end(self):
        """The summary, once the run has ended as it should."""
        assert self.process.wait(timeout=240) == 0, (self.cluster.folder / "driver.log").read_text()
        done = json.loads((self.job.folder / SUMMARY).read_text())
        rows = read_curve(self.job.folder / CURVE)
        assert [row["step"] for row in rows] == list(range(1, self.job.total_steps + 1))
        assert done["steps"] == self.job.total_steps == sum(done["pushes"].values())
        losses = [row["loss"] for row in rows]
        assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
        assert (self.job.folder / WEIGHTS).exists()
        return done


def actors(node):
    return [len(node.processes(f"ray::{name}")) for name in ("RayTrainWorker", "ServedShard")]


def test_without_a_network_for_30_seconds(cluster, job):
    run = Launched(cluster, job)
    run.wait_for(40)
    assert [actors(node) for node in cluster.others] == [[1, 1], [1, 1]]  # a worker and a server on either machine
    node = cluster.others[0]
    node.cut()
    time.sleep(1)
    step = run.step()
    time.sleep(CUT_SECONDS - 1)
    assert run.step() <= step + 1  # every push goes to both servers
    node.mend()
    seconds = run.wait_for(step + 5)
    done = run.end()
    print(f"30 s without network: {CUT_SECONDS + seconds:.0f} s without updates, {done['refused']} pushes refused")


def test_a_machine_is_killed_and_another_takes_its_place(cluster, job):
    run = Launched(cluster, job)
    run.wait_for(50)
    node = cluster.others[0]
    assert actors(node) == [1, 1]
    node.kill()
    step = run.step()
    kept = [load_newest(job.servers.snapshot(index))["state"]["step"] for index in range(2)]
    assert step - min(kept) <= job.run.servers.snapshot_steps + 2  # what workers have under way
    cluster.join(node)
    seconds = run.wait_for(step + 30)
    done = run.end()
    lost = f"at most {step - min(kept)} of its server's updates lost"
    print(f"machine killed at step {step}: {lost}, step {step + 30} after {seconds:.0f} s; refused: {done['refused']}")
