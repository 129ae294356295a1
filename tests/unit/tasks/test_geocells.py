"""The partition, its labels and the way down it against plain recursion with Google's C++ S2 cells, one by one."""

import itertools
import math
import tracemalloc
from collections import Counter
from fractions import Fraction
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s2geometry import S2CellId, S2LatLng, S2Point_FromRaw

from tasks import geocells, s2
from tasks.geocells import assign, descend, means, partition

CORNER = math.degrees(math.atan(math.sqrt(0.5)))
LATITUDE = st.sampled_from([-90.0, -CORNER, 0.0, CORNER, 45.0, 90.0]) | st.floats(-90, 90)
LONGITUDE = st.sampled_from([-180.0, -135.0, -90.0, 0.0, 45.0, 90.0, 180.0]) | st.floats(-180, 180)
POINT = st.tuples(LATITUDE, LONGITUDE)
NEAR = st.sampled_from([0.0, 1e-9, 1e-8, 1e-6, 1e-3, -1e-3, 0.1, 5.0])  # degrees; a leaf is about 1e-7 wide


@st.composite
def photos(draw):
    """Sorted leaves of up to some 60 photos, with some of the same place and some that are near each other."""
    places = []
    for latitude, longitude in draw(st.lists(POINT, min_size=0, max_size=12)):
        for north, east in [(0, 0), *draw(st.lists(st.tuples(NEAR, NEAR), max_size=5))]:
            places.append((min(90, max(-90, latitude + north)), min(180, max(-180, longitude + east))))
    if not places:
        return np.empty(0, dtype=np.uint64)
    return np.sort(s2.leaves(*np.array(places, dtype=np.float64).T))


def cluster(count=1000, seed=0):
    """Sorted leaves of photos, most of them in ten towns."""
    rng = np.random.default_rng(seed)
    towns = np.stack([rng.uniform(-60, 70, 10), rng.uniform(-170, 170, 10)], axis=1)
    spread = 10 ** rng.uniform(-4, 0.5, (count, 1))
    places = towns[rng.integers(10, size=count)] + spread * rng.normal(size=(count, 2))
    return np.sort(s2.leaves(*places.clip((-90, -180), (90, 180)).T))


@cache
def held_by_all():
    """How many photos of the cluster each cell of any level holds."""
    return Counter(S2CellId(leaf).parent(level).id() for leaf in cluster().tolist() for level in range(31))


def by_hand(leaves, split_above, keep_from):
    """{cell: photos}, going down from each face one cell at a time."""
    found = {}

    def visit(cell, inside):
        if len(inside) > split_above and not cell.is_leaf():
            for child in map(cell.child, range(4)):
                visit(child, [leaf for leaf in inside if child.contains(leaf)])
        elif len(inside) >= keep_from:
            found[cell.id()] = len(inside)

    everything = [S2CellId(leaf) for leaf in leaves.tolist()]
    for face in range(6):
        cell = S2CellId.FromFacePosLevel(face, 0, 0)
        visit(cell, [leaf for leaf in everything if cell.contains(leaf)])
    return found


@st.composite
def limits(draw):
    """(split_above, keep_from)."""
    above = draw(st.integers(1, 12))
    return above, draw(st.integers(1, above))


@settings(deadline=None, max_examples=40)
@given(photos(), limits())
def test_the_partition_is_that_of_plain_recursion(leaves, limits):
    found = partition(leaves, *limits)
    assert dict(zip(found.cells.tolist(), found.photos.tolist(), strict=True)) == by_hand(leaves, *limits)
    assert (found.cells[:-1] < found.cells[1:]).all()
    assert (found.cells.dtype, found.photos.dtype) == (np.uint64, np.int64)


@pytest.mark.parametrize(("split_above", "keep_from"), [(1, 1), (10, 1), (40, 5), (100, 100), (500, 50)])
def test_the_cells_of_towns_are_what_planets_rule_says(split_above, keep_from):
    leaves = cluster()
    found = partition(leaves, split_above, keep_from)
    cells = [S2CellId(cell) for cell in found.cells.tolist()]
    above = held_by_all()
    assert found.photos.tolist() == [above[cell.id()] for cell in cells]
    for cell, count in zip(cells, found.photos.tolist(), strict=True):
        assert keep_from <= count <= split_above or cell.is_leaf()
        assert cell.is_face() or above[cell.parent().id()] > split_above
    assert all(a.range_max().id() < b.range_min().id() for a, b in itertools.pairwise(cells))
    if keep_from == 1:
        assert found.photos.sum() == len(leaves)


