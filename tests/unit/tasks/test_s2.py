"""Cells against Google's C++ S2, distances against it and against vectors."""

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s2geometry import S2Cell, S2CellId, S2LatLng, S2Point_FromRaw

from tasks import s2

CORNER = math.degrees(math.atan(math.sqrt(0.5)))  # the latitude of a corner of the cube, 35.26
EDGES = (0.0, 30.0, 45.0, 60.0, 90.0, 135.0, 180.0, CORNER)
# Where faces and cells meet, with the nearest numbers and the nearest leaves beside.
SPECIAL = sorted(
    {
        math.copysign(around, sign)
        for edge in EDGES
        for around in (edge, np.nextafter(edge, 0).item(), np.nextafter(edge, 200).item(), edge + 1e-8, edge - 1e-8)
        for sign in (1, -1)
    }
)
LATITUDE = st.sampled_from([edge for edge in SPECIAL if abs(edge) <= 90]) | st.floats(-90, 90)
LONGITUDE = st.sampled_from([edge for edge in SPECIAL if abs(edge) <= 180]) | st.floats(-180, 180)


def of_google(latitudes, longitudes):
    points = zip(latitudes.tolist(), longitudes.tolist(), strict=True)
    return np.array([S2CellId(S2LatLng.FromDegrees(*point)).id() for point in points], dtype=np.uint64)


def points(count, seed=0):
    """(latitude, longitude) spread evenly over the sphere."""
    rng = np.random.default_rng(seed)
    return np.degrees(np.arcsin(rng.uniform(-1, 1, count))), rng.uniform(-180, 180, count)


def cells_of_all_levels(count=40):
    """So many cells of each level, and the six faces' first and last leaves, as both see them."""
    leaves = s2.leaves(*points(31 * count, seed=1))
    ids = [S2CellId(leaf).parent(number % 31) for number, leaf in enumerate(leaves.tolist())]
    ids += [end for face in s2.FACES.tolist() for end in (S2CellId(face).range_min(), S2CellId(face).range_max())]
    return np.array([cell.id() for cell in ids], dtype=np.uint64), ids


def degrees(latlng):
    return latlng.lat().degrees(), latlng.lng().degrees()


def apart(a, b):
    """The angles between places (N, 2), in degrees: at a pole longitudes mean nothing."""
    a, b = s2.unit_vectors(np.asarray(a)), s2.unit_vectors(np.asarray(b))
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(axis=1)))


def test_leaves_are_those_of_google_everywhere():
    latitude, longitude = points(20_000)
    np.testing.assert_array_equal(s2.leaves(latitude, longitude), of_google(latitude, longitude))


def test_leaves_are_those_of_google_where_faces_and_cells_meet():
    latitude, longitude = (
        axis.ravel()
        for axis in np.meshgrid([v for v in SPECIAL if abs(v) <= 90], [v for v in SPECIAL if abs(v) <= 180])
    )
    found = s2.leaves(latitude, longitude)
    np.testing.assert_array_equal(found, of_google(latitude, longitude))
    assert set((found >> np.uint64(61)).tolist()) == set(range(6))


def test_leaves_are_those_of_google_at_the_corners_of_cells():
    corners = np.array(
        [degrees(S2LatLng(S2Cell(cell).GetVertex(k))) for cell in cells_of_all_levels()[1] for k in range(4)]
    )
    np.testing.assert_array_equal(s2.leaves(*corners.T), of_google(*corners.T))


@given(st.lists(st.tuples(LATITUDE, LONGITUDE), min_size=1, max_size=20))
def test_leaves_are_those_of_google(chosen):
    latitude, longitude = np.array(chosen).T
    np.testing.assert_array_equal(s2.leaves(latitude, longitude), of_google(latitude, longitude))


def test_a_point_on_an_edge_is_in_the_cell_that_google_says():
    """Latitudes and longitudes seldom hit an edge exactly; directions do."""
    sides = np.random.default_rng(0).integers(0, 2**30, (2000, 2))
    u, v = (s2._coordinate(side.astype(np.float64)) for side in sides.T)
    assert (s2._place_on_side(np.nextafter(u, -2)) < s2._place_on_side(u)).sum() > 500, "few are on an edge"
    ones = np.ones_like(u)
    ways = [np.stack(axes, axis=1) for axes in ((ones, u, v), (u, ones, v), (u, v, ones), (ones, ones, v), (u, u, u))]
    directions = np.concatenate([sign * way for sign in (1, -1) for way in ways] + [[[1, 1, 1], [-1, 1, -1]]])
    google = [S2CellId(S2Point_FromRaw(*direction)).id() for direction in directions.tolist()]
    np.testing.assert_array_equal(s2._leaves_towards(directions), np.array(google, dtype=np.uint64))


