"""What becomes of an extra worker that fails by an error of its own, and how the run tells of it.

Ray starts a task anew whose process or machine dies, and not one that raises. What a worker logs stays on its machine:
what the user is to know of it goes by way of the run's folder.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from pipelines.training.curve import read_curve
from pipelines.training.snapshots import reason

PAUSE_SECONDS = 5.0  # what has just failed may fail again at once
PREFIX = "extra_worker_"

log = logging.getLogger(__name__)


def persevere(work: Callable[[], object], folder: Path, rank: int, max_failures: int) -> None:
    """Do `work`, and anew after each of `max_failures` errors (-1: of any number); after one more the worker gives up.

    Raises nothing: a run does without those who join it. Each error is kept in the run's folder, for `failures`.
    """
    for failed in count(1):
        try:
            work()
        except Exception as error:  # noqa: BLE001 - kept and told
            line = json.dumps({"time": time.time(), "error": f"{type(error).__name__}: {reason(error)}"})
            with (folder / f"{PREFIX}{rank}.jsonl").open("a") as file:
                file.write(f"{line}\n")
            if 0 <= max_failures < failed:
                return
            time.sleep(PAUSE_SECONDS)
        else:
            return


def failures(folder: Path) -> dict[int, int]:
    """How often each extra worker of a run has failed, of those that have; says so in a line for each."""
    found = {}
    for path in folder.glob(f"{PREFIX}*.jsonl"):
        rank, rows = int(path.stem.removeprefix(PREFIX)), read_curve(path)
        found[rank] = len(rows)
        log.warning(
            "%s: extra worker %d failed %d times, at last by %s", folder.name, rank, len(rows), rows[-1]["error"]
        )
    return dict(sorted(found.items()))
