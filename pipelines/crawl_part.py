"""One part of a crawl on the disk: what was noted of it, whenever the process or the machine died, and its completion.

Under a temporary name that holds the part's digest, images are appended to a tar (`00000012.jpg`, then `00000012.json`
with key, URL, sha256 and fields) and dead URLs to a list, each in one write. Opening a part again takes up what is
whole and drops the torn end. The record is what makes a part complete; the final names follow it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from pipelines.archives import Member, members, read
from pipelines.files import read_json, write_json
from pipelines.transport import kind

if TYPE_CHECKING:
    from pipelines.crawl import Wanted

MAX_MEMBERS = 1_000_000
MAX_BYTES = 1 << 40
END = bytes(2 * tarfile.BLOCKSIZE)


class Paths(NamedTuple):
    """Where a part lies: while it is filled, and when it is complete."""

    tar_part: Path
    dead_part: Path
    tar: Path
    dead: Path
    record: Path


def paths(folder: Path, number: int, digest: str) -> Paths:
    """The names of part `number` whose piece of the list has this digest."""
    stem = f"part-{number:06d}"
    parts = (f"{stem}.{digest[:16]}.{end}.part" for end in ("tar", "dead"))
    return Paths(*(folder / name for name in (*parts, f"{stem}.tar", f"{stem}.dead.jsonl", f"{stem}.json")))


def finished(at: Paths, digest: str) -> dict[str, Any] | None:
    """The record of a part that is complete and still what is wanted; None: it is to be filled."""
    if not at.record.is_file() or (record := dict(read_json(at.record)))["digest"] != digest:
        return None
    for part, final in ((at.dead_part, at.dead), (at.tar_part, at.tar)):
        if part.exists():  # killed between the record and this
            part.replace(final)
    is_whole = at.tar.is_file() and at.dead.is_file() and at.tar.stat().st_size == record["bytes"]
    return record if is_whole else None


class OpenPart:
    """A part that is being filled with the images `first`, `first` + 1, ... of the list."""

    def __init__(self, at: Paths, digest: str, first: int, wanted: list[Wanted]) -> None:
        """Goes on from what lies there under this digest; complete parts of another one are removed."""
        for path in (at.record, at.tar, at.dead):
            path.unlink(missing_ok=True)
        self.at, self.digest = at, digest
        self.wanted = dict(enumerate(wanted, start=first))
        self.dead: dict[int, dict[str, str]] = {}  # number -> URL -> cause, in the order of trying
        self._tar = self._open(at.tar_part)
        self.held = _scan_tar(self._tar, str(at.tar_part))
        self._list = self._open(at.dead_part)
        for line in _scan_lines(self._list):
            self.dead.setdefault(line["number"], {})[line["url"]] = line["cause"]
        self._size = self._tar.seek(0)
        self._sha256 = hashlib.file_digest(self._tar, "sha256")
        self.waiting = {number for number, item in self.wanted.items() if number not in self.held}
        self.waiting -= {number for number in self.waiting if not self.untried(number)}

    def untried(self, number: int) -> list[str]:
        """The URLs of an image that are not known to be dead."""
        return [url for url in self.wanted[number].urls if url not in self.dead.get(number, {})]

    def add(self, number: int, url: str, image: bytes) -> None:
        """Note an image that came from `url`."""
        item = self.wanted[number]
        known = {"key": item.key, "url": url, "sha256": hashlib.sha256(image).hexdigest(), "fields": item.fields}
        data = _member(f"{number:08d}.{kind(image)}", image)
        data += _member(f"{number:08d}.json", json.dumps(known).encode())
        self._tar.seek(0, os.SEEK_END)
        _write(self._tar, data)
        self._sha256.update(data)
        self.held.add(number)

    def bury(self, number: int, url: str, cause: str) -> None:
        """Note that `url` gives no image."""
        self.dead.setdefault(number, {})[url] = cause
        line = {"number": number, "key": self.wanted[number].key, "url": url, "cause": cause}
        _write(self._list, json.dumps(line).encode() + b"\n")

    def finish(self) -> dict[str, Any]:
        """Give the part its final names and return its record. An image's cause of death is that of its first URL."""
        lost = sorted(self.wanted.keys() - self.held)
        causes = Counter(self.dead[number][self.wanted[number].urls[0]] for number in lost)
        self._tar.seek(0, os.SEEK_END)
        _write(self._tar, END)
        self._sha256.update(END)
        for file in (self._tar, self._list):
            os.fsync(file.fileno())
        record = {
            "digest": self.digest, "wanted": len(self.wanted), "fetched": len(self.held),
            "dead": dict(sorted(causes.items())), "bytes": self._tar.tell(), "sha256": self._sha256.hexdigest(),
        }  # fmt: skip
        self.close()
        write_json(self.at.record, record)
        self.at.dead_part.replace(self.at.dead)
        self.at.tar_part.replace(self.at.tar)
        return record

    def close(self) -> None:
        """Let go of the files; what was noted stays."""
        self._tar.close()
        self._list.close()

    @staticmethod
    def _open(path: Path) -> FileIO:
        return FileIO(path, "r+" if path.exists() else "w+")


def _scan_tar(file: FileIO, name: str) -> set[int]:
    """The numbers of the images that are whole, with their JSON; what comes after them is cut off."""
    held: set[int] = set()
    end = 0
    with suppress(ValueError):  # where a kill tore it, or there is no more
        found = members(cast(BinaryIO, file), name, max_members=MAX_MEMBERS, max_bytes=MAX_BYTES)
        for member in found:
            fields = next(found, None)
            if fields is None:
                break
            read_image(cast(BinaryIO, file), name, member, fields)
            held.add(int(member.name.partition(".")[0]))
            end = fields.offset + fields.size + -fields.size % tarfile.BLOCKSIZE
    file.truncate(end)
    return held


def read_image(file: BinaryIO, name: str, image: Member, fields: Member) -> tuple[bytes, dict[str, Any]]:
    """An image of a part and its JSON. Raises ValueError where they do not belong together, or a byte is another."""
    if fields.name != f"{image.name.partition('.')[0]}.json":
        raise ValueError(f"{name}: member {image.name!r} is followed by {fields.name!r}")
    known, data = json.loads(read(file, name, fields)), read(file, name, image)
    if hashlib.sha256(data).hexdigest() != known["sha256"]:
        raise ValueError(f"{name}: member {image.name!r} is corrupt: it has not the sha256 of its JSON")
    return data, known


def _scan_lines(file: FileIO) -> list[dict[str, Any]]:
    """The lines that are whole; what comes after them is cut off."""
    lines: list[dict[str, Any]] = []
    end = 0
    with suppress(ValueError):  # where a kill tore it
        for line in file.readall().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            lines.append(json.loads(line))
            end += len(line)
    file.truncate(end)
    file.seek(end)
    return lines


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _write(file: FileIO, data: bytes) -> None:
    """Write all of it; a full disk raises."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
