"""What `fetch` leaves for `shard`: `manifest.json`, and beside each archive `<name>.verified.json`.

The manifest lists a data set's archives with bytes and checksum; that of one that is not given lists none, and has
`given: false`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.files import read_json

MANIFEST = "manifest.json"


def check_fetched(raw: Path, is_given: bool, command: str) -> None:
    """Pass if the manifest is of a data set that is given, or is not, as params.yaml says, and its archives are there
    as they were verified. Raises ValueError that names the file, and the command that mends it.
    """
    path = raw / MANIFEST
    if not path.exists():
        raise ValueError(f"{path} does not exist; make it with: {command}")
    manifest = read_json(path)
    if manifest.get("given", True) != is_given:
        was = "was null" if is_given else "was not null yet"
        raise ValueError(f"{path} is of the time when the origin in params.yaml {was}; make it anew with: {command}")
    for file in manifest["files"]:
        archive = raw / file["name"]
        size = archive.stat().st_size if archive.exists() else 0
        if size != file["bytes"]:
            raise ValueError(f"{archive} has {size} bytes, {path} says {file['bytes']}; mend it with: {command}")
        if verification(archive).get("mtime_ns") != archive.stat().st_mtime_ns:
            raise ValueError(f"{archive} was changed after it was verified; verify it again with: {command}")


def verification(archive: Path) -> dict[str, Any]:
    """What was written when the archive was verified: bytes, mtime_ns, checksum, origin; empty if it never was."""
    file = verification_file(archive)
    return dict(read_json(file)) if file.is_file() else {}


def verification_file(archive: Path) -> Path:
    """The file beside an archive that says so."""
    return archive.with_name(f"{archive.name}.verified.json")
