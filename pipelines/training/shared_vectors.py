"""Vectors that a worker and the parameter servers of its own machine both see, so that none travels between them.

The memory is the worker's: an anonymous file, which the servers open through the worker's entry in /proc. It is gone
with the last process that has it, however that one ends. Only one side touches it at a time: a worker fills it before
it asks a server, and waits for the answer before it looks at it again.
"""

from __future__ import annotations

import mmap
import os
import secrets
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGNED = 16  # floats: 64 bytes, a cache line


class Window(NamedTuple):
    """A server's part of a worker's shared vectors, and where they are.

    machine: see `this_machine`. pid, file: the worker's process and its descriptor there. token: of this memory alone.
    lengths: of the whole vectors (P, S); weights, statistics: first and last + 1 element of the part of each.
    """

    machine: str
    pid: int
    file: int
    token: str
    lengths: tuple[int, int]
    weights: tuple[int, int]
    statistics: tuple[int, int]


@cache
def this_machine() -> str | None:
    """What processes that can open each other's memory have in common: boot, process numbers, user; None: no such
    memory here, as outside Linux.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not hasattr(os, "memfd_create") or not boot.exists():
        return None
    return f"{boot.read_text().strip()}/{Path('/proc/self/ns/pid').stat().st_ino}/{os.geteuid()}"


class SharedVectors(NamedTuple):
    """gradient, weights: (P,) float32; before, after: (S,), the BatchNorm statistics around a step."""

    gradient: NDArray[np.float32]
    weights: NDArray[np.float32]
    before: NDArray[np.float32]
    after: NDArray[np.float32]

    def part(self, weights: slice, statistics: slice) -> SharedVectors:
        """Views of one server's slices."""
        return SharedVectors(
            self.gradient[weights], self.weights[weights], self.before[statistics], self.after[statistics]
        )


class Room:
    """A worker's shared vectors: P weights, S statistics, all zero at first."""

    def __init__(self, weights: int, statistics: int) -> None:
        machine = this_machine()
        assert machine is not None, "ask this_machine first"
        self.lengths = (weights, statistics)
        self.file = os.memfd_create("shared_vectors")
        os.ftruncate(self.file, _size(self.lengths))
        self.vectors = _mapped(self.file, self.lengths)
        self._window = Window(machine, os.getpid(), self.file, secrets.token_hex(8), self.lengths, (0, 0), (0, 0))

    def window(self, weights: slice, statistics: slice) -> Window:
        """What a server is told of its part."""
        return self._window._replace(
            weights=(weights.start, weights.stop), statistics=(statistics.start, statistics.stop)
        )


class Windows:
    """A server's views of its workers' vectors, of each worker the last."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Window, SharedVectors]] = {}

    def through(self, worker: int, window: Window | None) -> SharedVectors | None:
        """The part that `window` is of; None where it is of another machine, or its process is gone or is closed."""
        if window is None or window.machine != this_machine():
            return None
        known = self._open.get(worker)
        if known is None or known[0] != window:
            try:
                vectors = _opened(window)
            except OSError:
                self._open.pop(worker, None)
                return None
            known = self._open[worker] = (window, vectors)
        return known[1]


def _opened(window: Window) -> SharedVectors:
    file = os.open(f"/proc/{window.pid}/fd/{window.file}", os.O_RDWR | os.O_CLOEXEC)
    try:
        return _mapped(file, window.lengths).part(slice(*window.weights), slice(*window.statistics))
    finally:
        os.close(file)  # a mapping outlives it


def _aligned(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED


def _size(lengths: tuple[int, int]) -> int:
    return max(4 * 2 * sum(map(_aligned, lengths)), mmap.PAGESIZE)


def _mapped(file: int, lengths: tuple[int, int]) -> SharedVectors:
    memory = mmap.mmap(file, _size(lengths))
    vectors, start = [], 0
    for length in (lengths[0], lengths[0], lengths[1], lengths[1]):
        vectors.append(np.frombuffer(memory, np.float32, length, 4 * start))
        start += _aligned(length)
    return SharedVectors(*vectors)
