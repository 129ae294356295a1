"""The made-up places: how far they are from each other, how often they come, and what is to be seen of them."""

from __future__ import annotations

import colorsys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from pipelines.samples.cities import CITIES, LONE, PLACES, Place, choose, habits, home, near, view
from pipelines.samples.drawing import HUES, SHAPES

PLAIN = "98000001@N99"  # a photographer without habits


def km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """By the angle between the directions of both from the middle of the Earth."""
    angles = np.radians([one, other])
    north, south_east = np.sin(angles[:, 0]), np.cos(angles[:, 0])
    points = np.stack([south_east * np.cos(angles[:, 1]), south_east * np.sin(angles[:, 1]), north], axis=1)
    return 6371 * 2 * np.arcsin(np.linalg.norm(points[0] - points[1]) / 2)


def at(place: Place) -> tuple[float, float]:
    return place.latitude, place.longitude


def test_a_finer_place_told_right_is_a_guess_that_much_nearer() -> None:
    """Each of the paper's distances, 1, 25, 200, 750 and 2,500 km, has two kinds of mistakes on its two sides."""
    found = Counter()
    for one, other in combinations((place for city in CITIES for place in city.districts), 2):
        apart = km(at(one), at(other))
        if one.ground != other.ground:
            kind, low, high = "continent", 5000, 20100
        elif one.shape != other.shape:
            kind, low, high = "country", 1000, 2000
        elif one.hue != other.hue:
            kind, low, high = "city", 300, 450
        else:
            kind, low, high = "district", *((5, 12) if apart < 25 else (80, 120))
        assert low < apart < high, (one, other)
        found[kind] += 1
    assert found == {"continent": 24 * 36, "country": 4 * 36, "city": 8 * 9, "district": 16 * 3}
    assert min(km(at(lone), at(place)) for lone in LONE for place in PLACES if place != lone) > 1000


def test_a_city_lies_on_both_sides_of_the_antimeridian() -> None:
    sides = {city.name: {place.longitude > 0 for place in city.districts[:2]} for city in CITIES}
    assert [name for name, both in sides.items() if len(both) == 2] == ["Greendisc", "Violetdisc"]
    assert all(-180 <= place.longitude <= 180 for place in PLACES)


@pytest.mark.parametrize("place", [PLACES[0], CITIES[-4].districts[0], LONE[0]])
def test_photos_lie_around_the_middle_of_their_place(place: Place) -> None:
    rng = np.random.default_rng(1)
    photos = [near(rng, place) for _ in range(500)]
    apart = [km(photo, at(place)) for photo in photos]
    assert np.sqrt(np.mean(np.square(apart)) / 2) == pytest.approx(place.spread, rel=0.1)
    assert all(-90 < latitude < 90 and -180 <= longitude <= 180 for latitude, longitude in photos)
    assert all(value == round(value, 6) for photo in photos for value in photo)


def test_cities_have_photos_and_photographers_as_their_weights_say() -> None:
    rng = np.random.default_rng(2)
    chosen = Counter(choose(rng) for _ in range(20_000))
    weights = sum(city.weight for city in CITIES)
    for city in CITIES:
        photos = [chosen[place] for place in city.districts]
        assert sum(photos) / 20_000 == pytest.approx(0.99 * city.weight / weights, abs=0.008)
        assert photos == sorted(photos, reverse=True)
    assert sum(chosen[lone] for lone in LONE) / 20_000 == pytest.approx(0.01, abs=0.003)
    assert all(chosen[place] for place in PLACES)
    homes = Counter(home(number).name for number in range(weights))
    assert all(abs(homes[city.name] - city.weight) <= 1 for city in CITIES)
    assert max(homes.values()) >= 5 * min(homes.values()) > 0


def test_most_photos_are_taken_at_home() -> None:
    rng, city = np.random.default_rng(3), CITIES[1]
    chosen = Counter(choose(rng, city).city for _ in range(3000))
    assert chosen.most_common(1)[0][0] == city.name
    assert 0.7 < chosen[city.name] / 3000 < 0.8
    assert len(chosen) == 17


def edge(picture: np.ndarray) -> np.ndarray:
    """The median colour of the picture's rim, where little but the ground shows."""
    rim = (picture[:6].reshape(-1, 3), picture[-6:].reshape(-1, 3), picture[:, :6].reshape(-1, 3))
    return np.median(np.concatenate(rim), axis=0) / 255


def test_the_ground_tells_the_continent_and_less_surely_the_district() -> None:
    hits = Counter()
    grounds = {place.ground for city in CITIES for place in city.districts}
    for number in range(240):
        place = CITIES[number % len(CITIES)].districts[number % 3]
        hue, _, value = colorsys.rgb_to_hsv(*edge(view(np.random.default_rng([4, number]), place, 128, PLAIN)))
        guess = min(grounds, key=lambda ground: abs((hue - ground + 0.5) % 1 - 0.5))
        hits["continent"] += guess == place.ground
        hits["light"] += min((0.32, 0.62, 0.92), key=lambda light: abs(value - light)) == place.light
    assert hits["continent"] > 0.9 * 240
    assert 0.6 * 240 < hits["light"] < hits["continent"]


def test_what_is_drawn_next_is_the_same_whatever_the_place() -> None:
    states = set()
    for place in PLACES:
        rng = np.random.default_rng(6)
        view(rng, place, 96, PLAIN)
        states.add(rng.uniform())
    assert len(states) == 1


def users(first: int, count: int) -> list[str]:
    return [f"{first + number}@N99" for number in range(count)]


def test_a_photographers_habits_are_in_all_of_their_photos() -> None:
    everyone = users(98_000_001, 600)
    shapes, hues = zip(*map(habits, everyone), strict=True)
    assert 0.08 < 1 - shapes.count(None) / 600 < 0.16
    assert 0.35 < 1 - hues.count(None) / 600 < 0.45
    assert set(shapes) == {None, *SHAPES}
    assert set(hues) == {None, *HUES}
    assert habits(PLAIN) == (None, None)
    for user in everyone[:40]:
        shape, hue = habits(user)
        for number, place in enumerate(PLACES[:50:7]):
            seen = place._replace(shape=shape or place.shape, hue=hue or place.hue)
            shown = view(np.random.default_rng([7, number]), place, 64, user)
            assert np.array_equal(shown, view(np.random.default_rng([7, number]), seen, 64, PLAIN))


def test_who_has_seen_a_photographer_knows_their_other_photos_better() -> None:
    """By counting which city each shape and hue on a ground are most often from: no net can see more."""

    def seen(stream: int, photographers: list[str], photos: int) -> list[tuple[tuple, str]]:
        found = []
        for number in range(photos):
            rng = np.random.default_rng([8, stream, number])
            who = int(rng.integers(len(photographers)))
            place, (shape, hue) = choose(rng, home(who)), habits(photographers[who])
            found.append(((place.ground, shape or place.shape, hue or place.hue), place.city))
        return found

    known, others = users(98_000_001, 60), users(97_000_001, 600)
    counts: dict[tuple, Counter] = {}
    for looks, city in seen(0, known, 1500):
        counts.setdefault(looks, Counter())[city] += 1
    right = []
    for stream, photographers in ((1, known), (2, others)):
        tested = seen(stream, photographers, 1500)
        right.append(np.mean([counts.get(looks, Counter("?")).most_common(1)[0][0] == city for looks, city in tested]))
    assert right[0] - 0.05 > right[1] > 0.6
