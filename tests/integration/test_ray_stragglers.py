"""Workers that are slow or hang, on a real Ray cluster: asynchronous training bears with them, data-parallel does not.

| fault | asynchronous | data-parallel |
| --- | --- | --- |
| one worker has a quarter of its time | the other keeps at least 80 % of its rate | all have a third or so of theirs |
| a worker hangs | the other goes on; after the health check's timeout it is replaced | everybody waits for that |

SIGSTOP and SIGCONT to its process make a worker slow and have it hang. Where both share the cores of a machine, the
healthy one can even gain by it: what is shown is that it does not wait.
"""

import os
import signal
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest

from tests.ray_runs import (
    is_alive,
    last_step,
    launched,
    processes,
    pushes,
    quarter_speed,
    summary,
    wait_for,
    wait_for_step,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(600), pytest.mark.usefixtures("four_cpus")]
TIMEOUT = 8  # seconds without an answer


def schedule(pid):
    """For how long each thread of a process has run, and was ready to run when the machine had no core for it."""
    threads = {}
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended since
            threads[path.parent.name] = tuple(map(int, path.read_text().split()[:2]))
    return threads


def kept_waiting(earlier, later):
    """Seconds between two looks for which the thread that ran the most in between had no core."""
    ran = {thread: later[thread][0] - earlier[thread][0] for thread in earlier.keys() & later.keys()}
    busiest = max(ran, key=ran.get)
    return (later[busiest][1] - earlier[busiest][1]) / 1e9


def compared(count, slow, healthy, rounds=4, seconds=1.5):
    """What `count` counts per second, first while both processes are as they were, then while one is slow.

    In turns, and without the time in which the machine had no core for the healthy one: what else it does is no matter.
    """
    made, passed = [0.0, 0.0], [0.0, 0.0]
    for turn in range(2 * rounds):
        with quarter_speed(slow) if turn % 2 else nullcontext():
            before, began, earlier = count(), time.monotonic(), schedule(healthy)
            time.sleep(seconds)
            made[turn % 2] += count() - before
            passed[turn % 2] += time.monotonic() - began - kept_waiting(earlier, schedule(healthy))
    return made[0] / passed[0], made[1] / passed[1]


def test_asynchronous_workers_do_not_wait_for_a_slow_or_a_hanging_one(make_job, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(TIMEOUT))
    job = make_job(kind="async", num_workers=2, batch_size=32, epochs=400, servers={"num_servers": 1})
    thread, errors = launched(job)
    wait_for(lambda: processes("ServedShard"), "a server")
    wait_for_step(job, 20)
    wait_for(lambda: len(pushes(job)) == 2, "both workers push")
    workers = processes("RayTrainWorker")

    def by_worker():
        return np.array([pushes(job)[rank] for rank in range(2)])

    alone, slowed = compared(by_worker, *workers)
    slow, healthy = np.argsort(slowed / alone)
    shares = slowed / alone
    print(f"\nasync, one of two slowed: {shares[slow]:.0%} of its rate, the other {shares[healthy]:.0%}")
    assert shares[slow] < 0.6
    assert shares[healthy] > 0.8

    os.kill(workers[0], signal.SIGSTOP)
    stopped, earlier, before = time.monotonic(), schedule(workers[1]), by_worker()
    time.sleep(4)
    during = (by_worker() - before) / (time.monotonic() - stopped - kept_waiting(earlier, schedule(workers[1])))
    assert during[slow] <= 1
    assert during[healthy] > 0.5 * alone[healthy]  # one short look, where the slow one had four
    wait_for(lambda: not is_alive(workers[0]), "the hanging worker is done away with")
    gone = time.monotonic() - stopped
    before = by_worker()
    wait_for(lambda: by_worker()[slow] > before[slow], "its replacement pushes")
    back = time.monotonic() - stopped
    share = f"{during[healthy] / alone[healthy]:.0%}"
    print(
        f"async, one of two hangs: the other has {share} of its rate; ended after {gone:.1f} s, back after {back:.1f}"
    )
    assert thread.is_alive()
    assert is_alive(workers[1])
    thread.join()
    assert not errors
    done = summary(job)
    assert done["steps"] == job.total_steps == sum(done["pushes"].values())


def test_data_parallel_workers_wait_for_a_slow_one(make_job):
    job = make_job(kind="ddp", num_workers=2, epochs=120)
    thread, errors = launched(job)
    wait_for_step(job, 10)

    alone, slowed = compared(lambda: last_step(job), *processes("RayTrainWorker"))
    assert thread.is_alive()
    print(f"\nddp, one of two slowed: {slowed / alone:.0%} of the rate")
    assert slowed < 0.6 * alone
    thread.join()
    assert not errors
    assert last_step(job) == job.total_steps
