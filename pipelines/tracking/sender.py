"""When spools are sent: from a thread beside a training, or all at once; how failures are told.

Knows nothing of what is sent or where: the package says that by a `Store`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

COMMAND = "python -m pipelines.tracking"


class Store(NamedTuple):
    """Where spools go, as a record of functions that may take long.

    has_news: whether a spool holds anything that is not sent; a matter of files alone.
    deliver: sends what is new in a spool and returns it in words; may raise anything.
    absence: why the store cannot be used at all; empty where it can.
    readable: one line about what `deliver` raised.
    name: for people.
    """

    has_news: Callable[[Path], bool]
    deliver: Callable[[Path], str]
    absence: Callable[[], str]
    readable: Callable[[Exception], str]
    name: str


@contextmanager
def sending(store: Store, period: float, sample: Callable[[Iterable[Path]], None]) -> Iterator[Callable[[Path], None]]:
    """Sends spools every `period` seconds while the block runs, and what is left at its end; yields how to add one.

    sample: called before each look, with the spools.
    """
    watched: dict[Path, None] = {}
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(store, watched, stop, period, sample), name="tracking", daemon=True)
    thread.start()
    try:
        yield lambda spool: watched.update({spool: None})
    finally:
        stop.set()
        thread.join()
        send(store, list(watched))


def _follow(
    store: Store,
    watched: Mapping[Path, None],
    stop: threading.Event,
    period: float,
    sample: Callable[[Iterable[Path]], None],
) -> None:
    while not stop.wait(period):
        try:
            sample(list(watched))
        except Exception as error:  # noqa: BLE001 - as in `look`
            log.warning("no system metrics: %s", store.readable(error))
        look(store, list(watched))


def send(store: Store, spools: Collection[Path]) -> None:
    """Send these spools; what does not get through is told in one line, with the command that sends it later."""
    failures = look(store, spools)
    if failures:
        why, counts = next(iter(failures.values())), f"{len(failures)} of {len(spools)} runs"
        log.warning("%s lacks the latest of %s (%s); send it later: %s", store.name, counts, why, COMMAND)


def look(store: Store, spools: Collection[Path], show: Callable[[str], object] = lambda _: None) -> dict[Path, str]:
    """Send what is new in each spool; returns what went wrong in which. Once the store is away, none is tried.

    Catches everything: MLflow is a view, and nothing that it or its plugins raise may end a training.
    """
    failures: dict[Path, str] = {}
    away: str | None = None  # not asked yet
    for spool in filter(Path.exists, spools):  # one that is not there has nothing to tell, or not yet
        said = "nothing new"
        try:
            if store.has_news(spool):
                away = store.absence() if away is None else away
                if away:
                    failures[spool] = away
                else:
                    with _held(spool):
                        said = store.deliver(spool)
        except Exception as error:  # noqa: BLE001
            failures[spool], away = store.readable(error), None
        show(f"{spool.name}: {f'not sent: {failures[spool]}' if spool in failures else said}")
    return failures


@contextmanager
def _held(spool: Path) -> Iterator[None]:
    """Keeps other processes from sending the same spool at the same time; a dead one lets it go."""
    descriptor = os.open(spool, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RuntimeError("another process is sending it") from None
    finally:
        os.close(descriptor)
