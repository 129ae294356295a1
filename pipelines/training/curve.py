"""The curve of a run: averaged rows of metrics over the global step, appended to a JSON Lines file beside the run.

MLflow and the report read this file; nothing that reads it can delay training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_curve(path: Path, up_to_step: int | None = None) -> list[dict[str, Any]]:
    """The rows of a curve file in order; none where there is no file. A last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    rows = [json.loads(line) for line in lines[:-1]]  # what follows the last newline is empty or torn
    return [row for row in rows if up_to_step is None or row["step"] <= up_to_step]


class Curve:
    """Writes one row every `every` steps and at step `last`: the means of what `add` was given since the row before.

    Opened at `step`, it first drops the rows beyond it: those steps were lost and will be made again.
    """

    def __init__(self, path: Path, every: int, last: int, step: int) -> None:
        self.every, self.last = every, last
        rows = read_curve(path, up_to_step=step)
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)  # a row is on its way as soon as its line ends
        self._begin()

    def add(self, step: int, samples: int, values: Mapping[str, Any]) -> None:
        """Take in the metrics of the update that made the count of updates `step`: numbers or scalar tensors."""
        self._samples += samples
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if step % self.every == 0 or step == self.last:
            means = {name: float(total) / self._count for name, total in self._sums.items()}
            rate = self._samples / max(time.monotonic() - self._since, 1e-9)
            row = {"step": step, "time": time.time(), **means, "images_per_second": rate}
            self._file.write(json.dumps(row) + "\n")
            self._begin()

    def close(self) -> None:
        """No more rows will come."""
        self._file.close()

    def _begin(self) -> None:
        self._sums: dict[str, Any] = {}
        self._count = self._samples = 0
        self._since = time.monotonic()
