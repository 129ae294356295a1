"""Where photos are placed and how far that is from the truth, against sums by hand."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import s2
from tasks.base import Places, TestSet
from tasks.geolocation import collator
from tasks.place_errors import FURTHEST_KM, KEPT, PlaceErrors, calibration_error, reliability_bins

ROOT = Path(__file__).parents[3]
CITIES = {"paris": (48.85, 2.35), "lyon": (45.76, 4.84), "tokyo": (35.68, 139.69)}


def haversine(one, other):
    """Kilometres between two (latitude, longitude), by the formula."""
    (phi, lam), (psi, mu) = (tuple(math.radians(degrees) for degrees in place) for place in (one, other))
    a = math.sin((psi - phi) / 2) ** 2 + math.cos(phi) * math.cos(psi) * math.sin((mu - lam) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(a))


@pytest.fixture
def cities():
    """A test set whose classes are a cell around each of three cities, placed at the city; and their order."""
    cells = {s2.parents(s2.leaves(*np.array([place]).T), 9).item(): name for name, place in CITIES.items()}
    order = [cells[cell] for cell in sorted(cells)]
    photos = {"paris": 50, "lyon": 7, "tokyo": 20}
    places = Places(np.array([CITIES[name] for name in order]), np.array([photos[name] for name in order]))
    return TestSet(tuple(s2.token(cell) for cell in sorted(cells)), places=places), order


def evaluated(test_set, outputs, truths, batch=2):
    collate, evaluator = collator(test_set.classes), PlaceErrors(test_set)
    for start in range(0, len(truths), batch):
        fields = [{"latitude": x, "longitude": y} for x, y in truths[start : start + batch]]
        evaluator.update(outputs[start : start + batch], collate(fields))
    return evaluator.compute()


def logits(order, *names):
    return torch.stack([torch.tensor([4.0 if city == name else 0.0 for city in order]) for name in names])


def test_errors_are_great_circle_distances_to_the_likeliest_cell(cities):
    test_set, order = cities
    near_paris, near_lyon, near_tokyo = (48.855, 2.351), (45.9, 4.9), (36.5, 140.2)
    truths = [near_paris, near_lyon, near_paris, near_tokyo, (-33.9, 151.2)]
    found = evaluated(test_set, logits(order, "paris", "lyon", "lyon", "tokyo", "tokyo"), truths)
    said = [CITIES[name] for name in ("paris", "lyon", "lyon", "tokyo", "tokyo")]
    errors = [haversine(*pair) for pair in zip(said, truths, strict=True)]
    assert found.arrays["errors_km"] == pytest.approx(errors, rel=1e-9)
    assert found.arrays["decoded"].tolist() == [list(place) for place in said]
    for km in (1, 25, 200, 750, 2500):
        count = sum(error <= km for error in errors)
        assert found.metrics[f"within_{km}_correct"] == count
        assert found.metrics[f"within_{km}"] == count / 5
        assert found.metrics[f"within_{km}_low"] <= count / 5 <= found.metrics[f"within_{km}_high"]
    assert [found.metrics[f"within_{km}_correct"] for km in (1, 25, 200, 750, 2500)] == [1, 2, 3, 4, 4]
    assert found.metrics["median_km"] == pytest.approx(sorted(errors)[2])
    assert found.metrics["samples"] == 5


def test_the_baseline_is_the_cell_with_most_photos_whatever_the_net_says(cities):
    test_set, order = cities
    truths = [CITIES["tokyo"], CITIES["lyon"], CITIES["paris"]]
    found = evaluated(test_set, logits(order, "tokyo", "tokyo", "tokyo"), truths)
    expected = [haversine(CITIES["paris"], truth) for truth in truths]
    assert found.arrays["biggest_errors_km"] == pytest.approx(expected, abs=1e-9)
    assert found.metrics["biggest_within_1_correct"] == 1
    assert found.metrics["biggest_within_750_correct"] == 2
    assert found.metrics["within_1_correct"] == 1


def test_cells_that_lie_together_win_together(cities):
    """Paris and Lyon lie on one face, Tokyo on another: their sum is above Tokyo's alone."""
    test_set, order = cities
    share = {"paris": 0.35, "lyon": 0.25, "tokyo": 0.4}
    outputs = torch.tensor([[math.log(share[name]) for name in order]])
    found = evaluated(test_set, outputs, [CITIES["paris"]])
    assert found.arrays["errors_km"].tolist() == [pytest.approx(haversine(CITIES["tokyo"], CITIES["paris"]))]
    assert found.arrays["hierarchical_errors_km"].tolist() == [pytest.approx(0, abs=1e-6)]


