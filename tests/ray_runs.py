"""Runs on a Ray cluster, watched and meddled with from the test's process."""

import json
import os
import signal
import time
from contextlib import contextmanager, suppress
from threading import Event, Thread

from pipelines.training.curve import read_curve
from pipelines.training.loop import CURVE, SUMMARY

POLL = 0.02  # seconds


def launched(job):
    """Launch a job in a thread, since `fit` blocks; the thread and the list that its error would be in."""
    from pipelines.training.launch import launch

    errors = []

    def run():
        try:
            launch(job)
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run)
    thread.start()
    return thread, errors


def wait_for(condition, what, seconds=240):
    """Wait until `condition` holds. Looks are counted and not seconds: a machine may stand still in between."""
    for _ in range(round(seconds / POLL)):
        if condition():
            return
        time.sleep(POLL)
    raise AssertionError(f"{what}: not in {seconds} s")


def wait_for_step(job, step, seconds=240):
    """Wait until a run's curve has come to a step."""
    wait_for(lambda: last_step(job) >= step, f"step {step}", seconds)


def last_step(job):
    """The last step in a run's curve."""
    return max((row["step"] for row in read_curve(job.folder / CURVE)), default=0)


def made_again(job, step, since):
    """How many of a run's updates up to `step` were made, or made again, after the time `since`; the rest was kept."""
    return sum(row["step"] <= step and row["time"] > since for row in read_curve(job.folder / CURVE))


def pause(job, since):
    """Seconds from a time to the first update after it."""
    return min(row["time"] for row in read_curve(job.folder / CURVE) if row["time"] > since) - since


def _stat(pid):
    """A process's parent and state."""
    with open(f"/proc/{pid}/stat") as file:
        state, parent = file.read().rpartition(")")[2].split()[:2]
    return int(parent), state


def processes(name, root=None):
    """Process ids of Ray workers by the title that Ray gives them, among the descendants of a process: this one."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                wanted = file.read().startswith(f"ray::{name}")
            ancestor = pid
            while wanted and ancestor > 1 and ancestor != (root or os.getpid()):
                ancestor, _ = _stat(ancestor)
            if wanted and ancestor > 1:
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since
    return sorted(found)


def is_alive(pid):
    """Whether a process is there, and not only as an entry that nobody has collected yet."""
    try:
        return _stat(pid)[1] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pushes(job):
    """How many pushes of each worker a run's first server has applied, up to now."""
    import ray

    return ray.get(ray.get_actor(job.servers.actor_name(0)).ask.remote("record"))["pushes"]


def summary(job):
    """What a finished run says of itself."""
    return json.loads((job.folder / SUMMARY).read_text())


@contextmanager
def quarter_speed(pid, period=0.4):
    """Stop a process for three quarters of the time."""
    over = Event()

    def stop_and_go():
        with suppress(ProcessLookupError):  # it has ended
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.75 * period)
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.25 * period)

    thread = Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
