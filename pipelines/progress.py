"""What a person sees of a run under way: a bar that follows its curve, whatever process trains it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pipelines.training.curve import read_curve

log = logging.getLogger(__name__)
EVERY_SECONDS = 1.0


@contextmanager
def watched(curve: Path, total_steps: int, title: str) -> Iterator[None]:
    """Show steps, loss, rate and time left on a terminal while the body runs; elsewhere one line at its end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stop = Event()
    with Progress(
        *columns, TextColumn("{task.fields[state]}"), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=total_steps, state="")

        def follow() -> None:
            while not stop.wait(EVERY_SECONDS):
                row = _last(curve)
                if row is not None:
                    bar.update(task, completed=row["step"], state=_state(row))

        follower = Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            stop.set()
            follower.join()
    row = _last(curve)
    log.info("%s: %d steps%s", title, total_steps, "" if row is None else f", {_state(row)}")


@contextmanager
def counted(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, elsewhere one line at the end; yields the function that moves it by so many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
    log.info("%s: %d", title, total)


def _last(curve: Path) -> dict[str, Any] | None:
    rows = read_curve(curve)
    return rows[-1] if rows else None


def _state(row: dict[str, Any]) -> str:
    return f"loss {row['loss']:.3f}, {row['images_per_second']:.0f} images/s"
