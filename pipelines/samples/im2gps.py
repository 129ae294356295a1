"""Look-alikes of Im2GPS and Im2GPS3k: a zip of photos whose places can be seen in them, and for the latter a table.

The layout is the upstream one: names of photo, secret, server and photographer, some behind a place; for Im2GPS
several JPEG comments to each photo, of which two are its coordinates; for Im2GPS3k a CSV that lacks a few of the
images. How the comments are worded is known from the authors' downloader alone. A few photos are grey, CMYK or turned
by an EXIF tag.

The places are those of `pipelines.samples.cities`, of which `pipelines.samples.yfcc100m` has photos too. The
photographers live in none of the cities, so that their photos are from all of them, as the cities' weights say.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np

from pipelines.samples.cities import Place, choose, near, view
from pipelines.samples.writing import add_to_zip, check_ranges, encode

KINDS = ("grey", "cmyk", "turned")  # no PNG: it has no comments
PHOTOGRAPHERS = tuple(f"{99_000_001 + number}@N99" for number in range(6))


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
            place = choose(rng)
            name = _name(rng, number, place.city if number % 3 == 0 else None)
            comments = _comments(name, near(rng, place), number)
            image = _image(rng, place, name, _kind(number, photos), size, comments)
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
            place = choose(rng)
            name = _name(rng, 10_000 + number, place.city if number % 2 == 0 else None)
            latitude, longitude = near(rng, place)
            add_to_zip(archive, f"im2gps3ktest/{name}", _image(rng, place, name, _kind(number, photos), size))
            if number % 2 == 0 or number // 2 >= left_out:
                rows.writerow((name, _photographer(name), f"{latitude:.6f}", f"{longitude:.6f}", "0.25"))
    (folder / "im2gps3k_places365.csv").write_text(table.getvalue())


def _image(
    rng: np.random.Generator, place: Place, name: str, kind: str, size: int, comments: tuple[bytes, ...] = ()
) -> bytes:
    return encode(view(rng, place, size, _photographer(name)), kind, int(rng.integers(75, 96)), comments)


def _kind(number: int, photos: int) -> str:
    """Mostly "jpeg", but each of `KINDS` at least twice, evenly spread."""
    turn, rest = divmod(number, photos // (2 * len(KINDS)))
    return "jpeg" if rest else KINDS[turn % len(KINDS)]


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
