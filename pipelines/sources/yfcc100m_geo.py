"""Where photos were taken: the photos of YFCC100M that have coordinates, about 48 million of them.

A photo is wanted if its place is known well enough, and if its photographer is none of those whose photos test the
nets (Im2GPS). The shards keep a photo's number and its place; not who took it, nor when, nor what was written about it
or into the file. A net that was trained on this must not be used to find out where a person is or was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from pipelines.crawl import Part, Wanted, crawled, read_part
from pipelines.sources import im2gps
from pipelines.sources.base import Fields, Sample, Source
from pipelines.sources.yfcc100m import (
    Listing,
    Row,
    image_urls,
    is_placeholder,
    note_passed,
    passed,
    pseudonym,
    rows,
    split_of,
)


class Options(Listing):
    """`shard.options` of params.yaml."""

    min_accuracy: Annotated[int, Field(ge=1, le=16)]  # Flickr's: 1 is the world, 3 a country, 11 a city, 16 a street
    exclude_uploaders_of: tuple[str, ...]  # zips of Im2GPS among the data set's files: nobody's photos train and test


class Unit(NamedTuple):
    """A part of the crawl, and how its photographers are split."""

    part: Part
    val_share: float
    seed: int


def classes(_folder: Path) -> list[str]:
    """None: a place is two numbers."""
    return []


def wanted(folder: Path, options: Options) -> Iterator[Wanted]:
    """The photos to fetch, in the order of the list. At its end, what was passed over, and why, is noted for `passed`.

    Raises ValueError that names the file for a list, or a zip of Im2GPS, that is not one.
    """
    excluded: set[str] = set()
    for name in options.exclude_uploaders_of:
        excluded |= im2gps.photographers(folder / name)
    passed_over = Counter[str]()
    for row in rows(folder / options.metadata, options.rows):
        cause = _cause(row, options.min_accuracy, excluded)
        if cause:
            passed_over[cause] += 1
            continue
        fields = {"uploader": pseudonym(row.uploader), "latitude": row.latitude, "longitude": row.longitude}
        yield Wanted(str(row.photo), image_urls(row, options), fields)
    note_passed(folder, passed_over)


def units(folder: Path, options: Options) -> list[Unit]:
    """The parts of the crawl."""
    return [Unit(part, options.val_share, options.seed) for part in crawled(folder)]


def samples(unit: Unit) -> Iterator[Sample]:
    """The photos of a part with their places; what Flickr shows in place of a photo is marked as bad."""
    for key, image, fields, place in read_part(unit.part):
        split = split_of(fields["uploader"], unit.val_share, unit.seed)
        where: Fields = {"latitude": fields["latitude"], "longitude": fields["longitude"]}
        bad = "placeholder" if is_placeholder(image) else None
        yield Sample(split, f"{key}.jpg", image, where, place, bad=bad)


def _cause(row: Row, min_accuracy: int, excluded: set[str]) -> str | None:
    """Why a row is passed over; None: its photo is wanted."""
    if row.is_video:
        return "video"
    if row.latitude is None or row.longitude is None:
        return "no coordinates"
    if not (-90 <= row.latitude <= 90 and -180 <= row.longitude <= 180):
        return "coordinates out of range"
    if row.latitude == row.longitude == 0:  # in the sea: what devices write that know of no place
        return "zero coordinates"
    if row.accuracy is None or row.accuracy < min_accuracy:
        return "too inaccurate"
    return "photographer of Im2GPS" if row.uploader in excluded else None


SOURCE = Source(classes, units, samples, Options, wanted=wanted, select=passed, bare=True)
