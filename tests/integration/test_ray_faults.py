"""Faults of training on a real Ray cluster: what each costs, and that the run ends right all the same.

| fault | what is lost | and then |
| --- | --- | --- |
| SIGKILL of all asynchronous workers at once | pushes under way, one a worker at most | new workers, same weights |
| SIGKILL of the driver | updates since the last snapshot, fewer than `snapshot_steps` | the same call goes on |
| the disk is full while a server saves | nothing that was saved | one line; when there is room, as after any end |
| and the newest snapshot is damaged | updates since the one before, fewer than 2 `snapshot_steps` | said in a line |
| gradients that are not finite | none of the weights | one line, of run, step and count, and no new attempts |
| an extra worker fails by an error of its own | its gradient | it begins anew, and the summary says how often |
| a shard was changed | no sample of it is used | one line that names it |

(A killed worker, server or data-parallel worker: test_ray_training.py; hanging and slow ones: test_ray_stragglers.py.)
"""

import logging
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.training import launch
from pipelines.training.curve import read_curve
from pipelines.training.loop import CURVE, WEIGHTS
from pipelines.training.snapshots import load_snapshot
from tests.ray_runs import (
    is_alive,
    last_step,
    launched,
    made_again,
    pause,
    processes,
    pushes,
    summary,
    wait_for,
    wait_for_step,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(600), pytest.mark.usefixtures("four_cpus")]
ROOT = Path(__file__).parents[2]
DRIVER = """
import pickle, sys
from pipelines.training.launch import launch
launch(pickle.load(open(sys.argv[1], "rb")))
"""
EVERY = 20  # snapshot_steps


def is_right(job):
    """Whether a run has ended as one that nothing happened to: each update made once, and weights that are finite."""
    done = summary(job)
    assert done["steps"] == job.total_steps == sum(done["pushes"].values()) == sum(done["staleness"].values())
    rows = read_curve(job.folder / CURVE)
    assert [row["step"] for row in rows] == list(range(1, job.total_steps + 1))
    assert sum(row["loss"] for row in rows[-20:]) < 0.6 * sum(row["loss"] for row in rows[:20])
    weights = load_snapshot(job.folder / WEIGHTS)
    return all(torch.isfinite(value).all() for value in weights.values())


def test_all_workers_killed_at_once(make_job):
    job = make_job(kind="async", num_workers=2, epochs=40, servers={"num_servers": 2, "snapshot_steps": EVERY})
    thread, errors = launched(job)
    wait_for_step(job, 70)
    workers = processes("RayTrainWorker")
    assert len(workers) == 2
    killed = time.time()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    step = last_step(job)
    thread.join()
    assert not errors
    assert is_right(job)
    lost = made_again(job, step, since=killed)
    print(f"\nall workers killed at step {step}: {lost} updates made again, none for {pause(job, killed):.1f} s")
    assert lost <= 2


def test_the_driver_killed(make_job, tmp_path):
    job = make_job(kind="async", num_workers=2, epochs=40, servers={"num_servers": 2, "snapshot_steps": EVERY})
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    with subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path / "job"], cwd=ROOT) as driver:
        wait_for_step(job, 70)
        theirs = processes("RayTrainWorker", driver.pid) + processes("ServedShard", driver.pid)
        assert len(theirs) == 4
        driver.kill()
    wait_for(lambda: not any(map(is_alive, theirs)), "the driver's workers and servers end with it", seconds=60)
    ended = time.time()  # until then they go on
    step = last_step(job)
    assert 70 <= step < job.total_steps
    thread, errors = launched(job)
    thread.join()
    assert not errors
    assert is_right(job)
    lost = made_again(job, step, since=ended)
    print(f"\ndriver killed at step {step}: {lost} updates made again")
    assert lost < EVERY


def test_a_full_disk_and_then_a_damaged_snapshot(make_job, caplog):
    servers = {"num_servers": 1, "snapshot_steps": EVERY}
    job = make_job(kind="async", epochs=20, servers=servers, max_failures=0)
    thread, errors = launched(job)
    wait_for_step(job, 50)
    (server,) = processes("ServedShard")
    resource.prlimit(server, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    thread.join()
    path = job.servers.snapshot(0)
    (error,) = errors
    assert isinstance(error, OSError)
    assert str(error) == f"[Errno 27] File too large: '{path}'"
    assert not list(job.folder.glob("*.tmp"))
    step, now = last_step(job), time.time()
    saved = load_snapshot(path)["state"]["step"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        thread, errors = launched(job)
        thread.join()
    assert not errors
    assert f"{path} is damaged: " in caplog.text
    assert f"going on from the one before, {path}.previous" in caplog.text
    assert is_right(job)
    lost = made_again(job, step, since=now)
    print(f"\ndisk full at step {step}, snapshot of step {saved} damaged: {lost} updates made again")
    assert step - saved <= EVERY
    assert lost == step - saved + EVERY


@pytest.mark.parametrize("kind", ["async", "ddp"])
def test_weights_that_run_away_end_the_run_in_one_line(make_job, kind):
    job = make_job(kind=kind, num_workers=2, epochs=20, optimizer={"learning_rate": 1e30})
    thread, errors = launched(job)
    thread.join()
    (error,) = errors
    print(f"\n{kind}: {error}")
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"run {job.run.name}: 1")
    assert " gradients in a row were not finite, at step " in str(error)
    assert "\n" not in str(error)
    assert not (job.folder / WEIGHTS).exists()


def test_an_extra_worker_that_fails_by_an_error_of_its_own_begins_anew_and_the_run_says_so(
    make_job, monkeypatch, caplog
):
    def failing_twice(job, rank):
        from pipelines.training import extra_workers, loop

        extra_workers.PAUSE_SECONDS = 0.1
        left, train = [2, 1], loop.train_with_servers

        def fails(*arguments):
            if left:
                raise RuntimeError(f"planted error {left.pop()}")
            return train(*arguments)

        loop.train_with_servers = fails
        loop.train_extra(job, rank)

    monkeypatch.setattr(launch, "train_extra", failing_twice)
    servers = {"num_servers": 1, "cpus": 0, "snapshot_steps": 20}
    job = make_job(kind="async", extra_workers=1, batch_size=32, epochs=300, servers=servers, max_failures=2)
    thread, errors = launched(job)
    wait_for_step(job, 20)
    wait_for(lambda: set(pushes(job)) == {0, 1}, "the extra worker pushes, after two errors")
    assert thread.is_alive()
    thread.join()
    assert not errors
    done = summary(job)
    assert done["extra_worker_failures"] == {"1": 2}
    assert done["steps"] == job.total_steps == sum(done["pushes"].values())
    assert "extra worker 1 failed 2 times, at last by RuntimeError: planted error 2" in caplog.text


def test_a_changed_shard_ends_the_run_in_one_line(make_job, tiny_shards, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    data = bytearray((shards / "train-000001.tar").read_bytes())
    data[5000] ^= 1
    (shards / "train-000001.tar").write_bytes(data)
    job = replace(make_job(kind="ddp", num_workers=2, max_failures=0), shards=shards)
    thread, errors = launched(job)
    thread.join()
    (error,) = errors
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"{shards / 'train-000001.tar'} has sha256 ")
    assert "\n" not in str(error)
