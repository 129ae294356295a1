"""A map over many processes: those of this machine, or those of the Ray cluster that RAY_ADDRESS names.

Results come in the order of the arguments, whoever is done first, and no more work is handed out than can be under way:
what is mapped over is never all in memory.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from pipelines import cluster

Map = Callable[..., Iterator[Any]]  # as the built-in one


@contextmanager
def pool(processes: int | None) -> Iterator[Map]:
    """A `map` over so many processes of this machine; None: over a named cluster's CPUs, or all of this machine's.

    With 1 this process does the work itself. What a function raises elsewhere is raised here.
    """
    if processes is None and cluster.is_named():
        with _on_cluster() as run:
            yield run
        return
    count = processes or os.cpu_count() or 1
    if count == 1:
        yield map
        return
    # Spawned: a fork would copy the locks of this process's threads.
    executor = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start_worker)
    try:
        yield lambda function, *arguments: _in_turn(
            lambda *values: _undisturbed(executor.submit, function, *values),
            lambda future: future.result(),
            2 * count,
            arguments,
        )
    except BrokenProcessPool:
        raise OSError("a worker process was killed; has the machine run out of memory?") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _undisturbed(submit: Callable[..., Any], *values: Any) -> Any:
    """Submit while Ctrl-C is held back: a worker that is started by this hears of it when it knows what to do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return submit(*values)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_turn(
    submit: Callable[..., Any], result: Callable[[Any], Any], limit: int, arguments: tuple[Iterable[Any], ...]
) -> Iterator[Any]:
    pending: deque[Any] = deque()
    for values in zip(*arguments, strict=False):  # as the built-in map
        if len(pending) == limit:
            yield result(pending.popleft())
        pending.append(submit(*values))
    while pending:
        yield result(pending.popleft())


@contextmanager
def _on_cluster() -> Iterator[Map]:
    import ray
    from ray.exceptions import RayTaskError

    cluster.use_cluster({"CPU": 1})

    def result(reference: Any) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError as error:  # its text is a traceback
            raise error.cause from None

    task = ray.remote(num_cpus=1)(_called)
    limit = 2 * int(ray.cluster_resources()["CPU"])
    try:
        yield lambda function, *arguments: _in_turn(
            lambda *values: task.remote(function, *values), result, limit, arguments
        )
    finally:
        cluster.leave_cluster()


def _called(function: Callable[..., Any], *values: Any) -> Any:
    return function(*values)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted as well, and ends the workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when the parent was killed: it would work on, beside the next run, and then wait for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
