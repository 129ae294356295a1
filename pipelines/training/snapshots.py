"""What is kept of a run while it trains: written whole or not at all, checked before it is read, beside the one before.

A file here is a zip of torch's, which holds a CRC-32 of every part. torch writes these and does not compare them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

log = logging.getLogger(__name__)


def previous(path: Path) -> Path:
    """Where `save_snapshot` keeps the one before."""
    return path.with_name(f"{path.name}.previous")


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """`torch.save` under a temporary name, flushed to the disk, then renamed.

    Raises OSError that names the file where the disk refuses; what was there before is there still, and nothing else.
    """
    _write(content, path).replace(path)


def save_snapshot(content: Mapping[str, Any], path: Path) -> None:
    """As `save_atomically`; what was there before is kept as `previous(path)`, should this one come to be damaged."""
    fresh = _write(content, path)
    if path.exists():
        path.replace(previous(path))
    fresh.replace(path)


def load_snapshot(path: Path) -> dict[str, Any]:
    """What was saved; nothing in it is unpickled but tensors and plain containers.

    Raises ValueError that names the file and what is wrong with it where it is damaged.
    """
    try:
        content: dict[str, Any] = read_checked(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise ValueError(f"{path} is damaged: {reason(error)}") from None
    return content


def read_checked(path: Path) -> Any:
    """What is in a file of torch's. Raises what a damaged one makes zipfile or torch raise, and ValueError where a part
    is not what its checksum says.
    """
    with ZipFile(path) as file:
        wrong = file.testzip()
    if wrong is not None:
        raise ValueError(f"the checksum of {wrong} is another")
    return torch.load(path, map_location="cpu", weights_only=True)


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def load_newest(path: Path) -> dict[str, Any] | None:
    """What `save_snapshot` saved last, or, with a warning, before that where the last is damaged; None: nothing yet.

    Changes no file, so that all processes of a run find the same. Raises ValueError where both are damaged.
    """
    kept = previous(path)
    try:
        return load_snapshot(path)
    except FileNotFoundError:  # a kill came between the two renames, or there is nothing
        return load_snapshot(kept) if kept.exists() else None
    except ValueError as error:
        damage = error
    try:
        content = load_snapshot(kept)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{damage}; {error}; delete {path.name}* to begin from the start") from None
    log.warning("%s; going on from the one before, %s", damage, kept)
    return content


def remove(path: Path) -> None:
    """Delete a snapshot and the one before it."""
    for file in (path, previous(path)):
        file.unlink(missing_ok=True)


def _write(content: Mapping[str, Any], path: Path) -> Path:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch cannot end a file that it could not write, and says that in place of why.
        refusal = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refusal, OSError):
            raise
        raise OSError(refusal.errno, refusal.strerror, str(path)) from None
    return temporary
