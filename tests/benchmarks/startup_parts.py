"""One `pipelines.train` with the time of each part before its first step: `bench_startup` runs it in a fresh process.

    python -m tests.benchmarks.startup_parts <moment> <table>

In the folder of a project whose shards are there. moment: `time.monotonic()` when the process was started. What the
stage would import on its way is imported first, package by package, in the order in which it comes; then the stage
itself runs. The last line of its output is JSON: the parts, [name, seconds, CPU seconds of all threads], and the rows,
[name, seconds from its begin to its end, those of its training loop].
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch


class Parts:
    """Seconds and CPU seconds by part, each from the end of the one before."""

    def __init__(self, began: float) -> None:
        self.found: list[tuple[str, float, float]] = []
        self.last, self.cpu = began, 0.0

    def end(self, name: str) -> None:
        """The part that is over now; said again, it counts the first time."""
        if name in (known for known, _, _ in self.found):
            return
        now, cpu = time.monotonic(), time.process_time()
        self.found.append((name, now - self.last, cpu - self.cpu))
        self.last, self.cpu = now, cpu


def import_all(parts: Parts) -> None:
    """Import what a train stage does."""
    import torch  # noqa: F401

    parts.end("import torch")
    import pytorch_lightning  # noqa: F401

    parts.end("import pytorch_lightning")
    import numba  # noqa: F401

    parts.end("import numba")
    import pipelines.training.launch  # noqa: F401

    parts.end("import the rest of ours")
    from pipelines.tracking.client import QUIET, import_mlflow, set_environment

    set_environment(QUIET)
    import_mlflow()
    parts.end("import mlflow")


def row_timer(parts: Parts, rows: list[tuple[str, float, float]]) -> Callable[..., None]:
    """The stage's function that trains a row, which tells how long that took."""
    from pipelines import train
    from pipelines.training.rows import read_record

    train_row = train._train_row

    def timed_row(plan: Any, name: str, *rest: Any) -> None:
        parts.end("plan and checks")
        began = time.monotonic()
        train_row(plan, name, *rest)
        seconds = time.monotonic() - began
        record = read_record(plan.folder(name))
        assert record is not None
        rows.append((name, seconds, record["summary"]["seconds"]))

    return timed_row


def watched(parts: Parts, rows: list[tuple[str, float, float]]) -> ExitStack:
    """Watches the stage's own functions."""
    from pipelines import train
    from pipelines.training import job, loop
    from tasks.module import TaskModule

    build, batches, step = job.build, loop.training_batches, TaskModule.training_step

    def timed_build(*arguments: Any) -> Any:
        parts.end("job and record")
        net = build(*arguments)
        parts.end("build the net")
        return net

    def timed_batches(*arguments: Any, **options: Any) -> Iterator[Any]:
        parts.end("Lightning's set-up")
        found = batches(*arguments, **options)
        first = next(found)
        parts.end("first batch")
        yield first
        yield from found

    def timed_step(module: TaskModule, batch: Any) -> Any:  # Lightning looks at what it takes
        parts.end("hand it over")
        return step(module, batch)

    stack = ExitStack()
    for where, name, function in (
        (train, "_train_row", row_timer(parts, rows)),
        (job, "build", timed_build),
        (loop, "training_batches", timed_batches),
        (TaskModule, "training_step", timed_step),
    ):
        stack.enter_context(patch.object(where, name, function))
    return stack


def main() -> None:
    parts, rows = Parts(float(sys.argv[1])), list[tuple[str, float, float]]()
    from pipelines import train
    from pipelines.config import load

    parts.end("Python and light modules")
    params = load()
    parts.end("read params.yaml")
    import_all(parts)
    os.environ["ROWS_AT_ONCE"] = "1"  # rows train in this process, where they are watched
    with watched(parts, rows):
        train.train(params, params.scale, sys.argv[2])
    print(json.dumps({"parts": parts.found, "rows": rows}))


if __name__ == "__main__":
    main()
