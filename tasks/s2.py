"""Cells of Google's S2 geometry, for arrays of them: https://s2geometry.io/devguide/s2cell_hierarchy

A cube around the Earth is projected onto it. Each of its six faces is a cell of level 0, and each cell has four
children, down to the leaves of level 30, which are a centimetre wide. A cell is a uint64: three bits for the face, two
for each level's choice among four along a Hilbert curve, then a one and zeros. A cell's leaves are a range of numbers.

Leaves are, bit for bit, those of Google's C++ library. Angles are degrees: latitudes -90 to 90, longitudes -180 to 180.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

MAX_LEVEL = 30
RADIUS_KM = 6371.0
FACES: UInt64s = np.arange(1, 13, 2, dtype=np.uint64) << np.uint64(60)

_SIDE = 1 << MAX_LEVEL  # leaves along the side of a face
_BLOCK = 1 << 15  # points at a time: what is computed of them stays in a core's cache

# Unit vectors of each face: outwards, and along its first and its second coordinate.
_OUTWARDS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]], dtype=np.float64)
_ALONG_U = np.array([[0, 1, 0], [-1, 0, 0], [-1, 0, 0], [0, 0, -1], [0, 0, -1], [0, 1, 0]], dtype=np.float64)
_ALONG_V = np.array([[0, 0, 1], [0, 0, 1], [0, -1, 0], [0, -1, 0], [1, 0, 0], [1, 0, 0]], dtype=np.float64)

# The Hilbert curve passes through a square's quarters (2 i + j) in one of four orders: as is, mirrored at the diagonal,
# turned by half a turn, or both. What a quarter's own order is differs from the square's by these bits.
_QUARTERS = np.array([[0, 1, 3, 2], [0, 2, 3, 1], [3, 2, 0, 1], [3, 1, 0, 2]])
_TURNS = np.array([1, 0, 0, 3])
_STEP = 4  # levels that are looked up at a time


def _curve() -> tuple[Int64s, Int64s]:
    """What `_STEP` levels of the curve do, (1024,) each: (i, j, order) -> (place, order), and back.

    Keys and values are the numbers one after the other in 4, 4 and 2 bits, or 8 and 2 bits.
    """
    order, place = np.divmod(np.arange(1024), 256)
    i, j, after = np.zeros_like(place), np.zeros_like(place), order.copy()
    for level in reversed(range(_STEP)):
        choice = place >> 2 * level & 3
        quarter = _QUARTERS[after, choice]
        i, j, after = i << 1 | quarter >> 1, j << 1 | quarter & 1, after ^ _TURNS[choice]
    to_place, to_ij = np.empty(1024, np.int64), np.empty(1024, np.int64)
    to_place[i << 6 | j << 2 | order] = place << 2 | after
    to_ij[place << 2 | order] = i << 6 | j << 2 | after
    return to_place, to_ij


_TO_PLACE, _TO_IJ = _curve()
_SHIFTS = range(7, -1, -1)  # eight steps of four levels: the first two levels of 32 do nothing


def leaves(latitude: Float64s, longitude: Float64s) -> UInt64s:
    """(N,) the leaf cell that holds each point, of latitudes and longitudes (N,).

    A point on the edge of two cells is in the one of larger coordinates on their face; on the edge of two faces, in the
    one of the later axis of x, y, z. Raises ValueError for a coordinate that is out of range, or no number.
    """
    found = np.empty(len(latitude), dtype=np.uint64)
    for start in range(0, len(latitude), _BLOCK):
        block = slice(start, start + _BLOCK)
        for name, values, limit in (("latitude", latitude[block], 90), ("longitude", longitude[block], 180)):
            wrong = ~(np.abs(values) <= limit)
            if wrong.any():
                raise ValueError(f"{name} is {values[wrong][0]}; allowed are -{limit} to {limit}")
        found[block] = _leaves_towards(unit_vectors(np.stack([latitude[block], longitude[block]], axis=1)))
    return found


def _leaves_towards(vectors: Float64s) -> UInt64s:
    """(N,) the leaf cells that vectors (N, 3) point at."""
    sizes = np.abs(vectors)
    x, y, z = sizes.T
    axis = np.where((x > y) & (x > z), 0, np.where(y > z, 1, 2))
    rows = np.arange(len(vectors))
    face = axis + 3 * (vectors[rows, axis] < 0)
    i, j = (
        _place_on_side(np.einsum("nk,nk->n", vectors, along[face]) / sizes[rows, axis])
        for along in (_ALONG_U, _ALONG_V)
    )
    order, place = face & 1, np.zeros_like(face)
    for step in _SHIFTS:
        bits = _STEP * step
        entry = _TO_PLACE[(i >> bits & 15) << 6 | (j >> bits & 15) << 2 | order]
        place |= entry >> 2 << 2 * bits
        order = entry & 3
    return face.astype(np.uint64) << np.uint64(61) | place.astype(np.uint64) << np.uint64(1) | np.uint64(1)


def _place_on_side(u: Float64s) -> Int64s:
    """The leaf, 0 to 2^30 - 1, of coordinates on the cube, -1 to 1, by S2's quadratic projection."""
    root = 0.5 * np.sqrt(1 + 3 * np.abs(u))
    return np.minimum((np.where(u >= 0, root, 1 - root) * _SIDE).astype(np.int64), _SIDE - 1)


