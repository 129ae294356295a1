"""Finished rows where DVC does not remove them.

DVC removes what a stage makes before it runs the stage again, unless it is told to let it be; but what it lets be, it
neither keeps in its run cache nor fetches from there. So the train stage's rows are an output like any other, and each
is linked into a folder beside them too. Where that has not got a row, as after `dvc pull`, it comes from DVC's cache.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.files import link
from pipelines.training import rows

LOCK = Path("dvc.lock")


def keep(scale: str, row: Path) -> None:
    """Link a finished row to where it stays."""
    _link(row, paths.kept_row(scale, row.name))


def put_back(scale: str, folders: Iterable[Path]) -> None:
    """Put rows that are gone from `folders`, all of one table, back from where they are kept, as far as they are."""
    gone = [folder for folder in folders if rows.read_record(folder) is None]
    for folder in gone:
        if rows.read_record(paths.kept_row(scale, folder.name)) is not None:
            _link(paths.kept_row(scale, folder.name), folder)
    gone = [folder for folder in gone if rows.read_record(folder) is None]
    if not gone:
        return
    made = _made(gone[0].parent)
    for folder in gone:
        if folder.name in made:
            _from_cache(made[folder.name], folder)


def _link(row: Path, target: Path) -> None:
    record = rows.read_record(row)
    assert record is not None, f"{row} is no finished row"
    rows.finish([path for path in sorted(row.iterdir()) if path.name != rows.RECORD], record, target)


def _made(output: Path) -> dict[str, dict[str, Path]]:
    """By row and file name, where DVC's cache has what dvc.lock says was last in an output folder.

    A folder is a JSON list there, of paths and MD5 digests; a file is named by its digest
    (https://doc.dvc.org/user-guide/project-structure/internal-files).
    """
    digest = _locked_digest(output)
    if digest is None:
        return {}
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    cache = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())  # noqa: S603

    def place(digest: str) -> Path:
        return cache / "files" / "md5" / digest[:2] / digest[2:]

    listing = place(digest)
    found: dict[str, dict[str, Path]] = {}
    for entry in json.loads(listing.read_text()) if listing.exists() else []:
        row, _, name = entry["relpath"].partition("/")
        found.setdefault(row, {})[name] = place(entry["md5"])
    return found


def _locked_digest(output: Path) -> str | None:
    import yaml

    lock: dict[str, Any] = yaml.load(LOCK.read_bytes(), yaml.CSafeLoader) if LOCK.exists() else {}
    outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", [])]
    return next((out["md5"] for out in outs if out["path"] == output.as_posix()), None)


def _from_cache(files: dict[str, Path], folder: Path) -> None:
    """Put a row's files in place; nothing where the cache has not got them all."""
    if rows.RECORD not in files or not all(path.exists() for path in files.values()):
        return
    fresh = folder.with_name(f".{folder.name}.cached")
    fresh.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        link(path, fresh / name)
    shutil.rmtree(folder, ignore_errors=True)  # without a record it is no row
    fresh.replace(folder)
