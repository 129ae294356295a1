"""Rows of a table trained at once, each in a process of its own: as many as the machine has cores and memory for, or
`ROWS_AT_ONCE=4 dvc repro train_imagenet`.

How many is a matter of the machines and not of the result, so it is no value of params.yaml. On a named cluster, which
is asked what it has only where somebody wants several, a row starts when there is room for it beside those under way:
Ray would let it wait with half of what it needs, and two such rows would wait for each other. On one machine a row
counts as many cores as its workers and servers take, unless it was told a number.

The rows' processes are forked from one that has imported torch and Lightning, so that 10 s of CPU are spent once and
not for each row. They share the cores: small nets gain little by a second thread, and two such rows trained at once on
two cores take less time than one after the other.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

from pipelines.cluster import is_named, leave_cluster, resources, total, use_cluster
from pipelines.plan import Plan
from pipelines.progress import counted

if TYPE_CHECKING:
    from pipelines.training.run import Run

log = logging.getLogger(__name__)
VARIABLE = "ROWS_AT_ONCE"
THREADS = "OMP_NUM_THREADS"
MEMORY_OF_ROW = 6 * 1024**3  # bytes; the dearest row, a VGG detector with its optimizer, takes about 4 GiB
CONTAINER = Path("/sys/fs/cgroup")  # where Linux says what this process's container may use
EVERY_SECONDS = 0.2
GRACE_SECONDS = 60.0  # for a process that was told to end: it may be writing a checkpoint
IMPORTED = ["pipelines.training.launch"]  # in the process that rows are forked from

FAREWELL_SECONDS = 5.0  # for the last words of one that has ended

# Trains a run of a plan, in a process of its own; the text is what its messages begin with.
TrainRow = Callable[[Plan, str, str], None]


class Row(NamedTuple):
    """The process of a row, and the thread that tells what it says."""

    process: ForkServerProcess
    telling: Thread


def rows_at_once(runs: Iterable[Run]) -> int:
    """How many of these runs to train at once: what the environment asks for, or as many as this machine has cores and
    memory for. Raises ValueError for what is no number above 0.

    Unasked, one alone where a cluster is named, and where a run has GPUs, which the others would share.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        if is_named() or total(bundle for run in runs for bundle in run.bundles)["GPU"]:
            return 1
        return max(1, min(_cores(), int(_memory() // MEMORY_OF_ROW)))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{VARIABLE} is {text!r}; it must be a whole number above 0: how many rows train at once")
    return int(text)


def start_importing() -> None:
    """Have what rows need imported, in a process beside this one."""
    forkserver.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


def train_side_by_side(
    plan: Plan, names: Iterable[str], at_once: int, train_row: TrainRow, begins: Callable[[str], object]
) -> None:
    """Train runs of a plan, each when those that it needs are done. Raises ValueError that names those that failed;
    those under way by then are trained to their end, and no other is begun.

    begins: called here with the name of each run before it is started.
    """
    waiting, running, failed = list(names), dict[str, Row](), list[str]()
    titles = {name: f"[{number}/{len(waiting)}] {name}" for number, name in enumerate(waiting, start=1)}
    room = _room()
    threads = max(1, _cores() // at_once)
    with counted(f"{plan.table}: rows", len(waiting)) as advance:
        try:
            while running or (waiting and not failed):
                for name in startable(plan, waiting, running, at_once, room) if not failed else []:
                    waiting.remove(name)
                    begins(name)
                    running[name] = _start(plan, name, titles[name], train_row, threads)
                time.sleep(EVERY_SECONDS)
                for name in [name for name, row in running.items() if row.process.exitcode is not None]:
                    ended = running.pop(name)
                    ended.telling.join(FAREWELL_SECONDS)
                    if ended.process.exitcode:
                        failed.append(name)
                    else:
                        advance(1)
        finally:
            _end([row.process for row in running.values()])
    if failed:
        raise ValueError(f"{plan.table}: {', '.join(failed)} failed, as told above; not begun: {len(waiting)} runs")


def startable(
    plan: Plan, waiting: Collection[str], running: Collection[str], at_once: int, room: Mapping[str, float] | None
) -> list[str]:
    """The runs to start now, in order. room: amounts of "CPU" and "GPU", of which one that is absent does not limit;
    None: there is no limit but their number.

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


def _cores() -> int:
    """Of this machine, that this process may use."""
    return max(1, int(min(len(os.sched_getaffinity(0)), _limit("cpu.max"))))


def _memory() -> float:
    """Bytes of this machine, that this process may use."""
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _limit("memory.max"))


def _limit(name: str) -> float:
    """Cores of `cpu.max` or bytes of `memory.max` (cgroup v2) that a container may use; infinite where all are."""
    try:
        amount, *period = (CONTAINER / name).read_text().split()
    except OSError:
        return math.inf
    return math.inf if amount == "max" else float(amount) / float(period[0] if period else 1)


def _room() -> dict[str, float] | None:
    """What the named cluster has, or the cores of this machine; None where somebody has said how many rows it bears."""
    if not is_named():
        return None if VARIABLE in os.environ else {"CPU": float(_cores())}
    use_cluster()
    try:
        return resources()
    finally:
        leave_cluster()


def _start(plan: Plan, name: str, title: str, train_row: TrainRow, threads: int) -> Row:
    """A process that trains a run; what it says is said here, line by line."""
    context = get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_row, args=(writer, train_row, plan, name, title, threads), name=name)
    process.start()
    writer.close()
    telling = Thread(target=_tell, args=(reader, name), daemon=True)
    telling.start()
    return Row(process, telling)


def _row(output: Connection, train_row: TrainRow, plan: Plan, name: str, title: str, threads: int) -> None:
    """What the process of a row does."""
    import torch

    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    if THREADS not in os.environ:
        torch.set_num_threads(threads)  # here alone: Ray gives a worker as many as it has CPUs, by its environment
    train_row(plan, name, title)


def _tell(reader: Connection, name: str) -> None:
    with os.fdopen(os.dup(reader.fileno())) as lines:
        reader.close()
        for line in lines:
            log.info("%s", line.rstrip() if name in line else f"{name}: {line.rstrip()}")


def _end(processes: Iterable[ForkServerProcess]) -> None:
    """End what is under way: each keeps its last checkpoint."""
    left = [process for process in processes if process.exitcode is None]
    for process in left:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in left:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
