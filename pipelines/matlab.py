"""MATLAB files (version 5) from an upstream archive: read by SciPy, after their size has been looked at.

SciPy unpacks whatever a file holds: a few hundred kilobytes can be gigabytes of zeros.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

MAX_BYTES = 1 << 28  # unpacked; upstream: below 10 MB
MAX_VALUES = 10_000_000  # that arrays claim to have; SciPy allocates what is claimed, whether it is there or not

_HEADER, _TAG = 128, struct.Struct("<II")  # MAT-File Format, MathWorks: header; type and bytes of a data element
_MATRIX, _COMPRESSED = 14, 15  # miMATRIX, miCOMPRESSED


def read_mat(data: bytes, where: str, squeeze: bool = True, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The variables of a MATLAB file by name; with `squeeze` without dimensions of one.

    Raises ValueError that begins with `where` for anything that is no such file, and for one that unpacks to more than
    `max_bytes`, or whose arrays claim more than MAX_VALUES, before that is done.
    """
    from scipy.io import loadmat

    try:
        plain = _unpacked(data, max_bytes)
        values = None if plain is None else sum(_claimed(plain, 0, len(plain)))
        if values is not None and values <= MAX_VALUES:
            variables: dict[str, Any] = loadmat(io.BytesIO(data), squeeze_me=squeeze)  # type: ignore[arg-type]
            return variables
    except Exception as error:  # SciPy's reader raises nearly anything on broken input
        raise ValueError(f"{where} is not a MATLAB file: {error!r}") from error
    if values is None:
        raise ValueError(f"{where} unpacks to more than {max_bytes:,} bytes")
    raise ValueError(f"{where} claims to have {values:,} values, allowed are {MAX_VALUES:,}")


def _unpacked(data: bytes, max_bytes: int) -> bytes | None:
    """All elements behind the header, compressed ones unpacked; None if there are more than `max_bytes` of them."""
    parts, total, position = [], 0, _HEADER
    while position + _TAG.size <= len(data):
        kind, size = _TAG.unpack_from(data, position)
        part = data[position : position + _TAG.size + size]
        if kind == _COMPRESSED:
            part = zlib.decompressobj().decompress(part[_TAG.size :], max_bytes + 1)
        parts.append(part)
        total += len(part)
        if total > max_bytes:
            return None
        position += _TAG.size + size
    return b"".join(parts)


def _claimed(data: bytes, position: int, end: int) -> Iterator[int]:
    """How many values each array among the elements data[position:end] claims, those within cells and structs too."""
    while position + _TAG.size <= end:
        kind, size = _TAG.unpack_from(data, position)
        if kind >> 16:  # a small element: type and size in two bytes each, and then its data
            position += _TAG.size
            continue
        position += _TAG.size
        if kind == _MATRIX and size:
            dimensions = position + 2 * _TAG.size  # behind the array's flags
            count = _TAG.unpack_from(data, dimensions)[1] // 4
            yield math.prod(struct.unpack_from(f"<{count}i", data, dimensions + _TAG.size))
            yield from _claimed(data, position, min(position + size, end))
        position += size + -size % 8
