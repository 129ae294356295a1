"""Im2GPS as its authors publish it (http://graphics.cs.cmu.edu/projects/im2gps/): a zip of photos to find the place of.

`gps_query_imgs.zip` holds 237 photos, each named `[<place>_]<photo id>_<secret>_<server>_<photographer>.jpg`. Where a
photo was taken is not in its name or EXIF but in its JPEG comments. The project page: "The gps coordinates along with
other image info are saved in the jpeg comment fields." There are several to a file, of which many readers keep one.

Im2GPS3k (https://arxiv.org/abs/1705.04838; `im2gps3ktest.zip`) has 3,000 more of these names, with the coordinates in
a table beside it, which lacks three. Both data sets have this source; its options say where the coordinates are.

The photos are people's own, and whoever took them is named in the file names: the shards keep the names, since that is
what a result on a photo is reported by. They are for measuring, not for finding out where somebody was.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

from pydantic import Field

from pipelines.section import Section
from pipelines.sources.base import Place, Sample, Source
from pipelines.zips import ZipMember, read_zip, zip_members

UNIT = 500  # images
MAX_MEMBERS = 100_000  # upstream: 3,000 images at most
MAX_IMAGE_BYTES = 1 << 26  # upstream: 39 MB for all 237
MAX_TABLE_BYTES = 1 << 26
COLUMNS = ("IMG_ID", "LAT", "LON")  # of the table; others, such as AUTHOR, say nothing that is needed here

SOI, SOS, EOI, COM = 0xD8, 0xDA, 0xD9, 0xFE  # JPEG's markers (ITU-T T.81, table B.1)
_MARKER = re.compile(rb"\xff+[^\x00\xff]")  # it may be filled up with 0xFF
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length: TEM, RST0 to RST7, SOI

_NAME = re.compile(r"(?:.+_)?(?P<photo>[0-9]+)_[0-9a-f]+_[0-9]+_(?P<photographer>[0-9]+@N[0-9]+)\.jpe?g", re.I | re.A)
# The authors' downloader writes "latitude: 35.6"; a label can also be short, and stand before "=" or a blank. It begins
# the line: titles and tags, which may speak of places too, come behind labels of their own.
_COORDINATE = re.compile(
    r"(?:(?P<latitude>lat(?:itude)?)|lon|long|longitude|lng)(?:\s*[:=]\s*|\s+)(?P<degrees>[-+]?\d{1,3}(?:\.\d+)?)",
    re.I | re.A,
)
_LINES = re.compile(rb"[\r\n\0]+")


class Options(Section):
    """`shard.options` of params.yaml."""

    images: str  # the zip, one of the data set's files
    table: str | None  # a CSV with IMG_ID, LAT and LON, one of the data set's files; null: coordinates are in comments
    left_out: Annotated[int, Field(ge=0)]  # how many images the table lacks, and the data set with it; 0 without one


class Coordinates(NamedTuple):
    """Degrees north and east."""

    latitude: float
    longitude: float


class Unit(NamedTuple):
    """A slice of the photos, in place."""

    path: Path
    images: tuple[ZipMember, ...]
    coordinates: tuple[Coordinates | None, ...]  # None: in the image's comments


def classes(_folder: Path) -> list[str]:
    """None: a place is two numbers."""
    return []


def units(folder: Path, options: Options) -> list[Unit]:
    """Slices of the photos in the order of their names.

    Raises ValueError where the table names an image that the zip has not, or not just `left_out` images lack a row.
    """
    path = folder / options.images
    images = photos(path)
    if options.table is None:
        if options.left_out:
            raise ValueError(f"left_out is {options.left_out}, but there is no table that could lack images")
        rows: dict[str, Coordinates | None] = dict.fromkeys(images)
    else:
        table = folder / options.table
        rows = {**_table(table)}
        unknown = sorted(rows.keys() - images.keys())
        if unknown:
            raise ValueError(f"{table} has {len(unknown)} images that {path} has not: {', '.join(unknown[:5])}")
        if len(images) - len(rows) != options.left_out:
            raise ValueError(
                f"{path} holds {len(images)} images, {table} has {len(rows)}: left out would be "
                f"{len(images) - len(rows)}, the options say {options.left_out}"
            )
    names = sorted(rows)
    return [
        Unit(path, tuple(images[name] for name in part), tuple(rows[name] for name in part))
        for part in (names[start : start + UNIT] for start in range(0, len(names), UNIT))
    ]


def samples(unit: Unit) -> Iterator[Sample]:
    """The photos of a unit with their coordinates, in the order of their names.

    Raises ValueError for a photo whose comments lack a coordinate, or have two that differ.
    """
    with unit.path.open("rb") as file:
        for member, given in zip(unit.images, unit.coordinates, strict=True):
            image, offset = read_zip(file, str(unit.path), member)
            latitude, longitude = given or coordinates(comments(image), f"{unit.path}: {member.name}")
            place = None if offset is None else Place(unit.path, offset)
            yield Sample("test", _basename(member), image, {"latitude": latitude, "longitude": longitude}, place)


def photos(path: Path) -> dict[str, ZipMember]:
    """The photos of the zip by their names, without folders; what is no JPEG file by its name is passed over.

    Raises ValueError for a name that comes twice or is not of the form above.
    """
    found: dict[str, ZipMember] = {}
    for member in zip_members(path, max_members=MAX_MEMBERS, max_bytes=MAX_IMAGE_BYTES):
        name = _basename(member)
        if name.startswith(".") or PurePosixPath(name).suffix.lower() not in (".jpg", ".jpeg"):
            continue
        if not _NAME.fullmatch(name):
            raise ValueError(f"{path}: {member.name!r} is not [<place>_]<photo>_<secret>_<server>_<photographer>.jpg")
        if name in found:
            raise ValueError(f"{path}: two images are named {name!r}")
        found[name] = member
    return found


def photographers(path: Path) -> set[str]:
    """Who took the photos of the zip, as Flickr's user numbers ("19355699@N00"): no other photo of theirs may train."""
    matches = (_NAME.fullmatch(name) for name in photos(path))
    return {match["photographer"] for match in matches if match}


