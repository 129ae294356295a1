"""How rows stand to each other: by intervals, photo by photo, and as printed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.comparisons import comparisons, on_test_set, part_of, printed_comparisons
from pipelines.paper import load_paper

PAPER = load_paper()
RADII = (2500, 750, 200, 25, 1)


def no_errors(run: str) -> Any:
    raise AssertionError(f"the photos of {run} were asked for")


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ((0.80, 0.78, 0.82), "+1.0 points; the intervals overlap."),
        ((0.80, 0.796, 0.804), "+1.0 points; the intervals are apart."),
        ((0.78, 0.77, 0.785), "-1.0 points; the intervals overlap."),  # they meet in one point
    ],
)
def test_two_runs_are_compared_by_difference_and_by_intervals(student: tuple[float, float, float], said: str):
    table = PAPER.runs["table_12"]
    keys = ("mean_ap", "mean_ap_low", "mean_ap_high")
    results = {
        row.key: {"teacher": None, **dict(zip(keys, (0.79, 0.785, 0.795), strict=True))}
        for row in table.rows
        if row.run
    }
    results["face_attributes_w050_r128"] = {"teacher": "face_attributes_nn2", **dict(zip(keys, student, strict=True))}
    sentences = comparisons(table, PAPER, results, no_errors)
    assert len(sentences) == len(table.compare)
    assert f"0.5 MobileNet-128 minus Baseline, its teacher: {said}" in sentences
    assert "1.0 MobileNet-224 minus Baseline: +0.0 points; the intervals overlap." in sentences


def bootstrapped(difference: np.ndarray) -> tuple[float, float]:
    """The ends of resampled means of (N,) values, in points."""
    rng = np.random.default_rng(11)
    means = difference[rng.integers(len(difference), size=(4000, len(difference)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return 100 * low, 100 * high


def test_shares_of_photos_are_compared_on_the_same_photos():
    rng = np.random.default_rng(0)
    errors = {"geolocation_inception_v3": 10 ** rng.uniform(-0.5, 4.0, 237)}
    errors["geolocation_w100_r224"] = errors["geolocation_inception_v3"] * np.where(rng.random(237) < 0.6, 0.1, 1.0)
    results: dict[str, dict[str, Any]] = {run: {} for run in errors}
    (sentence,) = comparisons(PAPER.runs["table_11"], PAPER, results, errors.__getitem__)
    assert sentence.startswith("PlaNet MobileNet minus PlaNet, 237 photos, in points: continent +")
    assert sentence.endswith("; significant: all.")
    planet, mobilenet = errors.values()
    for km, name in zip(RADII, ("continent", "country", "region", "city", "street"), strict=True):
        difference = (mobilenet <= km).astype(float) - (planet <= km)
        mean, ends = sentence.split(f"{name} ")[1].split(" (")[:2]
        low, high = ends.split(")")[0].split(" to ")
        assert float(mean) == pytest.approx(100 * difference.mean(), abs=0.05)
        assert (float(low), float(high)) == pytest.approx(bootstrapped(difference), abs=0.06 + 100 / 237)


def test_what_is_significant_is_named():
    far, near = np.full(48, 9000.0), np.full(48, 9000.0)
    near[:20] = 500.0  # right at the country and at the continent
    errors = {"geolocation_inception_v3": far, "geolocation_w100_r224": near}
    results: dict[str, dict[str, Any]] = {run: {} for run in errors}
    table = PAPER.runs["table_11"]
    (sentence,) = comparisons(table, PAPER, results, errors.__getitem__)
    assert "continent +41.7 (27.1 to 56.2), country +41.7 (27.1 to 56.2), region +0.0 (-7.4 to 7.4)" in sentence
    assert sentence.endswith("; significant: continent, country.")
    (sentence,) = comparisons(table, PAPER, results, dict.fromkeys(errors, far).__getitem__)
    assert sentence.endswith("; significant: none.")


def test_a_run_that_was_not_made_is_not_compared():
    table = PAPER.runs["table_11"]
    for results in ({}, {"geolocation_w100_r224": {}}):
        assert comparisons(table, PAPER, results, no_errors) == ["PlaNet MobileNet minus PlaNet: not run."]


def test_printed_shares_are_compared_as_counts_of_photos():
    to_planet, to_im2gps = printed_comparisons(PAPER.runs["table_11"], PAPER)
    assert to_planet.startswith("PlaNet MobileNet minus PlaNet, 237 photos each, in points: ")
    for sentence, counts in (
        (to_planet, {"continent": (188, 184), "country": (143, 152), "region": (107, 121), "city": (75, 75)}),
        (to_im2gps, {"continent": (188, 123), "country": (143, 84), "region": (107, 76), "city": (75, 52)}),
    ):
        for name, (first, second) in counts.items():
            mean, ends = sentence.split(f"{name} ")[1].split(" (")[:2]
            assert mean == f"{100 * (first - second) / 237:+.1f}"
            half = 1.96 * sum(k / 237 * (1 - k / 237) / 237 for k in (first, second)) ** 0.5
            low, high = (float(end) for end in ends.split(")")[0].split(" to "))
            expected = [100 * ((first - second) / 237 + sign * half) for sign in (-1, 1)]
            assert [low, high] == pytest.approx(expected, abs=0.5)  # a photo is 0.42 points
    assert to_planet.endswith("; significant: none.")
    assert to_im2gps.endswith("; significant: all.")
    assert printed_comparisons(PAPER.runs["table_10"], PAPER) == []


def test_a_further_test_set_s_metrics_take_the_place_of_the_first_s():
    result = {"samples": 237, "top": 0.5, "im2gps3k_samples": 2997, "im2gps3k_top": 0.25, "net": "mobilenet"}
    assert part_of(result, "im2gps3k") == {"samples": 2997, "top": 0.25}
    assert on_test_set(PAPER.data["im2gps"], result) is result
    found = on_test_set(PAPER.data["im2gps3k"], result)
    assert found is not None
    assert (found["samples"], found["top"], found["net"]) == (2997, 0.25, "mobilenet")
    assert on_test_set(PAPER.data["im2gps3k"], {"samples": 237, "top": 0.5}) is None
