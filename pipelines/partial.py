"""The book-keeping of an unfinished download: `<name>.part` and, beside it, `<name>.part.json`.

The JSON is replaced after the bytes it speaks of have reached the disk, so it never promises a byte that is not there,
whenever the process or the machine dies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.files import read_json, write_json


@dataclass(frozen=True)
class Remote:
    """What a server says of a file: two equal answers are about the same bytes, if they name a version."""

    url: str
    size: int
    version: str  # its ETag, or else the time of its last change; empty where the server states neither


@dataclass
class Partial:
    """Which remote a `.part` file copies, and the [start, end) byte ranges of it that are safely on the disk."""

    remote: Remote
    done: list[tuple[int, int]] = field(default_factory=list)  # in order, apart from each other

    def add(self, start: int, end: int) -> None:
        """Count the bytes [start, end) as done; ranges that touch become one."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*self.done, (start, end)]):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        self.done = merged

    @property
    def done_bytes(self) -> int:
        """How many bytes need not be fetched again."""
        return sum(end - start for start, end in self.done)

    def missing(self, chunk: int) -> Iterator[tuple[int, int]]:
        """What is still to be fetched, in order, in pieces of at most `chunk` bytes."""
        starts = [0, *(end for _, end in self.done)]
        ends = [*(start for start, _ in self.done), self.remote.size]
        for start, end in zip(starts, ends, strict=True):
            for at in range(start, end, chunk):
                yield at, min(at + chunk, end)


def part_of(path: Path) -> Path:
    """`<name>.part`, where the bytes of `<name>` gather."""
    return path.with_name(f"{path.name}.part")


def sidecar(part: Path) -> Path:
    """`<name>.part.json` of `<name>.part`."""
    return part.with_name(f"{part.name}.json")


def record(part: Path, partial: Partial) -> None:
    """Write down what is done; its bytes must be on the disk already."""
    write_json(sidecar(part), asdict(partial))


def resume(part: Path, url: str) -> Partial | None:
    """What is known of a `.part` of `url`; None where there is nothing to go on from."""
    if not part.is_file() or not sidecar(part).is_file():
        return None
    known = read_json(sidecar(part))
    partial = Partial(Remote(**known["remote"]), [(start, end) for start, end in known["done"]])
    is_this = partial.remote.url == url and part.stat().st_size == partial.remote.size
    return partial if is_this else None


def discard(part: Path) -> None:
    """Delete a `.part` and its sidecar."""
    part.unlink(missing_ok=True)
    sidecar(part).unlink(missing_ok=True)
