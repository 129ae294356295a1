"""The room that a cache of shards takes on a disk: counted and made while a lock is held, which processes share.

A shard is its tar and the offsets beside it. While it is being fetched, both have another name, and their full size
from the beginning, so that they count; beside them lies a lock, which is held for as long.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def make_room(folder: Path, max_bytes: int, wanted: int) -> bool:
    """Remove shards, those first whose last use is longest ago, until `wanted` bytes fit; whether they do then.

    What is being fetched stays, but not what a process was fetching when it was killed.
    """
    total, shards = 0, []
    for path in folder.glob("*/*"):
        if path.suffix not in (".tar", ".npy", ".part"):
            continue  # an index, a lock
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # a failed download's, removed since
        total += status.st_size
        if path.suffix == ".tar":
            shards.append((status.st_mtime_ns, files_of(path)))
        elif path.name.endswith(".tar.part") and not _is_held(lock_of(path.with_suffix(""))):
            files = files_of(path.with_suffix(""))
            shards.append((0, [*files, *map(part_of, files)]))
    for _, files in sorted(shards):
        if total + wanted <= max_bytes:
            break
        total -= remove(files)
    return total + wanted <= max_bytes


def remove(files: Iterable[Path]) -> int:
    """Remove what there is of some files; how many bytes went with them."""
    removed = 0
    for file in files:
        with suppress(FileNotFoundError):
            size = file.stat().st_size
            file.unlink()
            removed += size
    return removed


def files_of(tar: Path) -> list[Path]:
    """A shard's tar and its offsets."""
    return [tar, tar.with_suffix(".npy")]


def part_of(path: Path) -> Path:
    """Where a file is while it is being fetched."""
    return path.with_name(f"{path.name}.part")


def lock_of(tar: Path) -> Path:
    """Held by whoever fetches the shard."""
    return tar.with_suffix(".lock")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock among threads and processes; the kernel lets go of it for one that is killed."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_held(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
