"""Look-alikes of Im2GPS and Im2GPS3k: a zip of photos whose places can be seen in them, and for the latter a table.

The layout is the upstream one: names of photo, secret, server and photographer, some behind a place; for Im2GPS
several JPEG comments to each photo, of which two are its coordinates; for Im2GPS3k a CSV that lacks a few of the
images. How the comments are worded is known from the authors' downloader alone. A few photos are grey, CMYK or turned
by an EXIF tag.

The places are made up. A photo's shape tells the country, its colour which of the country's two cities it is from: the
cities are 440 km apart, the countries some thousands. `pipelines.samples.yfcc100m` has photos of the same places.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.samples.drawing import Picture, draw
from pipelines.samples.writing import add_to_zip, check_ranges, encode

KINDS = ("grey", "cmyk", "turned")  # no PNG: it has no comments
ASPECTS = (4 / 3, 4 / 3, 3 / 4, 3 / 2, 1.0)  # width / height
APART = 2.0  # degrees of latitude from the middle of a country to each of its cities: 222 km
SPREAD = 0.05  # degrees; standard deviation of photos around the middle of their city: 6 km
PHOTOGRAPHERS = tuple(f"{99_000_001 + number}@N99" for number in range(6))


class City(NamedTuple):
    """A place with photos, and what they show."""

    name: str
    latitude: float
    longitude: float
    shape: str
    hue: str


COUNTRIES = {  # shape -> the middle of the country, in degrees, and the hues of its cities
    "disc": (49.0, 2.0, ("red", "blue")),
    "bars": (40.0, -100.0, ("green", "violet")),
    "ring": (-23.0, -46.0, ("red", "green")),
    "checks": (27.0, 78.0, ("blue", "violet")),
    "cross": (-31.0, 146.0, ("red", "violet")),
    "star": (-1.0, 34.0, ("blue", "green")),
}
CITIES = tuple(
    City(f"{hue.title()}{shape}", latitude + APART * side, longitude, shape, hue)
    for shape, (latitude, longitude, hues) in COUNTRIES.items()
    for side, hue in zip((1, -1), hues, strict=True)
)


def write(folder: Path, *, photos: int = 48, size: int = 128, seed: int = 0) -> None:
    """Write `gps_query_imgs.zip` with so many photos, about `size` pixels on the longer side.

    The same options give the same bytes (of one version of libjpeg and zlib). Raises ValueError for options out of
    range.
    """
    check_ranges("im2gps", photos=(photos, 2 * len(KINDS), 10_000), size=(size, 32, 1024))
    with zipfile.ZipFile(folder / "gps_query_imgs.zip", "w") as archive:
        add_to_zip(archive, "Thumbs.db", b"a file that is no photo")
        for number in range(photos):
            rng = np.random.default_rng([seed, 10, number])
            city = CITIES[number % len(CITIES)]
            name, place = _name(rng, number, city.name if number % 3 == 0 else None), near(rng, city)
            image = _image(rng, number, photos, size, _comments(name, place, number))
            # As zip programs do: packed where it makes a photo smaller, which is rare.
            add_to_zip(archive, name, image, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)


def write_3k(folder: Path, *, photos: int = 48, left_out: int = 3, size: int = 128, seed: int = 0) -> None:
    """Write `im2gps3ktest.zip` with so many photos, and `im2gps3k_places365.csv` with rows for all but `left_out`.

    As `write` otherwise; these are other photos, of the same places and by the same photographers.
    """
    check_ranges("im2gps3k", photos=(photos, 2 * len(KINDS), 10_000), left_out=(left_out, 0, photos // 2),
                 size=(size, 32, 1024))  # fmt: skip
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("IMG_ID", "AUTHOR", "LAT", "LON", "Prob_indoor"))
    with zipfile.ZipFile(folder / "im2gps3ktest.zip", "w") as archive:
        add_to_zip(archive, "im2gps3ktest/", b"")
        for number in range(photos):
            rng = np.random.default_rng([seed, 11, number])
            city = CITIES[number % len(CITIES)]
            name, place = _name(rng, 10_000 + number, city.name if number % 2 == 0 else None), near(rng, city)
            add_to_zip(archive, f"im2gps3ktest/{name}", _image(rng, number, photos, size))
            if number % 2 == 0 or number // 2 >= left_out:
                rows.writerow((name, _photographer(name), f"{place[0]:.6f}", f"{place[1]:.6f}", "0.25"))
    (folder / "im2gps3k_places365.csv").write_text(table.getvalue())


def view(rng: np.random.Generator, city: City, size: int) -> Picture:
    """A picture from a city, `size` pixels on the longer side give or take a quarter."""
    long_side = size * rng.uniform(0.75, 1.25)
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    height, width = round(long_side / max(aspect, 1.0)), round(long_side * min(aspect, 1.0))
    return draw(rng, city.shape, city.hue, height, width)


def near(rng: np.random.Generator, city: City) -> tuple[float, float]:
    """Latitude and longitude of a photo from a city, in degrees with six decimals."""
    north, east = rng.normal(scale=SPREAD, size=2)
    return round(city.latitude + north, 6), round(city.longitude + east, 6)


def _image(rng: np.random.Generator, number: int, photos: int, size: int, comments: tuple[bytes, ...] = ()) -> bytes:
    """The photo as a file; those of `KINDS` are spread evenly, each at least twice."""
    turn, rest = divmod(number, photos // (2 * len(KINDS)))
    kind = "jpeg" if rest else KINDS[turn % len(KINDS)]
    return encode(view(rng, CITIES[number % len(CITIES)], size), kind, int(rng.integers(75, 96)), comments)


def _name(rng: np.random.Generator, number: int, place: str | None) -> str:
    photographer = PHOTOGRAPHERS[number % len(PHOTOGRAPHERS)]
    name = f"{99_900_000_000 + number}_{rng.bytes(5).hex()}_{rng.integers(1, 200)}_{photographer}.jpg"
    return f"{place}_{number:05d}_{name}" if place else name


def _photographer(name: str) -> str:
    return name.removesuffix(".jpg").rpartition("_")[2]


def _comments(name: str, place: tuple[float, float], number: int) -> tuple[bytes, ...]:
    """What the downloader noted, a comment to a line; titles and tags may speak of other places."""
    photo, secret, server, photographer = name.removesuffix(".jpg").rsplit("_", 3)
    title = "latitude: 12.5" if number % 5 == 0 else "a made-up photo"
    lines = (
        f"photo: {photo.rpartition('_')[2]} {secret} {server}", f"owner: {photographer}", f"title: {title}",
        "datetaken: 2007-06-05 04:03:02", "tags: geotagged geo:lat=1.5 longitude=2.5", "license: 3",
        f"latitude: {place[0]}", f"longitude: {place[1]}", "accuracy: 16", "views: 7",
    )  # fmt: skip
    return tuple(line.encode() for line in lines)