def _coordinate(leaf: Float64s) -> Float64s:
    """The coordinate on the cube, -1 to 1, of a position along a face's side, 0 to 2^30: `_place_on_side` undone."""
    share = leaf / _SIDE
    size = (4 * np.square(np.maximum(share, 1 - share)) - 1) / 3
    return np.where(share >= 0.5, size, -size)


def ranges(cells: UInt64s) -> tuple[UInt64s, UInt64s]:
    """(first, last): the leaves of each cell, both included; (N,) each."""
    beside = _last_one(cells) - np.uint64(1)
    return cells - beside, cells + beside


def levels(cells: UInt64s) -> Int64s:
    """(N,) the level of each cell: 0 for a face, 30 for a leaf."""
    return MAX_LEVEL - np.bitwise_count(_last_one(cells) - np.uint64(1)).astype(np.int64) // 2


def parents(cells: UInt64s, level: int) -> UInt64s:
    """(N,) the ancestor of each cell at a level that is not below its own."""
    assert 0 <= level <= levels(cells).min(initial=MAX_LEVEL), f"level {level} is below a cell's own"
    one = np.uint64(1 << 2 * (MAX_LEVEL - level))
    return cells & ~(one - np.uint64(1)) | one


def children(cells: UInt64s) -> UInt64s:
    """(N, 4) the children of each cell, ascending; none of the cells may be a leaf."""
    one = _last_one(cells)
    assert (one > 1).all(), "a leaf has no children"
    step = one >> np.uint64(2)
    return (cells - one)[:, None] + step[:, None] * np.array([1, 3, 5, 7], dtype=np.uint64)


def _last_one(cells: UInt64s) -> UInt64s:
    """(N,) the lowest bit that is set: 1 for a leaf, four times as much at each level above."""
    return cells & (~cells + np.uint64(1))


def token(cell: int) -> str:
    """S2's name of a cell: hexadecimal digits without the zeros at the end. An ancestor's is not always a prefix."""
    return f"{cell:016x}".rstrip("0")


def from_token(text: str) -> int:
    """The cell of a name. Raises ValueError that names it where it is not one that `token` gives."""
    cell = int(text.ljust(16, "0"), 16) if re.fullmatch("[0-9a-f]{0,15}[1-9a-f]", text) else 0
    if cell >> 61 > 5 or not (cell & -cell) & 0x1555_5555_5555_5555:
        raise ValueError(f"{text!r} is not the token of an S2 cell: up to 16 of 0-9 and a-f, without zeros at the end")
    return cell


def centres(cells: UInt64s) -> Float64s:
    """(N, 2) latitude and longitude of the middle of each cell."""
    return places(centre_vectors(cells))


def centre_vectors(cells: UInt64s) -> Float64s:
    """(N, 3) unit vectors towards the middle of each cell."""
    return _vectors_at(cells, np.array([[0.5, 0.5]]))[:, 0]


def corners(cells: UInt64s) -> Float64s:
    """(N, 4, 2) latitude and longitude of the corners of each cell, against the clock as seen from above."""
    vectors = _vectors_at(cells, np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    return places(vectors.reshape(-1, 3)).reshape(-1, 4, 2)


def _vectors_at(cells: UInt64s, shares: Float64s) -> Float64s:
    """(N, K, 3) unit vectors towards K points (K, 2) of each cell, as shares of its two sides."""
    face = (cells >> np.uint64(61)).astype(np.int64)
    assert (face < len(FACES)).all(), "a number of no cell"
    place = (ranges(cells)[0] >> np.uint64(1)).astype(np.int64)
    order, i, j = face & 1, np.zeros_like(face), np.zeros_like(face)
    for step in _SHIFTS:
        part = place >> 2 * _STEP * step & (255 if step < 7 else 15)
        entry = _TO_IJ[part << 2 | order]
        i, j, order = i << _STEP | entry >> 6, j << _STEP | entry >> 2 & 15, entry & 3
    width = 1 << MAX_LEVEL - levels(cells)  # in leaves
    u, v = (
        _coordinate((side & -width)[:, None] + width[:, None] * share)
        for side, share in zip((i, j), shares.T, strict=True)
    )
    vectors = _OUTWARDS[face, None] + u[:, :, None] * _ALONG_U[face, None] + v[:, :, None] * _ALONG_V[face, None]
    return vectors / np.linalg.norm(vectors, axis=2, keepdims=True)


def unit_vectors(places: Float64s) -> Float64s:
    """(N, 3) from the Earth's centre towards places (N, 2): x to latitude and longitude 0, z to the north pole."""
    latitude, longitude = np.radians(places).T
    level = np.cos(latitude)
    return np.stack([level * np.cos(longitude), level * np.sin(longitude), np.sin(latitude)], axis=1)


def places(vectors: Float64s) -> Float64s:
    """(N, 2) latitude and longitude that vectors (N, 3) of any length but zero point at."""
    x, y, z = vectors.T
    return np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], axis=1))


def distances(a: Float64s, b: Float64s) -> Float64s:
    """(N,) kilometres between places a and b, (N, 2) each, along the surface of a sphere: the haversine formula."""
    (from_latitude, from_longitude), (to_latitude, to_longitude) = np.radians(a).T, np.radians(b).T
    north, east = np.sin((to_latitude - from_latitude) / 2), np.sin((to_longitude - from_longitude) / 2)
    haversine = np.square(north) + np.cos(from_latitude) * np.cos(to_latitude) * np.square(east)
    return 2 * RADIUS_KM * np.arcsin(np.sqrt(np.minimum(haversine, 1)))  # rounded, it may be above 1
