"""What is done with files on a disk whatever is in them: hash, lock, replace at once, show how far one is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def digest(path: Path, algorithm: str) -> str:
    """`<algorithm>:<hex>` of the file's bytes."""
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    block = memoryview(bytearray(2**22))
    with path.open("rb", buffering=0) as file, progress(f"{algorithm} of {path.name}", path.stat().st_size) as advance:
        while count := file.readinto(block):
            hasher.update(block[:count])
            advance(count)
    return f"{algorithm}:{hasher.hexdigest()}"


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON at once: a reader, or a run after a power cut, sees the old or the new one."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises ValueError that names the file where something else did."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it to start again") from None


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, in no more space; a copy where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put `files`, by their paths in it, in place as a whole folder, instead of what was left there before."""
    fresh = folder.with_name(f".{folder.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    for name, content in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it: another process that wants it waits here, and a dead one lets it go."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"{folder}: another process is at work in it; waiting for that to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal, nothing elsewhere; yields the function that moves it by bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    off = not console.is_terminal
    with Progress(TextColumn("{task.description}"), *bar, console=console, transient=True, disable=off) as display:
        task = display.add_task(label, total=total, completed=done)
        yield lambda count: display.advance(task, count)


def human(size: float) -> str:
    """A number of bytes in the decimal units that publishers state: `6.7 GB`."""
    from rich.filesize import decimal

    return decimal(int(size))
