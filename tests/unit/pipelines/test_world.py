"""Maps of cells: rasters against S2's cube and places of Google Maps, colours by the pixels of the pictures."""

import base64
import io
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from pipelines.pictures import world
from pipelines.pictures.world import HEIGHT, LEFT, TOP, WIDTH, Map, around, cell_map, paint, sizes
from tasks import geocells, s2

# Cities' places, and the leading half of their numbers in Google Maps, which is an S2 cell of each.
CITIES = {
    "Paris": (48.857, 2.352, 0x47E66E1F06E2B70F),
    "New York": (40.713, -74.006, 0x89C24FA5D33F083B),
    "Tokyo": (35.677, 139.650, 0x60188B857628235D),
    "Sydney": (-33.869, 151.209, 0x6B129838F39A743F),
    "Rio de Janeiro": (-22.907, -43.173, 0x009BDE559108A05B),
    "Honolulu": (21.310, -157.858, 0x7C00183B8CC3464D),
}


def below(level):
    """All cells of a level, ascending: 6 * 4 ** level."""
    cells = s2.FACES
    for _ in range(level):
        cells = s2.children(cells).ravel()
    return cells


def quarters(latitude, longitude, level):
    """(N, 3) face, column and row on it, by the definition of S2's cube with its quadratic projection."""
    latitude, longitude = np.radians(latitude), np.radians(longitude)
    x, y, z = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    sides = np.stack([x, y, z, -x, -y, -z])
    face = sides.argmax(axis=0)
    u = np.choose(face, [y, -x, -x, z, z, -y]) / sides.max(axis=0)
    v = np.choose(face, [z, z, -y, y, -x, -x]) / sides.max(axis=0)
    edges = np.arange(1, 2**level) / 2**level
    bounds = np.where(edges >= 0.5, (4 * edges**2 - 1) / 3, (1 - 4 * (1 - edges) ** 2) / 3)
    return np.stack([face, np.searchsorted(bounds, u), np.searchsorted(bounds, v)], axis=-1)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


def embedded(svg):
    """The map in an SVG, which is its only picture of that size."""
    found = [pixels(base64.b64decode(text)) for text in re.findall(rb"data:image/png;base64,\s*([^\"]+)", svg)]
    (picture,) = (picture for picture in found if picture.shape == (HEIGHT, WIDTH, 3))
    return picture


def pixel(latitude, longitude):
    return int((90 - latitude) / 180 * HEIGHT), int((longitude + 180) / 360 * WIDTH)


def rgb(color):
    return [int(digits, 16) for digits in re.findall("[0-9a-f]{2}", color)]


def shade(value, least, most):
    """The colour of a value on viridis's logarithmic scale."""
    place = np.log(value / least) / np.log(most / least)
    return list(matplotlib.colormaps["viridis"](place, bytes=True)[:3])


