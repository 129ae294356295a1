"""The cells of the Earth that a geolocation net chooses among: PlaNet's partition (arXiv 1602.05314, section 3.1).

S2 cells that cover as many photos each as is possible, small where many are taken. Leaves are `tasks.s2`'s, uint64; the
cells of a partition ascend, and none is within another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks import s2
from tasks.s2 import Float64s, Int64s, UInt64s

Floats = npt.NDArray[np.floating[Any]]

BLOCK = 1 << 17  # leaves at a time, of which some 200 bytes each are held while they are added up
BLOCK_SUMS = 1 << 22  # sums of probabilities that are held at a time: 32 MB
GRID = 2.0**52  # of probabilities that are multiples of its inverse, sums up to 2 are exact in float64


class Partition(NamedTuple):
    """cells: (C,) uint64, ascending. photos: (C,) int64, how many each holds."""

    cells: UInt64s
    photos: Int64s


def partition(leaves_sorted: UInt64s, split_above: int, keep_from: int) -> Partition:
    """PlaNet's partition of photos, whose leaves (N,) ascend.

    From the six faces on, a cell that holds more than `split_above` photos is replaced by its children; then the cells
    that hold fewer than `keep_from` are dropped (PlaNet: 10,000 and 50). A leaf is not split, however many it holds.
    Raises ValueError for a split_above below 1, and for a keep_from outside of 1 to split_above: above it, only what
    cannot be split would be left.
    """
    if split_above < 1:
        raise ValueError(f"split_above is {split_above}; allowed are numbers from 1 on")
    if not 1 <= keep_from <= split_above:
        raise ValueError(f"keep_from is {keep_from}; allowed are 1 to split_above, {split_above}")
    assert _ascend(leaves_sorted), "the leaves are not in order"
    candidates, found = s2.FACES, []
    for level in range(s2.MAX_LEVEL + 1):
        first, last = s2.ranges(candidates)
        photos = np.searchsorted(leaves_sorted, last, side="right") - np.searchsorted(leaves_sorted, first)
        split = (photos > split_above) & (level < s2.MAX_LEVEL)
        kept = ~split & (photos >= keep_from)
        found.append(Partition(candidates[kept], photos[kept]))
        candidates = s2.children(candidates[split]).ravel()
    cells, photos = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(cells)
    return Partition(cells[order], photos[order])


def _ascend(leaves: UInt64s) -> bool:
    """Whether no leaf is smaller than the one before it."""
    blocks = (leaves[start : start + BLOCK + 1] for start in range(0, len(leaves), BLOCK))
    return all((block[:-1] <= block[1:]).all() for block in blocks)


def assign(leaves: UInt64s, cells: UInt64s) -> Int64s:
    """(N,) the place among `cells` of the one that holds each leaf; -1 where that was dropped."""
    if not len(cells):
        return np.full(len(leaves), -1)
    first, last = _disjoint(cells)
    place = np.searchsorted(first, leaves, side="right") - 1
    place[leaves > last[place]] = -1
    return place


def _disjoint(cells: UInt64s) -> tuple[UInt64s, UInt64s]:
    """The ranges of cells, which are those of a partition."""
    first, last = s2.ranges(cells)
    assert (last[:-1] < first[1:]).all(), "the cells are not in order, or one is within another"
    return first, last


def means(leaves_sorted: UInt64s, cells: UInt64s) -> Float64s:
    """(C, 2) the mean latitude and longitude of each cell's photos: what the sum of their unit vectors points at.

    leaves_sorted: (N,), of the photos, of which every cell must hold one; those that are in no cell are passed over.
    """
    sums = np.zeros((len(cells), 3))
    for start in range(0, len(leaves_sorted), BLOCK):
        block = leaves_sorted[start : start + BLOCK]
        place = assign(block, cells)
        held = place >= 0
        for axis, values in enumerate(s2.centre_vectors(block[held]).T):
            sums[:, axis] += np.bincount(place[held], values, minlength=len(cells))
    assert sums.any(axis=1).all(), "a cell holds no photo"
    return s2.places(sums)


def descend(probabilities: Floats, cells: UInt64s) -> Int64s:
    """(N,) the place among `cells` that is reached from the whole Earth by going on to the likeliest part each time.

    probabilities: (N, C), rows of sum 1, float32 or float64. The parts are first the six faces and then the children of
    what was chosen; a part is as likely as the cells in it together. Parts without cells are none. Probabilities are
    rounded to multiples of 2^-52, of which sums are exact: parts that are equally likely tie, and the first is chosen.
    """
    assert probabilities.shape[1:] == cells.shape != (0,), "not a probability for each cell"
    _disjoint(cells)
    found = np.empty(len(probabilities), dtype=np.int64)
    rows = max(1, BLOCK_SUMS // len(cells))
    for start in range(0, len(probabilities), rows):
        block = slice(start, start + rows)
        found[block] = _descend(probabilities[block], cells)
    return found


def _descend(probabilities: Floats, cells: UInt64s) -> Int64s:
    below = np.zeros((len(probabilities), len(cells) + 1))  # of the cells before each, together
    np.cumsum(np.rint(probabilities * GRID), axis=1, dtype=np.float64, out=below[:, 1:])
    found = np.empty(len(probabilities), dtype=np.int64)
    rows = np.arange(len(probabilities))
    candidates = np.broadcast_to(s2.FACES, (len(rows), len(s2.FACES)))
    while len(rows):
        first, last = s2.ranges(candidates)
        low, high = np.searchsorted(cells, first), np.searchsorted(cells, last, side="right")
        likely = np.where(low < high, below[rows[:, None], high] - below[rows[:, None], low], -1)
        chosen = np.arange(len(rows)), likely.argmax(axis=1)
        found[rows] = low[chosen]
        several = high[chosen] - low[chosen] > 1
        rows, candidates = rows[several], s2.children(candidates[chosen][several])
    return found
