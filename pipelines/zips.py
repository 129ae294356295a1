"""Members of zip archives, read in place and one at a time: nothing is extracted, no name becomes a path.

The directory at the archive's end is read once; a member can then be read anywhere by its offset alone, so that the
pieces of a large archive can be handed to workers.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipelines.archives import check_name

_LOCAL = struct.Struct("<4s5H3I2H")  # APPNOTE.TXT 4.3.7: signature, ..., length of the name, length of the extra field
_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x1
# Signatures of 4.3.16 and 4.3.14; the size of the directory is in bytes 12 to 15, or in bytes 40 to 47.
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"
_END_BYTES = (1 << 16) + 200  # how far from the archive's end these records can lie: behind them, a comment of 64 kB
_FILE_TYPES = (0, 0o100000)  # of a Unix mode: not said, regular file
MAX_ENTRY = 1 << 10  # bytes of the directory for a member, most of them its name
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ZipMember(NamedTuple):
    """A regular file in a zip: `packed` bytes after the local header at `header`, which unpack to `size` bytes."""

    name: str
    header: int
    packed: int
    size: int
    method: int
    crc: int


def zip_members(path: Path, *, max_members: int, max_bytes: int) -> list[ZipMember]:
    """The regular files of a zip, in the order of its directory; folders are passed over.

    Raises ValueError that names archive and member for what is absent or no zip, for links and other special files, for
    an encrypted member or one packed in another way than by deflate, for a name that is absolute or climbs or comes
    twice, for more than `max_members`, for a member above `max_bytes`, packed or not, and for one that lies outside the
    archive or shares bytes with another: many names for the same bytes are a bomb.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if _directory_bytes(path) > max_members * MAX_ENTRY:  # `zipfile` would hold all of it
        raise ValueError(f"{path} has more than {max_members} members, or names without end")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut or is not a zip archive: {error}") from None
    if len(infos) > max_members:
        raise ValueError(f"{path} has more than {max_members} members")
    found: dict[str, ZipMember] = {}
    for info in infos:
        check_name(info.filename, str(path))
        if (info.external_attr >> 16) & 0o170000 not in (*_FILE_TYPES, 0o040000 if info.is_dir() else 0):
            raise ValueError(f"{path}: member {info.filename!r} is not a plain file")
        if info.is_dir():
            continue
        if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
            raise ValueError(f"{path}: member {info.filename!r} is encrypted or packed by method {info.compress_type}")
        if (size := max(info.file_size, info.compress_size)) > max_bytes:
            raise ValueError(f"{path}: member {info.filename!r} claims {size} bytes, allowed are {max_bytes}")
        if info.filename in found:
            raise ValueError(f"{path}: two members are named {info.filename!r}")
        found[info.filename] = ZipMember(
            info.filename, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC
        )
    _check_places(path, list(found.values()))
    return list(found.values())


def _directory_bytes(path: Path) -> int:
    """How long the archive's directory says that it is; 0 where there is none."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_BYTES))
        tail = file.read()
    at = tail.rfind(_END)
    claimed = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if claimed == 0xFFFFFFFF:
        at = tail.rfind(_END_64)
        claimed = int.from_bytes(tail[at + 40 : at + 48], "little") if at >= 0 else 0
    return claimed


def _check_places(path: Path, members: list[ZipMember]) -> None:
    """Pass if every member has bytes of its own in the archive."""
    end, size = 0, path.stat().st_size
    for member in sorted(members, key=lambda member: member.header):
        begin, end = end, member.header + _LOCAL.size + member.packed  # and its name, which need not be the directory's
        if member.header < begin or end > size:
            raise ValueError(f"{path}: member {member.name!r} lies within another or beyond the archive's end")


def read_zip(file: BinaryIO, archive: str, member: ZipMember) -> tuple[bytes, int | None]:
    """A member's bytes, and where they lie in `file` if they are not packed.

    Never unpacks more than the directory says. Raises ValueError that names archive and member where the archive is
    cut, or the bytes are not those that the directory speaks of (size, CRC).
    """
    file.seek(member.header)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or head[:4] != _SIGNATURE:
        raise ValueError(f"{archive}: member {member.name!r} has no header at byte {member.header}")
    *_, name_length, extra_length = _LOCAL.unpack(head)
    offset = member.header + _LOCAL.size + name_length + extra_length
    file.seek(offset)
    data = file.read(member.packed)
    is_whole = len(data) == member.packed
    if is_whole and member.method == zipfile.ZIP_DEFLATED:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = unpacker.decompress(data, member.size + 1)
        except zlib.error as error:
            raise ValueError(f"{archive}: member {member.name!r} does not unpack: {error}") from None
        is_whole = unpacker.eof
    if not is_whole or len(data) != member.size or zlib.crc32(data) != member.crc:
        raise ValueError(f"{archive}: member {member.name!r} is cut or corrupt")
    return data, offset if member.method == zipfile.ZIP_STORED else None
