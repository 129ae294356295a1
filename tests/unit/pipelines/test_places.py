"""The details of a geolocation net: tables and bins against counting by hand, pictures by their pixels."""

import csv
import io
import warnings
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from pipelines.page import csv_text
from pipelines.pictures import details, place_rows
from pipelines.pictures.place_rows import Photo, chosen, photo_rows, read_photo, ring, title
from pipelines.pictures.places import bins, photo_table, shares
from pipelines.pictures.world import world
from tasks import base, geocells, s2
from tasks.base import Evaluation

CELLS = s2.children(s2.FACES).ravel()  # 24
TOP = place_rows.KEY + place_rows.TITLE  # px: of the first row's pictures
WORLD = place_rows.MARGIN + place_rows.SIDE + place_rows.GAP
NEAR = WORLD + 2 * place_rows.TALL + place_rows.GAP


def paint(places):
    """A picture of one colour for each photo."""
    return [np.full((40, 40, 3), colour(place), np.uint8) for place in places]


def colour(place):
    return (20 * place + 15, 90, 200 - 20 * place)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


def shade(probability):
    """The colour of a probability: magma's from the end, logarithmic from 1e-4 to 1."""
    return list(matplotlib.colormaps["magma_r"](np.log10(probability) / 4 + 1, bytes=True)[:3])


def trial(photos, kept, seed=0):
    """An evaluation of a net that says anything, and its test set."""
    rng = np.random.default_rng(seed)
    truth = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, photos))), rng.uniform(-180, 180, photos)], axis=1)
    probabilities = rng.dirichlet(np.full(len(CELLS), 0.2), photos)
    top = np.argsort(-probabilities, axis=1)[:, :kept]
    positions = s2.centres(CELLS)
    decoded = positions[top[:, 0]]
    arrays = {
        "truth": truth,
        "decoded": decoded,
        "errors_km": s2.distances(decoded, truth),
        "hierarchical_errors_km": s2.distances(positions[top[:, -1]], truth),
        "biggest_errors_km": s2.distances(np.broadcast_to(positions[3], truth.shape), truth),
        "confidence": probabilities.max(axis=1).astype(np.float32),
        "hit": geocells.assign(s2.leaves(*truth.T), CELLS) == top[:, 0],
        "cell": top[:, 0],
        "top_cells": top,
        "top_probabilities": np.take_along_axis(probabilities, top, axis=1).astype(np.float32),
    }
    tokens = [s2.token(cell) for cell in CELLS.tolist()]
    test_set = base.TestSet(tokens, None, base.Places(positions, rng.integers(50, 9000, len(CELLS))))
    return Evaluation({"calibration_error": 0.1234}, arrays), test_set


def test_there_are_four_pictures_and_the_same_again():
    shown = details("geolocation", *trial(1, 24), paint)
    assert [picture.name for picture in shown.pictures] == ["cells", "errors", "reliability", "places"]
    assert "24 cells" in shown.pictures[0].caption
    assert "12.3 points" in shown.pictures[2].caption
    assert shown == details("geolocation", *trial(1, 24), paint)


def test_a_record_for_each_photo_in_order():
    evaluation, test_set = trial(20, 24)
    arrays = evaluation.arrays
    rows = list(csv.DictReader(io.StringIO(csv_text(photo_table(arrays, test_set)))))
    assert [row["photo"] for row in rows] == [str(number) for number in range(20)]
    for number, row in enumerate(rows):
        assert (float(row["latitude"]), float(row["longitude"])) == tuple(arrays["truth"][number])
        assert (float(row["decoded_latitude"]), float(row["decoded_longitude"])) == tuple(arrays["decoded"][number])
        for way in ("", "hierarchical_", "biggest_"):
            assert float(row[f"{way}error_km"]) == arrays[f"{way}errors_km"][number]
        assert float(row["confidence"]) == arrays["confidence"][number]
        assert row["hit"] == str(int(arrays["hit"][number]))
        assert s2.from_token(row["token"]) == CELLS[arrays["cell"][number]]


def test_what_is_not_finite_is_left_out():
    evaluation, test_set = trial(2, 5)
    for name, array in evaluation.arrays.items():
        if array.dtype.kind == "f" and name != "truth":
            array[0], array[1] = np.nan, np.inf
    evaluation.metrics["calibration_error"] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = details("geolocation", evaluation, test_set, paint)
    errors = {f"{way}error_km" for way in ("", "hierarchical_", "biggest_")}
    for record in shown.tables["photos"]:
        missing = {name for name, value in record.items() if value is None}
        assert missing == {"decoded_latitude", "decoded_longitude", "confidence", *errors}
    assert len(shown.pictures) == 4


def test_a_row_shows_the_photo_and_the_probabilities_of_the_cells():
    truth, decoded = np.array([20.0, 100.0]), np.array([-30.0, -100.0])
    probabilities = np.where(np.arange(24) % 2, 1e-5, 0.5)
    probabilities[:4] = 0.002, 0.02, 0.2, 0.00011
    photo = Photo(4, truth, decoded, probabilities, 17_000.0, 0.5, False)
    kept = np.arange(24) != 23
    files = photo_rows([photo._replace(probabilities=probabilities[kept])], CELLS[kept], world(CELLS[kept]), paint)
    picture = pixels(files[".png"])
    assert tuple(picture[TOP + 90, place_rows.MARGIN + 90]) == colour(4)
    expected = {cell: shade(value) if value > 1e-4 else [255] * 3 for cell, value in enumerate(probabilities)}
    expected[23] = [0xE3] * 3
    seen = set()
    for latitude in range(-75, 90, 30):
        for longitude in range(-165, 180, 30):
            (cell,) = geocells.assign(s2.leaves(np.array([latitude + 4.2]), np.array([longitude + 4.2])), CELLS)
            row, column = int((90 - latitude - 4.2) * 1.5), int((longitude + 184.2) * 1.5)
            assert picture[TOP + row, WORLD + column] == pytest.approx(expected[cell], abs=1)
            seen.add(int(cell))
    assert seen == set(range(24))
    middle = picture[TOP + 135, NEAR + 135]
    assert middle.tolist() == [0x00, 0x9E, 0x73]  # the star of the true place
    row, column = int((90 + 30) * 1.5), int((180 - 100) * 1.5)
    assert picture[TOP + row, WORLD + column].tolist() == [0x00, 0x72, 0xB2]
    (here,) = geocells.assign(s2.leaves(*truth[:, None]), CELLS)
    assert picture[TOP + 135 - 40, NEAR + 135 + 40] == pytest.approx(expected[here], abs=1)


