"""Members of tar archives, read in place: nothing is ever extracted to disk, and no name of a member becomes a path.

Sources list the members of an archive once, from the headers alone, and read their bytes by offset.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast


class Member(NamedTuple):
    """A regular file in an archive: `size` bytes at `offset` of the archive's (uncompressed) file."""

    name: str
    offset: int
    size: int


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The archive's bytes; a name that ends in .gz or .tgz is decompressed on the fly.

    Raises ValueError that names the archive if it is absent, or turns out cut or not gzip while it is read.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    with gzip.open(path) if path.suffix in (".gz", ".tgz") else path.open("rb") as stream:
        try:
            yield cast(BinaryIO, stream)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is cut or is not gzip: {error}") from error


def members(
    file: BinaryIO, archive: str, *, max_members: int, max_bytes: int, within: Member | None = None
) -> Iterator[Member]:
    """The regular files of the tar in `file`, or of the tar that is its member `within`; directories are passed over.

    `archive` names it in errors. Raises ValueError for a member that is a link, a device, sparse or anything else
    than a plain file, for a name that is absolute or climbs (`..`) or comes twice, for more than `max_members`, for a
    member above `max_bytes`, and where the archive ends without its end mark. Extended (PAX, GNU) headers, which
    could contradict all that, are refused too: `tar --format=ustar` writes none.
    """
    names: set[str] = set()
    headers = 0
    position, stop = (within.offset, within.offset + within.size) if within else (0, None)
    while True:
        file.seek(position)
        block = file.read(tarfile.BLOCKSIZE if stop is None else max(0, min(tarfile.BLOCKSIZE, stop - position)))
        if len(block) < tarfile.BLOCKSIZE:
            raise ValueError(f"{archive} is cut: it ends at byte {position} without an end mark")
        if not any(block):
            return
        info = _header(block, archive, position)
        _check(info, archive, max_bytes)
        headers += 1  # folders too: an endless row of them would keep a reader busy
        if headers > max_members:
            raise ValueError(f"{archive} has more than {max_members} members")
        offset = position + tarfile.BLOCKSIZE
        position = offset + info.size + -info.size % tarfile.BLOCKSIZE
        if stop is not None and position > stop:
            raise ValueError(f"{archive}: member {info.name!r} goes beyond the archive's end")
        if info.isdir():
            continue
        if info.name in names:
            raise ValueError(f"{archive}: two members are named {info.name!r}")
        names.add(info.name)
        yield Member(info.name, offset, info.size)


def read(file: BinaryIO, archive: str, member: Member) -> bytes:
    """The member's bytes. Raises ValueError that names archive and member if the archive ends before they do."""
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) != member.size:
        raise ValueError(f"{archive} is cut: member {member.name!r} has {len(data)} of its {member.size} bytes")
    return data


def _header(block: bytes, archive: str, position: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise ValueError(f"{archive}: no tar header at byte {position} ({error})") from None


def check_name(name: str, archive: str) -> None:
    """Pass if a member's name stays inside its archive. Raises ValueError that names both."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{archive}: member name {name!r} is not a path inside the archive")


def _check(info: tarfile.TarInfo, archive: str, max_bytes: int) -> None:
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        raise ValueError(f"{archive}: member {info.name!r} is not a plain file (tar type {info.type!r})")
    check_name(info.name, archive)
    if not 0 <= info.size <= max_bytes or (info.isdir() and info.size):
        raise ValueError(f"{archive}: member {info.name!r} claims {info.size} bytes, allowed are {max_bytes}")