def test_every_pixel_of_the_world_is_of_the_cell_that_is_there_on_the_cube():
    shown = world.world(below(2))
    latitude = 90 - (np.arange(HEIGHT) + 0.5) / 3
    longitude = -180 + (np.arange(WIDTH) + 0.5) / 3
    places = np.meshgrid(latitude, longitude, indexing="ij")
    keys = quarters(*places, 2)
    assert shown.raster.shape == (540, 1080)
    assert np.array_equal(shown.raster // 16, keys[..., 0])
    pairs = np.unique(np.stack([shown.raster.ravel(), keys.reshape(-1, 3) @ [100, 10, 1]]), axis=1)
    assert pairs.shape == (2, 96)  # the same pixels together, if in another order
    assert all(len(set(side)) == 96 for side in pairs.tolist())


@pytest.mark.parametrize("city", CITIES)
def test_a_city_is_in_its_cell_on_the_map_of_the_world_and_on_its_own(city):
    latitude, longitude, cell = CITIES[city]
    cells = below(4)
    place = np.array([latitude, longitude])
    (expected,) = geocells.assign(np.array([cell | 1], dtype=np.uint64), cells)
    assert world.world(cells).raster[pixel(latitude, longitude)] == expected
    assert around(place, 20, cells, 9).raster[4, 4] == expected


def test_poles_the_antimeridian_and_dropped_cells():
    whole = world.world(s2.FACES).raster
    assert set(whole[0]) == {2}
    assert set(whole[-1]) == {5}
    assert whole[270, 0] == whole[270, -1] == 3
    assert (around(np.array([90.0, 0]), 3000, s2.FACES, 8).raster == 2).all()
    without = world.world(np.delete(s2.FACES, 2)).raster
    assert np.array_equal(without < 0, whole == 2)
    assert (without[whole == 5] == 4).all()
    assert sizes(world.world(s2.FACES), 6).tolist() == np.bincount(whole.ravel()).tolist()


@pytest.mark.parametrize("place", [(0, 180), (89.9, 0), (-89.9, 77), (-17.5, -179.9), (48.9, 2.3)])
def test_around_a_place_distances_and_directions_are_true(place):
    cells, side, radius = below(5), 40, 1500
    shown = around(np.array(place, dtype=float), radius, cells, side)
    steps = (np.arange(side) + 0.5) * 75 - radius
    east, north = (axis.ravel() for axis in np.meshgrid(steps, steps[::-1]))
    # Where one comes to from the place: https://www.movable-type.co.uk/scripts/latlong.html
    angle, bearing = np.hypot(east, north) / 6371, np.arctan2(east, north)
    start, meridian = np.radians(place)
    latitude = np.arcsin(np.sin(start) * np.cos(angle) + np.cos(start) * np.sin(angle) * np.cos(bearing))
    longitude = meridian + np.arctan2(
        np.sin(bearing) * np.sin(angle) * np.cos(start), np.cos(angle) - np.sin(start) * np.sin(latitude)
    )
    there = np.degrees(np.stack([latitude, (longitude + np.pi) % (2 * np.pi) - np.pi], axis=1))
    assert np.array_equal(shown.raster.ravel(), geocells.assign(s2.leaves(*there.T), cells))
    assert shown.extent == (-radius, radius, -radius, radius)
    assert shown.project(there) == pytest.approx(np.stack([east, north], axis=1), abs=1e-6)
    assert shown.project(np.array([place], dtype=float)) == pytest.approx(np.zeros((1, 2)), abs=1e-6)


def test_cells_are_coloured_by_their_photos_in_both_files():
    cells, photos = np.delete(s2.FACES, 1), np.array([10, 30, 1000, 200, 77])
    files = cell_map(cells, photos)
    assert files == cell_map(cells, photos, world.world(cells))
    picture, inner = pixels(files[".png"]), embedded(files[".svg"])
    middles = {(10, 10): 10, (70, 10): 30, (10, 170): 1000, (10, -170): 1000, (10, -100): 200, (-70, 10): 77}
    for (latitude, longitude), count in middles.items():
        row, column = pixel(latitude, longitude)
        assert picture[TOP + row, LEFT + column] == pytest.approx(shade(count, 10, 1000), abs=1)
        assert inner[row, column].tolist() == picture[TOP + row, LEFT + column].tolist()
    row, column = pixel(10, 100)
    assert picture[TOP + row, LEFT + column].tolist() == inner[row, column].tolist() == rgb(world.NOWHERE)


def test_marks_are_where_the_photos_were_taken():
    places = np.array([[40.0, 100.0], [-41.3, 174.8]])
    picture = pixels(cell_map(s2.FACES, np.full(6, 9), marked=places)[".png"])
    marked = np.argwhere((picture == rgb(world.MARK.lower())).all(axis=2)[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH])
    distances = np.abs(marked[:, None] - [pixel(*place) for place in places]).max(axis=2)
    assert (distances.min(axis=1) <= 4).all()
    assert distances.min(axis=0).tolist() == [0, 0]


def test_cells_too_small_for_a_pixel_are_dots():
    places = np.array([[48.8, 2.3], [-0.2, 179.99], [89.99, 5], [-89.99, -100], [64.1, -21.9]])
    cells = np.sort(s2.parents(s2.leaves(*places.T), 16))
    photos = np.arange(1, 6) * 10
    inner = embedded(cell_map(cells, photos)[".svg"])
    for cell, count in zip(geocells.assign(s2.leaves(*places.T), cells), (16, 16, 8, 8, 16), strict=True):
        same = (inner == shade(photos[cell], 10, 50)).all(axis=2)
        assert same.sum() == count  # at the poles, half of a dot is beyond the map
    assert tuple(inner[pixel(48.8, 2.3)]) != tuple(rgb(world.NOWHERE))
    assert tuple(inner[pixel(-0.2, -179.99)]) == tuple(inner[pixel(-0.2, 179.99)]) != tuple(rgb(world.NOWHERE))


def test_of_dots_at_one_place_the_one_with_the_most_photos_is_seen():
    cells = s2.children(s2.parents(s2.leaves(np.array([10.1]), np.array([20.1])), 16))[0]
    inner = embedded(cell_map(cells, np.array([20, 900, 50, 10]))[".svg"])
    assert inner[pixel(10.1, 20.1)].tolist() == shade(900, 10, 900)


def test_twenty_thousand_dots_leave_the_map_to_be_seen_and_the_svg_small():
    rng = np.random.default_rng(0)
    places = np.degrees(np.arcsin(rng.uniform(-1, 1, 20_000))), rng.uniform(-180, 180, 20_000)
    cells = np.unique(s2.parents(s2.leaves(*places), 12))
    assert len(cells) > 19_900
    files = cell_map(cells, rng.integers(50, 10_000, len(cells)))
    empty = (embedded(files[".svg"]) == rgb(world.NOWHERE)).all(axis=2)
    assert 0.8 < empty.mean() < 0.9
    assert len(files[".svg"]) < 1_000_000


def test_large_cells_have_an_outline_and_small_ones_none():
    raster = np.zeros((20, 20), np.int64)
    raster[:, 12:] = 1
    raster[3:6, 3:6] = 2
    raster[15:, :2] = -1
    shown = Map(raster, (0, 1, 0, 1), lambda places: places)
    assert sizes(shown, 3).tolist() == [400 - 160 - 9 - 10, 160, 9]
    colors = np.array([[0, 100, 200], [20, 20, 20], [200, 0, 0]], np.uint8)
    picture = paint(shown, colors, 255)
    assert picture[10, 11].tolist() == [127, 177, 227]
    assert picture[10, 12].tolist() == [20, 20, 20]
    assert (picture[3:6, 3:6] == [200, 0, 0]).all()
    assert picture[18, 0].tolist() == rgb(world.NOWHERE)
    outlined = {tuple(place) for place in np.argwhere((picture == [127, 177, 227]).all(axis=2))}
    inner = {(row, 2) for row in range(3, 6)} | {(2, column) for column in range(3, 6)}
    assert outlined == {(row, 11) for row in range(20)} | inner | {(14, 0), (14, 1)}
