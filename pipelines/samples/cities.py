"""Made-up places, and photos that show them: the finer the place, the harder it is to see.

The colour of the ground tells the continent, the shape on it which of the continent's two countries, the shape's colour
which of the country's two cities, and how light the ground is, which overlaps, in which of three districts. What is
mistaken for what decides how far off a guess is: photos of a district lie within a km or so, its suburb is 8 km from a
city's centre, its town 90 km; the other city is 400 km away, the other country 1,000 to 1,900 km, other continents more
than 5,000 km. Two cities lie on both sides of the antimeridian.

Some cities have many times the photos of others, and a few photos are from where there is nothing else.

A photographer takes most photos at home, and may be one whose photos all have one colour, or one shape. A net that has
seen some of these knows where the others are from; one that has not can only guess. So photos of one photographer that
are trained on and tested with make a result better than it is.
"""

from __future__ import annotations

import colorsys
import math
from bisect import bisect
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from pipelines.samples.drawing import HUES, SHAPES, Picture, draw

DEGREE = 111.2  # km of latitude
APART = 200.0  # km from the middle of a country to each of its cities
SPREAD = 0.3  # km; standard deviation of photos around the middle of their district, to the north and to the east
DISTRICTS = (  # km east of the middle of the city; share of its photos; how light the ground is, in [0, 1]
    (0.0, 0.45, 0.62),
    (-8.0, 0.35, 0.32),
    (90.0, 0.2, 0.92),
)
SAME_SHAPE, SAME_HUE = 0.12, 0.4  # share of photographers whose photos all have one shape, and one hue
LONE_SHARE, LONE_SPREAD = 0.01, 100.0  # share of photos that are from no city; km
HOME_SHARE = 0.7  # of a photographer's photos, beside those that are taken there by chance
GOLDEN = (5**0.5 - 1) / 2
ASPECTS = (4 / 3, 4 / 3, 3 / 4, 3 / 2, 1.0)  # width / height


class Place(NamedTuple):
    """Where photos are taken, and what they show."""

    city: str
    latitude: float  # of the middle, in degrees, as the longitude
    longitude: float
    spread: float  # km
    shape: str
    hue: str
    ground: float  # hue of the background, in turns
    light: float  # its value, in [0, 1]


class City(NamedTuple):
    """Places in the order of `DISTRICTS`, and how many photos they have to those of other cities."""

    name: str
    weight: int
    districts: tuple[Place, ...]


COUNTRIES = (  # of the ground, the hue; the shape; latitude and longitude of the middle; hues and weights of the cities
    (0.09, "disc", 48.0, 2.0, {"red": 5, "blue": 2}),
    (0.09, "ring", 41.0, 15.0, {"green": 4, "violet": 1}),
    (0.28, "bars", 40.0, -100.0, {"green": 4, "violet": 2}),
    (0.28, "checks", 37.0, -84.0, {"blue": 5, "red": 1}),
    (0.55, "cross", 27.0, 78.0, {"red": 5, "green": 2}),
    (0.55, "star", 14.0, 80.0, {"blue": 4, "violet": 1}),
    (0.85, "disc", -17.0, -179.97, {"green": 2, "violet": 2}),
    (0.85, "bars", -28.0, 172.0, {"red": 3, "blue": 1}),
)
LONE = tuple(
    Place("Nowhere", latitude, longitude, LONE_SPREAD, "star", "green", 0.65, 0.97)
    for latitude, longitude in (
        (76.0, -40.0), (74.0, 100.0), (82.0, 175.0), (-72.0, 20.0), (-35.0, -12.0), (-5.0, -20.0), (-30.0, 92.0),
        (30.0, -48.0), (-40.0, -100.0), (25.0, 179.6),
    )
)  # fmt: skip


def _moved(latitude: float, longitude: float, north: float, east: float) -> tuple[float, float]:
    """The place so many km further north and east, in degrees, the longitude in -180..180."""
    across = DEGREE * math.cos(math.radians(latitude))
    return latitude + north / DEGREE, (longitude + east / across + 180) % 360 - 180


def _cities() -> tuple[City, ...]:
    found = []
    for ground, shape, latitude, longitude, hues in COUNTRIES:
        for side, (hue, weight) in zip((1, -1), hues.items(), strict=True):
            name = f"{hue.title()}{shape}"
            at = _moved(latitude, longitude, side * APART, 0.0)
            places = (
                Place(name, *_moved(*at, 0.0, east), SPREAD, shape, hue, ground, light) for east, _, light in DISTRICTS
            )
            found.append(City(name, weight, tuple(places)))
    return tuple(found)


CITIES = _cities()
PLACES = (*(place for city in CITIES for place in city.districts), *LONE)
_PHOTOS = tuple(accumulate(city.weight for city in CITIES))
_SHARES = tuple(accumulate(share for _, share, _ in DISTRICTS))


def home(number: int) -> City:
    """Where the photographer of that number lives: of as many in a row as all weights, each city has its own."""
    return _city(number * GOLDEN % 1)


def choose(rng: np.random.Generator, home: City | None = None) -> Place:
    """Where the next photo is taken, by someone who lives in `home`, or whose home is nowhere special."""
    lone, at_home, city, district = rng.uniform(size=4)
    if lone < LONE_SHARE:
        return LONE[int(lone / LONE_SHARE * len(LONE))]
    chosen = home if home and at_home < HOME_SHARE else _city(city)
    return chosen.districts[bisect(_SHARES[:-1], district)]


def near(rng: np.random.Generator, place: Place) -> tuple[float, float]:
    """Latitude and longitude of a photo from a place, in degrees with six decimals."""
    north, east = rng.normal(scale=place.spread, size=2)
    latitude, longitude = _moved(place.latitude, place.longitude, north, east)
    return round(latitude, 6), round(longitude, 6)


def view(rng: np.random.Generator, place: Place, size: int, photographer: str) -> Picture:
    """A picture from a place, `size` pixels on the longer side give or take a quarter.

    photographer: a user number of Flickr ("98000001@N99"), whose mark is in it.
    """
    long_side = size * rng.uniform(0.75, 1.25)
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    height, width = round(long_side / max(aspect, 1.0)), round(long_side * min(aspect, 1.0))
    look = rng.spawn(1)[0]  # not `rng`: what others draw from it stays as it is, whatever the place looks like
    red, green, blue = colorsys.hsv_to_rgb(
        (place.ground + look.uniform(-0.04, 0.04)) % 1, look.uniform(0.45, 0.7), look.normal(place.light, 0.12)
    )
    shape, hue = habits(photographer)
    ground = (255 * red, 255 * green, 255 * blue)
    return draw(rng, shape or place.shape, hue or place.hue, height, width, ground)


def habits(photographer: str) -> tuple[str | None, str | None]:
    """The shape and the hue that all photos of a photographer have, whatever the place; None: those of the place."""
    rng = np.random.default_rng(int(photographer.partition("@")[0]))
    shape, hue = list(SHAPES)[rng.integers(len(SHAPES))], list(HUES)[rng.integers(len(HUES))]
    return shape if rng.uniform() < SAME_SHAPE else None, hue if rng.uniform() < SAME_HUE else None


def _city(share: float) -> City:
    """The city in which that share of all photos ends, city by city."""
    return CITIES[bisect(_PHOTOS, share * _PHOTOS[-1])]