def comments(image: bytes) -> list[bytes]:
    """All comment segments of a JPEG that stand before its picture, in order; [] for what is no JPEG."""
    found: list[bytes] = []
    position = 2 if image[:2] == bytes([0xFF, SOI]) else len(image)
    while match := _MARKER.match(image, position):
        position, marker = match.end() - 2, image[match.end() - 1]
        if marker in (SOS, EOI):
            break
        if marker in _ALONE:
            position += 2
            continue
        length = int.from_bytes(image[position + 2 : position + 4], "big")  # counts itself
        if length < 2:
            break
        if marker == COM:
            found.append(image[position + 4 : position + 2 + length])
        position += 2 + length
    return found


def coordinates(texts: list[bytes], where: str) -> Coordinates:
    """The place that a photo's comments name, whatever their number, order and other contents.

    A coordinate is a line, or a comment, that consists of "latitude" or "lat", "longitude", "lon", "long" or "lng" (in
    any case), then ":", "=" or a blank, and degrees as a decimal number. What comes again must be the same. Raises
    ValueError that names `where` for one that is missing, comes with two values, or is out of range.
    """
    values: dict[str, set[float]] = {"latitude": set(), "longitude": set()}
    for text in texts:
        for line in _LINES.split(text):
            match = _COORDINATE.fullmatch(line.decode("latin-1").strip())
            if match:
                values["latitude" if match["latitude"] else "longitude"].add(float(match["degrees"]))
    for axis, degrees in values.items():
        if len(degrees) != 1:
            told = f"say {axis} {' and '.join(map(str, sorted(degrees)))}" if degrees else f"have no {axis}"
            raise ValueError(f"{where}: its {len(texts)} comments {told}")
    return _checked(values["latitude"].pop(), values["longitude"].pop(), where)


def _basename(member: ZipMember) -> str:
    return PurePosixPath(member.name).name


def _table(path: Path) -> dict[str, Coordinates]:
    """The rows of the table by image. Raises ValueError that names file and line for what is not such a row."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, allowed are {MAX_TABLE_BYTES}")
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode()), strict=True)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} has the columns {reader.fieldnames}, needed are {', '.join(COLUMNS)}")
        rows: dict[str, Coordinates] = {}
        for row in reader:
            where = f"{path} line {reader.line_num}"
            name, latitude, longitude = (row[column] for column in COLUMNS)
            if None in row or None in row.values():
                raise ValueError(f"{where} has not the {len(reader.fieldnames or ())} columns of the first line")
            if name in rows:
                raise ValueError(f"{where}: {name} comes twice")
            rows[name] = _checked(_degrees(latitude, where), _degrees(longitude, where), where)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a table: {error}") from None
    return rows


def _degrees(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {text!r} is not a number of degrees") from None


def _checked(latitude: float, longitude: float, where: str) -> Coordinates:
    for axis, degrees, most in (("latitude", latitude, 90), ("longitude", longitude, 180)):
        if not (math.isfinite(degrees) and -most <= degrees <= most):
            raise ValueError(f"{where}: {axis} {degrees} is not in -{most}..{most}")
    return Coordinates(latitude, longitude)


SOURCE = Source(classes, units, samples, Options)
