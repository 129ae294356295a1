"""Rows of a table trained at once, each by a process of its own: `ROWS_AT_ONCE=4 dvc repro train_imagenet`.

How many is a matter of the machines and not of the result, so it is no value of params.yaml. On a named cluster a row
starts when there is room for it beside those under way: Ray would let it wait with half of what it needs, and two such
rows would wait for each other.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from threading import Thread

from pipelines.cluster import is_named, leave_cluster, resources, total, use_cluster
from pipelines.plan import Plan
from pipelines.progress import counted

log = logging.getLogger(__name__)
VARIABLE = "ROWS_AT_ONCE"
EVERY_SECONDS = 0.2
GRACE_SECONDS = 60.0  # for a process that was told to end: it may be writing a checkpoint


def rows_at_once() -> int:
    """What the environment asks for; 1 where it does not. Raises ValueError for what is no number above 0."""
    text = os.environ.get(VARIABLE, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{VARIABLE} is {text!r}; it must be a whole number above 0: how many rows train at once")
    return int(text)


def train_side_by_side(plan: Plan, names: Iterable[str], at_once: int) -> None:
    """Train runs of a plan, each when those that it needs are done. Raises ValueError that names those that failed;
    those under way by then are trained to their end, and no other is begun.
    """
    waiting, running, failed = list(names), dict[str, subprocess.Popen[str]](), list[str]()
    room = _room() if is_named() else None
    with counted(f"{plan.table}: rows", len(waiting)) as advance:
        try:
            while running or (waiting and not failed):
                for name in startable(plan, waiting, running, at_once, room) if not failed else []:
                    waiting.remove(name)
                    running[name] = _start(plan, name)
                time.sleep(EVERY_SECONDS)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    if running.pop(name).returncode:
                        failed.append(name)
                    else:
                        advance(1)
        finally:
            _end(running.values())
    if failed:
        raise ValueError(f"{plan.table}: {', '.join(failed)} failed, as told above; not begun: {len(waiting)} runs")


def startable(
    plan: Plan, waiting: Collection[str], running: Collection[str], at_once: int, room: Mapping[str, float] | None
) -> list[str]:
    """The runs to start now, in order. room: amounts of "CPU" and "GPU"; None: there is no limit but their number.

    A run that is larger than all the room is started when nothing else is under way: it is told so, or waits for
    an autoscaler.
    """
    found: list[str] = []
    for name in waiting:
        busy = [*running, *found]
        wanted = plan.runs[name].origins.values()
        if len(busy) < at_once and not any(other in wanted for other in (*waiting, *running)):
            together = total(bundle for other in (*busy, name) for bundle in plan.runs[other].bundles)
            if not busy or room is None or all(together[key] <= amount for key, amount in room.items()):
                found.append(name)
    return found


def _room() -> dict[str, float]:
    """What the cluster has."""
    use_cluster()
    try:
        return resources()
    finally:
        leave_cluster()


def _start(plan: Plan, name: str) -> subprocess.Popen[str]:
    """A process that trains a run; what it says is said here, line by line."""
    command = [sys.executable, "-m", "pipelines.train", plan.table, "--scale", plan.scale, "--run", name]
    process = subprocess.Popen(  # noqa: S603
        command,
        cwd=Path.cwd(),
        env={**os.environ, VARIABLE: "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    Thread(target=_tell, args=(process, name), daemon=True).start()
    return process


def _tell(process: subprocess.Popen[str], name: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        log.info("%s", line.rstrip() if name in line else f"{name}: {line.rstrip()}")


def _end(processes: Iterable[subprocess.Popen[str]]) -> None:
    """End what is under way: each keeps its last checkpoint."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in left:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