def test_both_ends_of_the_antimeridian_and_any_longitude_of_a_pole_are_as_google_has_them():
    latitude = np.array([12.5, 12.5, 90, 90, 90, -90, -90])
    longitude = np.array([180.0, -180, 0, 123, -180, 0, 77])
    found = s2.leaves(latitude, longitude)
    np.testing.assert_array_equal(found, of_google(latitude, longitude))
    assert found[0] != found[1]
    assert len(set(found[2:5].tolist())) == len(set(found[5:].tolist())) == 1


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_change_nothing(block):
    latitude, longitude = points(100)
    with patch.object(s2, "_BLOCK", block):
        np.testing.assert_array_equal(s2.leaves(latitude, longitude), of_google(latitude, longitude))
    assert s2.leaves(latitude[:0], longitude[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("latitude", "longitude", "said"),
    [
        (90.5, 0.0, "latitude is 90.5; allowed are -90 to 90"),
        (math.nan, 0.0, "latitude is nan"),
        (12.0, -180.001, "longitude is -180.001; allowed are -180 to 180"),
        (12.0, math.inf, "longitude is inf"),
    ],
)
def test_a_place_that_is_none_is_refused(latitude, longitude, said):
    with pytest.raises(ValueError, match=said):
        s2.leaves(np.array([1.0, latitude]), np.array([1.0, longitude]))


def test_levels_parents_and_ranges_are_those_of_google():
    cells, ids = cells_of_all_levels()
    assert s2.levels(cells).tolist() == [cell.level() for cell in ids]
    assert [ends.tolist() for ends in s2.ranges(cells)] == [
        [cell.range_min().id() for cell in ids],
        [cell.range_max().id() for cell in ids],
    ]
    for level in range(31):
        deep = np.array([cell.level() >= level for cell in ids])
        wanted = [cell.parent(level).id() for cell in ids if cell.level() >= level]
        assert s2.parents(cells[deep], level).tolist() == wanted
    with pytest.raises(AssertionError, match="level 1 is below"):
        s2.parents(s2.FACES, 1)


def test_children_are_those_of_google():
    cells, ids = cells_of_all_levels()
    inner = s2.levels(cells) < 30
    wanted = [[cell.child(k).id() for k in range(4)] for cell in ids if not cell.is_leaf()]
    assert s2.children(cells[inner]).tolist() == wanted
    with pytest.raises(AssertionError, match="no children"):
        s2.children(cells)


def test_the_faces_are_those_of_google():
    assert s2.FACES.tolist() == [S2CellId.FromFacePosLevel(face, 0, 0).id() for face in range(6)]


def test_tokens_are_those_of_google_and_come_back():
    cells, ids = cells_of_all_levels()
    tokens = [s2.token(cell) for cell in cells.tolist()]
    assert tokens == [cell.ToToken() for cell in ids]
    assert [s2.from_token(token) for token in tokens] == cells.tolist()


@pytest.mark.parametrize(
    "text", ["", "X", "0", "10", "c", "d1", "2", "1g", "0x1", "1 ", "-1", "11111111111111111", "1B"]
)
def test_what_is_no_token_is_refused_by_its_name(text):
    with pytest.raises(ValueError, match=f"^'{text}' is not the token of an S2 cell"):
        s2.from_token(text)


def test_centres_are_those_of_google():
    cells, ids = cells_of_all_levels()
    found = s2.centres(cells)
    assert apart(found, [degrees(cell.ToLatLng()) for cell in ids]).max() < 1e-9
    np.testing.assert_array_equal(s2.leaves(*found[s2.levels(cells) == 30].T), cells[s2.levels(cells) == 30])
    np.testing.assert_allclose(s2.unit_vectors(found), s2.centre_vectors(cells), atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(s2.centre_vectors(cells), axis=1), 1, atol=1e-15)


def test_corners_are_those_of_google_in_the_same_order():
    cells, ids = cells_of_all_levels()
    wanted = [degrees(S2LatLng(S2Cell(cell).GetVertex(k))) for cell in ids for k in range(4)]
    assert apart(s2.corners(cells).reshape(-1, 2), wanted).max() < 1e-9


def test_places_and_unit_vectors_are_each_other_undone():
    axes = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]])
    there = [[0, 0], [0, 90], [90, 0], [0, 180], [0, -90], [-90, 0]]
    np.testing.assert_array_equal(s2.places(7 * axes), there)
    np.testing.assert_allclose(s2.unit_vectors(np.array(there, dtype=float)), axes, atol=1e-15)
    some = np.stack(points(1000), axis=1)
    assert apart(s2.places(3 * s2.unit_vectors(some)), some).max() < 1e-12


def test_distances_are_those_of_google_and_of_vectors():
    a, b = (np.stack(points(3000, seed), axis=1) for seed in (1, 2))
    b[1000:2000] = a[1000:2000] + np.random.default_rng(0).normal(0, 1e-4, (1000, 2))
    b[:, 0] = b[:, 0].clip(-90, 90)
    b[2000:2010] = a[2000:2010]
    google = [
        S2LatLng.FromDegrees(*x).GetDistance(S2LatLng.FromDegrees(*y)).radians() * 6371
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    found = s2.distances(a, b)
    np.testing.assert_allclose(found, google, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found, np.radians(apart(a, b)) * 6371, rtol=1e-7, atol=1e-9)
    assert (found[2000:2010] == 0).all()


@pytest.mark.parametrize(
    ("a", "b", "km", "share"),
    [
        ((51.5074, -0.1278), (40.7128, -74.0060), 5570, 2e-3),  # London, New York: the Earth is no sphere
        ((52.5200, 13.4050), (48.8566, 2.3522), 878, 2e-3),  # Berlin, Paris
        ((-33.8688, 151.2093), (-33.4489, -70.6693), 11340, 2e-3),  # Sydney, Santiago: over the antimeridian
        ((0.0, 179.5), (0.0, -179.5), 6371 * math.pi / 180, 1e-12),
        ((90.0, 12.0), (90.0, -77.0), 0, 0),
        ((90.0, 0.0), (-90.0, 50.0), 6371 * math.pi, 1e-12),
        ((12.0, 30.0), (-12.0, -150.0), 6371 * math.pi, 1e-7),
    ],
)
def test_distances_of_known_places(a, b, km, share):
    found = s2.distances(np.array([a, b]), np.array([b, a]))
    assert found == pytest.approx([km, km], rel=share, abs=1e-9)