def test_probable_cells_too_small_for_the_map_are_dots():
    places = np.array([[50.0, 10.0], [-20.0, -50.0], [-20.0, 130.0]])
    cells = s2.parents(s2.leaves(*places.T), 15)
    order = np.argsort(cells)
    probabilities = np.array([0.9, 0.05, 0.0005])[order]
    photo = Photo(0, np.array([0.0, 0.0]), np.array([0.0, 60.0]), probabilities, 5600.0, 0.9, True)
    picture = pixels(photo_rows([photo], cells[order], world(cells[order]), paint)[".png"])
    panel = picture[TOP : TOP + 270, WORLD : WORLD + 540]
    for (latitude, longitude), value, radius in zip(places, (0.9, 0.05), (7, 4), strict=False):
        row, column = int((90 - latitude) * 1.5), int((longitude + 180) * 1.5)
        assert panel[row, column] == pytest.approx(shade(value), abs=1)
        shown = np.abs(panel[row - 12 : row + 13, column] - shade(value)).max(axis=1) <= 1
        assert shown.sum() == pytest.approx(2 * radius, abs=2)
    assert panel[int(110 * 1.5), int(310 * 1.5)].tolist() == [0xE3] * 3


def test_photos_are_at_equal_steps_of_the_ranking_by_error():
    errors = np.random.default_rng(0).permutation(11) * 100.0
    assert errors[chosen(errors)].tolist() == [0, 200, 400, 600, 800, 1000]
    errors[errors == 0], errors[errors == 400] = np.nan, np.inf
    picked = errors[chosen(errors)]
    assert picked[:5].tolist() == [100, 300, 600, 800, 1000]
    assert not np.isfinite(picked[5])
    assert chosen(np.array([3.0, 1.0, 2.0])) == [1, 2, 0]
    assert chosen(np.full(7, 5.0)) == [0, 1, 2, 4, 5, 6]


def test_a_photos_probabilities_are_those_of_its_cells():
    evaluation, _ = trial(4, 3)
    evaluation.arrays["top_probabilities"][2, 1] = np.nan
    photo = read_photo(evaluation.arrays, 2, len(CELLS))
    first, second, third = evaluation.arrays["top_cells"][2]
    assert photo.probabilities.sum() == pytest.approx(evaluation.arrays["top_probabilities"][2, [0, 2]].sum())
    assert photo.probabilities[first] == evaluation.arrays["confidence"][2]
    assert photo.probabilities[second] == 0 < photo.probabilities[third]
    assert (photo.number, photo.error) == (2, evaluation.arrays["errors_km"][2])


def test_titles_and_the_circle_that_is_seen():
    photo = Photo(0, np.zeros(2), np.ones(2), np.zeros(1), 3.14159, 0.8352, True)
    assert title(photo) == "3.1 km off, confidence 83.5 %, in the right cell"
    far = photo._replace(error=12345.6, hit=False)
    assert title(far) == "12,346 km off, confidence 83.5 %, in another cell"
    assert title(photo._replace(decoded=np.full(2, np.nan))).startswith("placed nowhere")
    assert [ring(error) for error in (0.2, 25, 26, 200, 700, 751, 9000, np.inf, np.nan)] == [
        *(25, 25, 200, 200, 750, 2500, 2500, 2500, 2500)
    ]


def test_the_share_of_photos_by_distance_is_that_of_counting():
    errors = np.array([0.0, 0.1, 0.5, 30, 700, 20_015.1, np.inf, np.nan])
    distances, percents = shares(errors)
    assert (distances[0], distances[-1]) == pytest.approx((0.1, 20_015))
    for distance, percent in zip(distances, percents, strict=True):
        assert percent == 100 * sum(error <= distance for error in errors.tolist()) / 8
    assert (percents[0], percents[-1]) == (25, 62.5)


def test_bins_of_confidence_by_hand():
    confidence = np.array([0.9] * 10 + [0.2] * 6 + [0.3] * 5, dtype=np.float32)
    hit = np.array([True] * 7 + [False] * 3 + [True] * 2 + [False] * 9)
    low, high = bins(confidence, hit)
    assert (low.photos, high.photos) == (11, 10)
    assert (low.share, high.share) == (2 / 11, 0.7)
    assert (low.confidence, low.least, low.most) == pytest.approx(((6 * 0.2 + 5 * 0.3) / 11, 0.2, 0.3))
    assert (high.confidence, high.least, high.most) == pytest.approx((0.9,) * 3)
    for found, hits in ((low, 2), (high, 7)):
        interval = binomtest(hits, found.photos).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_many_photos_are_in_eight_bins_and_few_in_one():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=237)
    found = bins(confidence, rng.uniform(size=237) < confidence)
    assert {group.photos for group in found} == {29, 30}
    assert len(found) == 8
    assert all(one.most <= other.least for one, other in pairwise(found))
    assert [group.photos for group in bins(confidence[:9], confidence[:9] > 0.5)] == [9]
