"""MATLAB files (version 5) from an upstream archive: read by SciPy, after their size has been looked at.

SciPy unpacks whatever a file holds: a few hundred kilobytes can be gigabytes of zeros.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

MAX_BYTES = 1 << 28  # unpacked; upstream: below 10 MB

_HEADER, _TAG = 128, struct.Struct("<II")  # MAT-File Format, MathWorks: header; type and bytes of a data element
_COMPRESSED = 15  # miCOMPRESSED


def read_mat(data: bytes, where: str, squeeze: bool = True, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The variables of a MATLAB file by name; with `squeeze` without dimensions of one.

    Raises ValueError that begins with `where` for anything that is no such file, and for one that unpacks to more than
    `max_bytes`, before that is done.
    """
    from scipy.io import loadmat

    try:
        size = _unpacked(data, max_bytes)
        if size <= max_bytes:
            variables: dict[str, Any] = loadmat(io.BytesIO(data), squeeze_me=squeeze)  # type: ignore[arg-type]
            return variables
    except Exception as error:  # SciPy's reader raises nearly anything on broken input
        raise ValueError(f"{where} is not a MATLAB file: {error!r}") from error
    raise ValueError(f"{where} unpacks to more than {max_bytes:,} bytes")


def _unpacked(data: bytes, max_bytes: int) -> int:
    """Bytes of all elements, compressed ones unpacked; the walk ends once there are more than `max_bytes`."""
    total, position = 0, _HEADER
    while position + _TAG.size <= len(data) and total <= max_bytes:
        kind, size = _TAG.unpack_from(data, position)
        position += _TAG.size
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            total += len(unpacker.decompress(data[position : position + size], max_bytes + 1))
        else:
            total += min(size, len(data) - position)
        position += size
    return total