def test_a_hundred_photos_of_one_place_end_in_its_leaf():
    leaves = s2.leaves(np.full(100, 48.8584), np.full(100, 2.2945))
    found = partition(leaves, 99, 1)
    assert (found.cells.tolist(), found.photos.tolist()) == ([leaves[0]], [100])
    assert partition(leaves, 100, 1).cells.tolist() == [S2CellId(leaves[0].item()).parent(0).id()]


def test_cells_of_just_the_limits_are_kept_whole():
    leaves = np.sort(s2.leaves(np.linspace(-5, 5, 7), np.full(7, 3.0)))
    assert [part.tolist() for part in partition(leaves, 7, 7)] == [[s2.FACES[0]], [7]]
    assert len(partition(leaves[:6], 7, 7).cells) == 0


def test_no_photos_make_no_cells():
    found = partition(np.empty(0, dtype=np.uint64), 10, 1)
    assert found.cells.shape == found.photos.shape == (0,)
    assert assign(cluster(5), found.cells).tolist() == [-1] * 5
    assert means(cluster(5), found.cells).shape == (0, 2)


@pytest.mark.parametrize(
    ("split_above", "keep_from", "said"),
    [
        (0, 1, "split_above is 0; allowed are numbers from 1 on"),
        (10, 0, "keep_from is 0; allowed are 1 to split_above, 10"),
        (10, 11, "keep_from is 11; allowed are 1 to split_above, 10"),
    ],
)
def test_limits_that_make_no_sense_are_refused(split_above, keep_from, said):
    with pytest.raises(ValueError, match=said):
        partition(cluster(5), split_above, keep_from)


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_leaves_out_of_order_are_noticed_wherever_they_are(block):
    leaves = np.unique(cluster(50))
    with patch.object(geocells, "BLOCK", block):
        partition(leaves, 10, 1)
        for place in range(len(leaves) - 1):
            swapped = leaves.copy()
            swapped[[place, place + 1]] = swapped[[place + 1, place]]
            with pytest.raises(AssertionError, match="not in order"):
                partition(swapped, 10, 1)


@settings(deadline=None, max_examples=40)
@given(photos(), photos(), limits())
def test_a_leaf_is_in_the_cell_that_google_says_contains_it(leaves, others, limits):
    cells = partition(leaves, *limits).cells
    ids = [S2CellId(cell) for cell in cells.tolist()]
    asked = np.concatenate([leaves, others, *s2.ranges(cells)])[::-1]
    wanted = [[place for place, cell in enumerate(ids) if cell.contains(S2CellId(leaf))] for leaf in asked.tolist()]
    found = assign(asked, cells)
    assert found.tolist() == [places[0] if places else -1 for places in wanted]
    assert found.dtype == np.int64


def test_counts_of_labels_are_the_photos_of_the_cells():
    leaves = cluster()
    found = partition(leaves, 60, 20)
    labels = assign(leaves, found.cells)
    assert 0 < (labels == -1).sum() < len(leaves)
    assert np.bincount(labels[labels >= 0]).tolist() == found.photos.tolist()


@pytest.mark.parametrize("block", [7, 1 << 17])
def test_means_are_those_of_the_photos_of_each_cell(block):
    leaves = cluster()
    cells = partition(leaves, 60, 20).cells
    inside = {cell: [] for cell in cells.tolist()}
    for leaf in map(S2CellId, leaves.tolist()):
        for cell in {leaf.parent(level).id() for level in range(31)} & inside.keys():
            inside[cell].append(leaf.ToPoint())
    with patch.object(geocells, "BLOCK", block):
        found = means(leaves, cells)
    for points, mean in zip(inside.values(), found.tolist(), strict=True):
        total = [math.fsum(getattr(point, axis)() for point in points) for axis in "xyz"]
        wanted = S2LatLng(S2Point_FromRaw(*total))
        assert mean == pytest.approx([wanted.lat().degrees(), wanted.lng().degrees()], abs=1e-9)


def test_a_mean_over_the_antimeridian_and_one_over_a_pole_are_where_their_photos_are():
    leaves = np.sort(s2.leaves(np.array([10.0, 10, 85, 85, 85]), np.array([179.0, -179, 0, 120, -120])))
    found = means(leaves, s2.FACES[2:4])  # the north pole's, and the antimeridian's
    assert found[0, 0] == pytest.approx(90, abs=1e-6)
    assert abs(found[1, 1]) == pytest.approx(180, abs=1e-6)
    assert found[1, 0] == pytest.approx(10, abs=0.01)
    with pytest.raises(AssertionError, match="no photo"):
        means(leaves, s2.FACES)


