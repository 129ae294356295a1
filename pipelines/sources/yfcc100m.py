"""YFCC100M's list: a row for each of 100 million photos and videos of Flickr, and where their images lie.

The list comes as an SQLite database (https://multimedia-commons.s3-us-west-2.amazonaws.com/tools/etc/, 65.6 GB) or, as
Yahoo Webscope gave it out, as a table of tab-separated columns, plain or packed. Either way it is streamed: what is
held is one row. Longitude stands before latitude, and text is URL-encoded, with "+" for a blank, so that no title or
tag can hold a tab. The images lie in the public bucket `multimedia-commons` under names made from their URLs.

Two data sets are made from it: `yfcc100m_geo` and `yfcc100m_faces`. Both say which images they want (`wanted`), which
`pipelines.crawl` fetches, and then read those. Which photographer took a photo decides the split, so that pictures of
one afternoon are not on both sides; it is not stored in the shards.

In the 100 million rows no malformed one is known, so one is an error. Rows of use to nobody are passed over by the two
data sets, which count them.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import math
import re
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import quote, unquote_plus

import numpy as np
import simplejpeg

from pipelines.files import read_json, write_json
from pipelines.images import BadImage, check
from pipelines.section import Fraction, Positive, Section, Seed

SQLITE_MAGIC = b"SQLite format 3\0"
TABLE = "yfcc100m_dataset"
SPANS = 100  # queries in which the database is read: none of them lasts for hours
# Columns of the table: 25, or 23 in its first edition, which lacks the row's number and the hash. From the end they are
# the same: ... user (-22), ..., longitude (-13), latitude, accuracy, page, download URL (-9), ..., extension, marker.
WIDTHS = {25: 1, 23: 0}  # -> the photo's column
USED = (-22, -13, -12, -11, -9, -1)
MAX_LINE = 1 << 20  # bytes; upstream's longest texts have some 100 kB

_USER, _URL, _MARKER = re.compile("[0-9]+(@|%40)N[0-9]+"), re.compile(r"https?://\S+"), re.compile("0|1")

PLACEHOLDER_BYTES, PLACEHOLDER_SHARE, PLACEHOLDER_VARIANCE = 20_000, 95, 50
PLACEHOLDER_PIXELS = 4_000_000
PASSED = "passed_over.json"


class Listing(Section):
    """What `shard.options` of params.yaml says for both data sets."""

    metadata: str  # the list, one of the data set's files: the database, or the table, plain or with .bz2 or .gz
    rows: Positive | None  # that the list must have; null: any number
    image_base: str  # where `data/images/` of the bucket lies, as https:, s3: or file:
    original_urls: bool  # ask Flickr itself for what is not there
    val_share: Fraction  # of the photographers
    seed: Seed  # of that choice


class Row(NamedTuple):
    """What is used of a row. Coordinates and accuracy are None where it has none."""

    photo: int
    uploader: str  # "19355699@N00"
    longitude: float | None
    latitude: float | None
    accuracy: int | None  # Flickr's: 1 is the world, 16 a street
    url: str  # of the image, where Flickr had it
    is_video: bool


def rows(path: Path, count: int | None = None) -> Iterator[Row]:
    """All rows in the order of the list; of the database, in that of its row numbers.

    Raises ValueError that names the file, and the line or row, for anything else than such a list, for a cut one, and
    for another number of rows than `count`.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    with path.open("rb") as file:
        is_database = file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    found = 0
    for row in _all_of_database(path) if is_database else _all_of_table(path):
        found += 1
        yield row
    if count not in (None, found):
        raise ValueError(f"{path} has {found} rows, the options say {count}")


