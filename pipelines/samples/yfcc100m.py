"""A look-alike of YFCC100M: the list as database and as packed table, images at the bucket's names, boxes of faces.

The list has the upstream columns, encodings and unevenness: videos, rows without coordinates or with poor ones, texts
in many scripts. The images are the members of `mirror.tar`, named by their percent-encoded URLs, which stands in for
the network: a few are only where Flickr had them, a few nowhere, a few are Flickr's notice that there is none, and a
few are grey, CMYK, turned by an EXIF tag, or PNG named .jpg.

The places, and what a photo shows of them, are those of `pipelines.samples.cities`; each user lives in one of its
cities. The photographers of `pipelines.samples.im2gps` have photos here too. The faces are those of
`pipelines.samples.faces`: a photo without coordinates shows one alone, others may have small ones in their corners.
Users, texts and URLs are made up; the hosts end in .invalid, so that nothing is ever asked of Flickr.
"""

from __future__ import annotations

import bz2
import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, quote_plus

import cv2
import numpy as np

from pipelines.samples.cities import Place, choose, home, near, view
from pipelines.samples.drawing import Picture
from pipelines.samples.faces import choose_look, draw_face, make_person
from pipelines.samples.im2gps import PHOTOGRAPHERS
from pipelines.samples.writing import ODD_KINDS, add_to_tar, check_ranges, encode, open_tar

BUCKET = "s3://multimedia-commons"  # what `image_base` has to be
COLUMNS = ("photoid", "uid", "unickname", "datetaken", "dateuploaded", "capturedevice", "title", "description",
           "usertags", "machinetags", "longitude", "latitude", "accuracy", "pageurl", "downloadurl", "licensename",
           "licenseurl", "serverid", "farmid", "secret", "secretoriginal", "ext", "marker")  # fmt: skip
CYCLE = 24  # rows, in which the kinds below come so often
KINDS = ("video", "alone", "alone", "alone", "alone", "alone", "alone", "inaccurate", "im2gps", "zero")  # then "place"
ODD_PLACES = (1, 11)  # in a cycle: photos that may be of an odd kind, one of a face and one of a place
DEAD = 40  # each 40th photo is gone from the bucket, every other one of them altogether
FIRST_PHOTO = 99_800_000_000
TITLES = ("A made-up title", "tab\there", "new\nline", "\u6771\u4eac + 100 %", "\u0645\u062f\u064a\u0646\u0629", "")

Rectangle = tuple[int, int, int, int]  # left, top, width, height in pixels


class Photo(NamedTuple):
    """A row of the list as the sample sees it."""

    number: int
    kind: str
    photo: int
    user: str
    url: str
    place: Place


def write(folder: Path, *, rows: int = 1200, users: int = 60, size: int = 128, seed: int = 0) -> None:
    """Write a list of so many rows by so many users, and the images, about `size` pixels on the longer side.

    The same options give the same bytes (of one version of libjpeg, SQLite and bzip2). Raises ValueError for options
    that leave no room for two of everything.
    """
    check_ranges(
        "yfcc100m", rows=(rows, 2 * len(ODD_KINDS) * CYCLE, 100_000), users=(users, 4, 10_000), size=(size, 64, 1024)
    )
    photos = list(_photos(rows, users, seed))
    texts = [_columns(photo, seed) for photo in photos]
    table = "".join(
        "\t".join((str(line), text[0], _md5(text[0]).hex(), *text[1:])) + "\n" for line, text in enumerate(texts)
    )
    (folder / "yfcc100m_dataset.bz2").write_bytes(bz2.compress(table.encode()))
    _write_database(folder / "yfcc100m_dataset.sql", texts)
    boxes: list[str] = []
    with (folder / "mirror.tar").open("wb") as file, open_tar(file) as tar:
        for photo in photos:
            if photo.kind != "video":
                image, faces = _image(photo, rows, size, seed)
                boxes += ["\t".join(map(str, (photo.photo, *face))) + "\n" for face in faces]
                url = _where(photo)
                if url:
                    add_to_tar(tar, quote(url, safe=""), image)
    order = np.random.default_rng([seed, 22]).permutation(len(boxes))
    (folder / "face_boxes.tsv").write_text("".join(boxes[place] for place in order))