def descend_by_hand(row, cells):
    """Down one cell at a time, with exact fractions."""
    ids = [S2CellId(cell) for cell in cells.tolist()]

    def visit(parts):
        inside = [[place for place, cell in enumerate(ids) if part.contains(cell)] for part in parts]
        likely = [sum((Fraction(float(row[p])) for p in places), Fraction(0)) if places else -1 for places in inside]
        best = likely.index(max(likely))
        if [ids[place].id() for place in inside[best]] == [parts[best].id()]:
            return inside[best][0]
        return visit([parts[best].child(number) for number in range(4)])

    return visit([S2CellId.FromFacePosLevel(face, 0, 0) for face in range(6)])


@settings(deadline=None, max_examples=40)
@given(
    photos().filter(len),
    st.integers(1, 12),
    st.integers(0, 1000),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([1, 3, 50]),
)
def test_the_way_down_is_that_of_plain_recursion_with_ties_and_zeros(leaves, split_above, seed, kind, block):
    cells = partition(leaves, split_above, 1).cells
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, (6, len(cells))) * rng.integers(0, 2, (6, len(cells)))
    probabilities = (weights / 1024).astype(kind)
    with patch.object(geocells, "BLOCK_SUMS", block):
        found = descend(probabilities, cells)
    assert found.tolist() == [descend_by_hand(row, cells) for row in probabilities]


def test_the_way_down_equals_plain_recursion_on_what_a_softmax_gives():
    cells = partition(cluster(600), 20, 3).cells
    logits = np.random.default_rng(0).normal(0, 3, (20, len(cells)))
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    found = descend(probabilities, cells)
    assert found.tolist() == [descend_by_hand(row, cells) for row in probabilities]
    assert (found != probabilities.argmax(axis=1)).any()


def test_many_unlikely_cells_of_one_part_outweigh_a_likely_one_elsewhere():
    here, there = s2.children(s2.FACES[:1])[0], s2.FACES[3:4]
    cells = np.concatenate([here, there])
    assert descend(np.array([[0.15, 0.2, 0.15, 0.1, 0.4]]), cells).tolist() == [1]


@pytest.mark.parametrize("value", [0.0, 1 / 49, 0.1])
def test_where_all_are_equally_likely_the_first_of_the_largest_parts_is_reached(value):
    """1 / 49 and 0.1 are no binary fractions: as plain float64 sums, equal parts would come out unequal."""
    parents = s2.children(s2.FACES[:1])[0]
    cells = s2.children(parents).ravel()
    assert descend(np.full((1, 16), value), cells).tolist() == [0]
    assert descend(np.full((1, 16), value, dtype=np.float32), cells).tolist() == [0]


def test_cells_within_cells_are_noticed():
    cells = np.sort(np.concatenate([s2.FACES[:1], s2.children(s2.FACES[:1])[0]]))
    with pytest.raises(AssertionError, match="within another"):
        descend(np.array([[0.1, 0.1, 0.6, 0.1, 0.1]]), cells)


@pytest.mark.parametrize("order", [[1, 0], [0, 0]])
def test_cells_out_of_order_are_noticed(order):
    with pytest.raises(AssertionError, match="not in order"):
        assign(s2.FACES, s2.FACES[order])


def peak_bytes(work, *arguments):
    """What `work` holds at most, beside what was there before: NumPy tells tracemalloc of its arrays."""
    tracemalloc.start()
    work(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_beside_the_leaves_memory_does_not_grow_with_the_photos():
    rng = np.random.default_rng(0)
    held = []
    for count in (300_000, 600_000):
        leaves = np.sort(rng.integers(0, 6 << 61, count, dtype=np.uint64) | np.uint64(1))
        limits = count // 300, 1
        made = peak_bytes(s2.leaves, rng.uniform(-90, 90, count), rng.uniform(-180, 180, count)) - 8 * count
        added = peak_bytes(means, leaves, partition(leaves, *limits).cells)
        held.append((made, peak_bytes(partition, leaves, *limits), added))
    assert [many < 1.2 * few < 60e6 for few, many in zip(*held, strict=True)] == [True] * 3