def spans(path: Path, count: int) -> list[range]:
    """The database's row numbers in at most `count` ranges: pieces of the list that can be read side by side."""
    with _database(path) as database:
        first, last = database.execute("SELECT min(rowid), max(rowid) FROM yfcc100m_dataset").fetchone()
    if first is None:
        return []
    step = -(-(last + 1 - first) // count)
    return [range(start, min(start + step, last + 1)) for start in range(first, last + 1, step)]


def rows_within(path: Path, span: range) -> Iterator[Row]:
    """The database's rows with numbers in `span`, in that order."""
    with _database(path) as database:
        found = database.execute(
            "SELECT photoid, uid, longitude, latitude, accuracy, downloadurl, marker, rowid FROM yfcc100m_dataset "
            "WHERE rowid BETWEEN ? AND ? ORDER BY rowid",
            (span[0], span[-1]),
        )
        for *values, number in found:
            yield _row(["" if value is None else str(value) for value in values], path, "row", number)


def image_key(url: str) -> str:
    """Where the image of a download URL lies in the bucket, such as "data/images/6a4/98b/6a498b(...).jpg".

    The name is the URL's MD5 with each byte in hexadecimal, but without a leading zero ("0a" is "a"), so that it can be
    shorter than 32 characters: https://gitlab.com/jfolz/yfcc100m, `yfcc_hash`.
    """
    name = "".join(f"{byte:x}" for byte in hashlib.md5(url.encode(), usedforsecurity=False).digest())
    return f"data/images/{name[:3]}/{name[3:6]}/{name}.jpg"


def image_urls(row: Row, options: Listing) -> tuple[str, ...]:
    """Where the image of a row can be had, in order of preference."""
    first = f"{options.image_base.rstrip('/')}/{image_key(row.url)}"
    return (first, row.url) if options.original_urls else (first,)


def pseudonym(uploader: str) -> str:
    """What stands for a photographer beside the crawled images: 16 hexadecimal digits, by which the split is chosen."""
    return hashlib.sha256(uploader.encode()).hexdigest()[:16]


def split_of(uploader: str, val_share: float, seed: int) -> str:
    """ "train" or "val", the same for all photos of whom `pseudonym` calls so."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed} {uploader}".encode()).digest()[:8], "big")
    return "val" if drawn < val_share * 2**64 else "train"


def is_placeholder(image: bytes) -> bool:
    """Whether an image is rather the notice that there is none: small, and nearly all columns of one grey.

    That is, below 20,000 bytes, and the 95th percentile of the columns' variances below 50 grey levels squared
    (https://gitlab.com/jfolz/yfcc100m, `validate_image`). Flickr's own notice is a PNG. What cannot be read is none:
    `images.check` will say what it is.
    """
    if len(image) >= PLACEHOLDER_BYTES:
        return False
    try:
        whole = check(image, PLACEHOLDER_PIXELS, PLACEHOLDER_BYTES).image
    except BadImage:
        return False
    # At an eighth of its size if it is large: notices are known by what is large in them.
    grey = simplejpeg.decode_jpeg(whole, "gray", fastdct=True, fastupsample=True, min_height=100, min_width=100)
    variances = grey[..., 0].var(axis=0)
    return bool(np.percentile(variances, PLACEHOLDER_SHARE) < PLACEHOLDER_VARIANCE)


def note_passed(folder: Path, counts: Counter[str]) -> None:
    """Keep how many rows of the list were passed over, and why, for `passed`."""
    write_json(folder / PASSED, dict(sorted(counts.items())))


def passed(folder: Path, _options: Listing) -> dict[str, Any]:
    """What the manifest says of the rows of the list that were passed over."""
    return {"passed_over": read_json(folder / PASSED)}


def _all_of_database(path: Path) -> Iterator[Row]:
    for span in spans(path, SPANS):
        yield from rows_within(path, span)


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, only to be read. Raises ValueError that names it if it is cut, or has not the table."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")  # no function that the file names is run
            kind = database.execute("SELECT type FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
            if kind != ("table",):
                raise ValueError(f"{path} has no table {TABLE}")
            yield database
    except sqlite3.Error as error:
        raise ValueError(f"{path} is cut, or is not the database of YFCC100M: {error}") from None


def _all_of_table(path: Path) -> Iterator[Row]:
    with _unpacked(path) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if not line.endswith(b"\n"):
                problem = f"is longer than {MAX_LINE} bytes" if len(line) == MAX_LINE else "is cut"
                raise ValueError(f"{path} line {number} {problem}")
            columns = line.removesuffix(b"\n").split(b"\t")
            if len(columns) not in WIDTHS:
                raise ValueError(f"{path} line {number} has {len(columns)} columns, not 25 (or 23, as once)")
            used = [columns[WIDTHS[len(columns)]], *(columns[column] for column in USED)]
            yield _row([value.decode("utf-8", "replace") for value in used], path, "line", number)


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    openers: dict[str, Any] = {".bz2": bz2.open, ".gz": gzip.open}
    try:
        with openers.get(path.suffix, open)(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is cut or cannot be read: {error}") from error


def _row(values: Sequence[str], path: Path, unit: str, number: int) -> Row:
    photo, uploader, longitude, latitude, accuracy, url, marker = values
    try:
        return Row(
            _whole(photo, "photo"),
            unquote_plus(_like(uploader, _USER, "user")),
            _degrees(longitude, "longitude"),
            _degrees(latitude, "latitude"),
            _whole(accuracy, "accuracy") if accuracy else None,
            _like(url, _URL, "download URL"),
            _like(marker, _MARKER, "marker") == "1",
        )
    except ValueError as error:
        raise ValueError(f"{path} {unit} {number}: {error}") from None


def _like(text: str, form: re.Pattern[str], name: str) -> str:
    if not form.fullmatch(text):
        raise ValueError(f"{name} {text!r} is not {form.pattern}")
    return text


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        raise ValueError(f"{name} {text!r} is not a whole number")
    return int(text)


def _degrees(text: str, name: str) -> float | None:
    """None for no text. What is out of range is left to those who need a place."""
    if not text:
        return None
    try:
        degrees = float(text)
    except ValueError:
        degrees = math.nan
    if not math.isfinite(degrees):
        raise ValueError(f"{name} {text!r} is not a number of degrees")
    return degrees