def test_a_photo_in_no_cell_is_no_hit_though_it_may_be_near(cities):
    test_set, order = cities
    outside = (48.85, 6.0)
    found = evaluated(test_set, logits(order, "paris", "paris"), [outside, CITIES["paris"]])
    assert found.arrays["hit"].tolist() == [False, True]
    assert found.metrics["cell_accuracy"] == 0.5
    assert found.metrics["within_750_correct"] == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_as_wrong_as_can_be(cities, bad):
    test_set, order = cities
    outputs = logits(order, "paris", "paris", "tokyo")
    outputs[1, 0] = bad
    found = evaluated(test_set, outputs, [CITIES["paris"]] * 3)
    assert found.arrays["errors_km"][1] == found.arrays["hierarchical_errors_km"][1] == FURTHEST_KM
    assert not found.arrays["hit"][1]
    assert np.isnan(found.arrays["decoded"][1]).all()
    assert found.metrics["within_2500_correct"] == 1
    assert all(math.isfinite(value) for value in found.metrics.values())


def test_of_many_cells_the_likeliest_are_kept_in_order():
    leaves = s2.leaves(np.linspace(-80, 80, 600), np.linspace(-170, 170, 600))
    cells = np.unique(s2.parents(leaves, 12))
    places = Places(s2.centres(cells), np.ones(len(cells), np.int64))
    test_set = TestSet(tuple(s2.token(cell) for cell in cells.tolist()), places=places)
    outputs = torch.randn(3, len(cells), generator=torch.manual_seed(1))
    found = evaluated(test_set, outputs, [(0.0, 0.0)] * 3)
    expected = outputs.softmax(dim=1).sort(dim=1, descending=True)
    assert found.arrays["top_cells"].shape == (3, KEPT)
    assert (found.arrays["top_cells"] == expected.indices[:, :KEPT].numpy()).all()
    assert found.arrays["top_probabilities"] == pytest.approx(expected.values[:, :KEPT].numpy(), rel=1e-5)
    assert found.arrays["confidence"] == pytest.approx(expected.values[:, 0].numpy(), rel=1e-5)


def test_calibration_error_is_the_mean_gap_over_bins_of_equal_size():
    confidence = np.repeat([0.9, 0.2], [30, 30])
    hit = np.array(3 * ([True] * 8 + [False] * 2) + 3 * ([True] + [False] * 9))  # in each bin of ten
    assert calibration_error(confidence, hit) == pytest.approx((abs(0.9 - 0.8) + abs(0.2 - 0.1)) / 2)
    assert calibration_error(np.full(40, 0.25), np.arange(40) % 4 == 0) == pytest.approx(0.05), "3, 2, 3 and 2 of ten"
    assert calibration_error(np.ones(50), np.zeros(50, bool)) == 1
    assert calibration_error(np.array([0.75]), np.array([True])) == 0.25


def test_bins_hold_every_photo_once_by_rising_confidence():
    confidence = np.random.default_rng(0).uniform(size=83)
    bins = reliability_bins(confidence)
    assert len(bins) == 8
    assert sorted(np.concatenate(bins)) == list(range(83))
    assert {len(group) for group in bins} == {10, 11}
    ends = [(confidence[group[0]], confidence[group[-1]]) for group in bins]
    assert np.concatenate(ends).tolist() == sorted(np.concatenate(ends))
    assert [len(reliability_bins(np.zeros(count))) for count in (1, 9, 19, 20, 800)] == [1, 1, 1, 2, 8]


MEASURE = """
import time
import numpy as np, torch
from tasks import s2
from tasks.base import Places, TestSet
from tasks.place_errors import PlaceErrors
from tests.memory import peak_kib
rng = np.random.default_rng(0)
cells = np.unique(s2.parents(s2.leaves(rng.uniform(-80, 80, 27000), rng.uniform(-180, 180, 27000)), 14))[:26263]
places = Places(s2.centres(cells), np.ones(len(cells), np.int64))
evaluator = PlaceErrors(TestSet([s2.token(cell) for cell in cells.tolist()], places=places))
before, began = peak_kib(), time.monotonic()
for _ in range(47):
    targets = {"place": torch.zeros(64, 2).double(), "label": torch.zeros(64).long()}
    evaluator.update(torch.randn(64, len(cells)), targets)
assert evaluator.compute().metrics["samples"] == 3008
print((peak_kib() - before) // 1024, time.monotonic() - began)
"""


@pytest.mark.slow
def test_planets_cells_take_no_more_memory_than_a_batch_needs():
    """All probabilities of Im2GPS3k's photos would be 315 MB, and as float64 twice that."""
    answer = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, cwd=ROOT)
    mebibytes, seconds = map(float, answer.stdout.split())
    assert mebibytes < 200
    assert seconds < 30
