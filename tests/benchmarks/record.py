"""What every benchmark writes with `--json`, in one form: its figures round by round, the machine, the versions.

Needs numpy only: `bench_gpu` runs where most of the project's packages are not installed.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.files import write_json

ROOT = Path(__file__).parents[2]
BETTER = ("higher", "lower")
SECOND = {"s": 1, "ms": 10**3, "us": 10**6}
PACKAGES = (
    *("torch", "torchvision", "numpy", "ray", "pytorch-lightning", "numba", "scipy"),
    *("simplejpeg", "opencv-python-headless", "pillow", "webdataset"),
    *("timm", "nvidia-dali-cuda120", "pycocotools", "faster-coco-eval", "s2geometry"),
)


@dataclass(frozen=True)
class Figure:
    """One thing measured once a round.

    values: one a round, finite and not negative. unit: "ratio", "us", "images/s" and the like; a ratio is to `peer`,
    measured in the same round, and says more across machines than the others. better: "higher" or "lower".
    Raises ValueError where a value or `better` is none of those.
    """

    values: list[float]
    unit: str
    better: str
    peer: str | None = None

    def __post_init__(self) -> None:
        if self.better not in BETTER:
            raise ValueError(f"better is {self.better!r}, not one of {', '.join(BETTER)}")
        if not self.values or not all(math.isfinite(value) and value >= 0 for value in self.values):
            raise ValueError(f"values are {self.values}, not one or more finite numbers from 0 on")


@dataclass(frozen=True)
class Record:
    """A run of a benchmark. date: UTC, ISO 8601. details: what else it tells, in a form of its own."""

    benchmark: str
    command: list[str]
    date: str
    machine: dict[str, str | int | None]
    versions: dict[str, str | None]
    figures: dict[str, Figure]
    details: dict[str, Any]


class Spread(NamedTuple):
    """Of the values of rounds: the median, the 10th and the 90th percentile, interpolated."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    return Spread(*np.percentile(list(values), [50, 10, 90]).tolist())


def said(values: Iterable[float], digits: int) -> str:
    """Their spread in words: `2.50 (2.41 to 2.66)`."""
    middle, low, high = (f"{value:,.{digits}f}" for value in spread(values))
    return f"{middle} ({low} to {high})"


def ratios(numerators: Iterable[float], denominators: Iterable[float]) -> list[float]:
    """Round by round. Raises ValueError where one has more rounds than the other."""
    return [float(a / b) for a, b in zip(numerators, denominators, strict=True)]


def faster(title: str, ours: Iterable[float], theirs: Iterable[float], peer: str, unit: str) -> dict[str, Figure]:
    """Two figures from seconds, round by round: `title`, theirs over ours, and `title, time`, ours in `unit`."""
    own = list(ours)
    return {
        title: Figure(ratios(theirs, own), "ratio", "higher", peer),
        f"{title}, time": Figure([float(SECOND[unit] * seconds) for seconds in own], unit, "lower"),
    }


def write(path: Path, benchmark: str, figures: Mapping[str, Figure], details: Mapping[str, Any]) -> None:
    """Replace `path` at once by the record of this run of `benchmark`, a module of this folder. Makes its folder."""
    command = ["python", "-m", f"tests.benchmarks.{benchmark}", *sys.argv[1:]]
    date = datetime.now(UTC).isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    record = Record(benchmark, command, date, machine(), versions(), dict(figures), dict(details))
    write_json(path, asdict(record))


def machine() -> dict[str, str | int | None]:
    """The processor's model, the cores this process may use, all memory, and the name of the GPU or None."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),  # ARM's kernels name no model
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),  # less what kernels keep
        "gpu": gpu(),
    }


def gpu() -> str | None:
    """The first one's name as torch has it; None without one, or without torch."""
    if find_spec("torch") is None:
        return None
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def versions() -> dict[str, str | None]:
    """Python's, of each of PACKAGES (None: not installed), and the project's commit."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {**found, "commit": commit()}


def commit() -> str | None:
    """The project's, with `-dirty` after it where files differ; None where it is no repository, or without git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return answer.stdout.strip() or None
