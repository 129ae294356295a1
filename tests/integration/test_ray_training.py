"""The distributed kinds on a real Ray cluster, with real kills of real processes."""

import os
import signal
import time

import pytest
import torch

from pipelines.training.curve import read_curve
from pipelines.training.loop import CHECKPOINT, CURVE, WEIGHTS
from tests.ray_runs import launched, processes, summary, wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("four_cpus")]


def test_one_worker_and_one_server_equal_serial_training(make_job):
    from pipelines.training.loop import train_local

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a Ray worker of one CPU
    try:
        serial = make_job(epochs=3)
        train_local(serial)
    finally:
        torch.set_num_threads(threads)
    job = make_job(kind="async", epochs=3, servers={"num_servers": 1})
    thread, errors = launched(job)
    thread.join()
    assert not errors
    one, other = (torch.load(each.folder / WEIGHTS, weights_only=True) for each in (serial, job))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_workers_two_servers_and_a_killed_worker(make_job):
    job = make_job(kind="async", num_workers=2, epochs=60, servers={"num_servers": 2, "snapshot_steps": 20})
    thread, errors = launched(job)
    wait_for_step(job, 60)
    before = processes("RayTrainWorker")
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    time.sleep(1.0)
    step = read_curve(job.folder / CURVE)[-1]["step"]
    assert os.path.exists(f"/proc/{before[1]}"), "the other worker was stopped too"
    wait_for_step(job, step + 10, seconds=10)  # the survivor goes on at once, long before the replacement is there
    thread.join()
    assert not errors
    done = summary(job)
    assert done["steps"] == job.total_steps == sum(done["pushes"].values()) == sum(done["staleness"].values())
    assert [row["step"] for row in read_curve(job.folder / CURVE)] == list(range(1, job.total_steps + 1))


def test_a_killed_server_comes_back_from_its_snapshot(make_job):
    job = make_job(kind="async", num_workers=2, epochs=60, servers={"num_servers": 2, "snapshot_steps": 20})
    thread, errors = launched(job)
    wait_for_step(job, 60)
    servers = processes("ServedShard")
    assert len(servers) == 2
    os.kill(servers[1], signal.SIGKILL)
    thread.join()
    assert not errors
    done = summary(job)
    assert done["steps"] == job.total_steps
    losses = [row["loss"] for row in read_curve(job.folder / CURVE)]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    assert (job.folder / WEIGHTS).exists()


def test_a_killed_ddp_worker_leaves_the_same_weights(make_job):
    straight = make_job(kind="ddp", num_workers=2, epochs=10)
    thread, errors = launched(straight)
    thread.join()
    assert not errors
    broken = make_job(kind="ddp", num_workers=2, epochs=10)
    thread, errors = launched(broken)
    wait_for_step(broken, 12)
    os.kill(processes("RayTrainWorker")[-1], signal.SIGKILL)
    thread.join()
    assert not errors
    assert not (broken.folder / CHECKPOINT).exists()
    one, other = (torch.load(job.folder / WEIGHTS, weights_only=True) for job in (straight, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [row["step"] for row in read_curve(broken.folder / CURVE)] == list(range(1, broken.total_steps + 1))


def test_too_small_a_cluster_is_an_error_and_not_an_endless_wait(make_job):
    job = make_job(kind="ddp", num_workers=2, worker_gpus=500)
    from pipelines.training.launch import launch

    with pytest.raises(ValueError, match="the run needs 1000 GPU and the Ray cluster has 0"):
        launch(job)