def _photos(rows: int, users: int, seed: int) -> Iterator[Photo]:
    numbers = np.random.default_rng([seed, 20]).permutation(rows)  # the list is not in the order of the photos
    for number in range(rows):
        rng = np.random.default_rng([seed, 21, number])
        at = number % CYCLE
        kind = KINDS[at] if at < len(KINDS) else "place"
        is_tester = kind == "im2gps"
        user = (
            PHOTOGRAPHERS[number // CYCLE % len(PHOTOGRAPHERS)] if is_tester else f"{98_000_001 + number % users}@N99"
        )
        place = choose(np.random.default_rng([seed, 25, number]), None if is_tester else home(number % users))
        photo = FIRST_PHOTO + int(numbers[number])
        url = f"http://farm{number % 9 + 1}.flickr.invalid/{rng.integers(1, 9999)}/{photo}_{rng.bytes(5).hex()}.jpg"
        yield Photo(number, kind, photo, user, url, place)


def _columns(photo: Photo, seed: int) -> tuple[str, ...]:
    """The row's texts in the order of `COLUMNS`."""
    rng = np.random.default_rng([seed, 23, photo.number])
    title = TITLES[photo.number % len(TITLES)]
    latitude, longitude = near(rng, photo.place)
    place = {"alone": ("", "", ""), "zero": ("0.0", "0.0", "16"), "video": ("", "", "")}.get(
        photo.kind, (str(longitude), str(latitude), "3" if photo.kind == "inaccurate" else "16")
    )
    server, _, name = photo.url.removeprefix("http://").partition("/")[2].partition("/")
    is_video = photo.kind == "video"
    return (
        str(photo.photo), photo.user, quote_plus(f"user {photo.user[:8]} \u2603"),
        "2012-03-04 05:06:07.0", "1330837567", "Made-up+Camera+7",
        quote_plus(title), quote_plus(f"<b>{title}</b>\twith a tab"), "made+up,not+a+photo",
        "geo:lat=1.5" if photo.number % 7 == 0 else "", *place,
        f"http://www.flickr.invalid/photos/{photo.user}/{photo.photo}/", photo.url,
        "Attribution License", "http://creativecommons.org/licenses/by/2.0/", server, str(photo.number % 9 + 1),
        name[-14:-4], "0123456789", "mov" if is_video else "jpg", str(int(is_video)),
    )  # fmt: skip


def _write_database(path: Path, texts: list[tuple[str, ...]]) -> None:
    types = {"photoid": "integer", "marker": "integer"}
    columns = ", ".join(f"{column} {types.get(column, 'text')}" for column in COLUMNS)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA page_size = 1024")  # as upstream
        database.execute(f"CREATE TABLE yfcc100m_dataset ({columns})")
        places = ", ".join("?" * len(COLUMNS))
        database.executemany(f"INSERT INTO yfcc100m_dataset VALUES ({places})", texts)  # noqa: S608  question marks
        database.commit()


def _where(photo: Photo) -> str | None:
    """The URL at which the image of a photo is still to be had."""
    if photo.number % DEAD == DEAD // 2:
        return None if photo.number % (2 * DEAD) == DEAD // 2 else photo.url
    name = "".join(f"{byte:x}" for byte in _md5(photo.url))
    return f"{BUCKET}/data/images/{name[:3]}/{name[3:6]}/{name}.jpg"


def _md5(text: str) -> bytes:
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


def _image(photo: Photo, rows: int, size: int, seed: int) -> tuple[bytes, list[Rectangle]]:
    """A photo as a file, and the boxes of the faces in it, in its pixels as they are stored."""
    rng = np.random.default_rng([seed, 24, photo.number])
    cycle, at = divmod(photo.number, CYCLE)
    if at == CYCLE - 1 and cycle in (0, rows // CYCLE // 2):  # its face was found when the photo was still there
        return _placeholder(size), [(size // 4, size // 4, size // 2, size // 2)]
    picture, faces = portrait(rng, size) if photo.kind == "alone" else scene(rng, photo, size)
    turn, rest = divmod(cycle, max(rows // CYCLE // (2 * len(ODD_KINDS)), 1))
    kind = ODD_KINDS[turn % len(ODD_KINDS)] if at in ODD_PLACES and rest == 0 else "jpeg"
    if kind == "turned":  # it is stored after a turn to the left
        width = picture.shape[1]
        faces = [(top, width - left - across, down, across) for left, top, across, down in faces]
    return encode(picture, kind, int(rng.integers(75, 96))), faces


def portrait(rng: np.random.Generator, size: int) -> tuple[Picture, list[Rectangle]]:
    """A picture of someone alone, about `size` pixels on the longer side, and the box of the face."""
    height = round(size * rng.uniform(0.75, 1.25))
    width = round(height * rng.uniform(0.8, 1.0))
    return _face(rng, height, width, tall=rng.uniform(0.22, 0.3))


def scene(rng: np.random.Generator, photo: Photo, size: int) -> tuple[Picture, list[Rectangle]]:
    """A picture of the photo's place, with up to two small portraits in its corners, and the boxes of their faces."""
    picture = view(rng, photo.place, size, photo.user)
    height, width = picture.shape[:2]
    boxes = []
    for corner in range(rng.choice(3, p=[0.6, 0.3, 0.1])):
        down = round(min(height, width) * rng.uniform(0.3, 0.45))
        across = round(0.8 * down)
        face, [(left, top, *sides)] = _face(rng, down, across, tall=0.3)
        x, y = (2, 2) if corner == 0 else (width - across - 2, height - down - 2)
        picture[y : y + down, x : x + across] = face
        boxes.append((x + left, y + top, sides[0], sides[1]))
    return picture, boxes


def _face(rng: np.random.Generator, height: int, width: int, tall: float) -> tuple[Picture, list[Rectangle]]:
    person = make_person(rng)
    picture = draw_face(rng, person, choose_look(rng, person), height, width, tall, turn=8.0)
    across, down = round(1.8 * tall * height), round(2.2 * tall * height)  # hair and ears included
    return picture, [((width - across) // 2, (height - down) // 2, across, down)]


def _placeholder(size: int) -> bytes:
    notice = np.full((3 * size // 4, size, 3), 243, np.uint8)
    cv2.circle(notice, (size // 2, 3 * size // 8), max(size // 64, 1), (200, 200, 200), -1, cv2.LINE_AA)
    return encode(notice)
