"""YFCC100M: the list read as database and as table, what of it is wanted, the places and faces that come of that."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import pickle
import sqlite3
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType
from urllib.parse import quote, unquote_plus

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from pipelines.crawl import Crawl, crawl
from pipelines.images import check
from pipelines.samples import im2gps as im2gps_sample
from pipelines.samples import yfcc100m as sample
from pipelines.samples.cities import PLACES, Place, home, view
from pipelines.section import parsed
from pipelines.sources import yfcc100m_faces as faces
from pipelines.sources import yfcc100m_geo as geo
from pipelines.sources.base import Box, Sample
from pipelines.sources.yfcc100m import image_key, is_placeholder, pseudonym, rows, rows_within, spans, split_of
from tests.sharding import settings, sharded, stored

SQL, BZ2, BOXES, ZIP = "yfcc100m_dataset.sql", "yfcc100m_dataset.bz2", "face_boxes.tsv", "gps_query_imgs.zip"
ROWS, USERS = 480, 40
LISTING = {
    "metadata": SQL,
    "rows": ROWS,
    "image_base": sample.BUCKET,
    "original_urls": True,
    "val_share": 0.3,
    "seed": 1,
}
GEO = geo.Options(**LISTING, min_accuracy=11, exclude_uploaders_of=(ZIP,))
FACES = faces.Options(**{**LISTING, "metadata": BZ2}, boxes=BOXES, detector=None, min_confidence=0.9, margin=0.25,
                      min_side=18)  # fmt: skip
CRAWL = Crawl(mirror="mirror.tar", connections=2, per_host=2, attempts=1, timeout_seconds=5, max_bytes=10**6,
              part_size=100)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of both data sets, and no crawl."""
    folder = tmp_path_factory.mktemp("raw")
    sample.write(folder, rows=ROWS, users=USERS)
    im2gps_sample.write(folder, photos=12)
    return folder


def fetched(raw: Path, folder: Path, source: ModuleType, options: geo.Options | faces.Options) -> dict:
    folder.mkdir(exist_ok=True)
    for path in raw.iterdir():
        (folder / path.name).symlink_to(path)
    return crawl(partial(source.wanted, folder, options), folder, CRAWL, folder / "mirror.tar")


@pytest.fixture(scope="module")
def with_places(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("geo")
    fetched(raw, folder, geo, GEO)
    return folder


@pytest.fixture(scope="module")
def with_faces(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    fetched(raw, folder, faces, FACES)
    return folder


def listed(raw: Path) -> list[dict[str, str]]:
    """The list as Python's own bz2 and csv read it, by the published order of columns."""
    names = ("line", "photoid", "hash", *sample.COLUMNS[1:])
    with bz2.open(raw / BZ2, "rt") as file:
        return list(csv.DictReader(file, names, delimiter="\t", quoting=csv.QUOTE_NONE))


def everything(source: ModuleType, folder: Path, options: geo.Options | faces.Options) -> list[Sample]:
    return [sample for unit in source.units(folder, options) for sample in source.samples(unit)]


def test_database_and_table_give_the_same_rows_and_those_that_are_there(raw: Path) -> None:
    found = list(rows(raw / BZ2, ROWS))
    assert list(rows(raw / SQL, ROWS)) == found
    for row, columns in zip(found, listed(raw), strict=True):
        assert (str(row.photo), row.uploader, row.url) == (columns["photoid"], columns["uid"], columns["downloadurl"])
        for name in ("longitude", "latitude", "accuracy"):
            value = getattr(row, name)
            assert ("" if value is None else float(value)) == (columns[name] and float(columns[name]))
        assert row.is_video == (columns["marker"] == "1")
    with sqlite3.connect(raw / SQL) as database:
        names = "photoid, uid, longitude, latitude, accuracy, downloadurl, marker"
        rows_of_sql = database.execute(f"SELECT {names} FROM yfcc100m_dataset ORDER BY rowid").fetchall()
    for row, (photo, user, longitude, latitude, accuracy, url, marker) in zip(found, rows_of_sql, strict=True):
        place = [None if value == "" else float(value) for value in (longitude, latitude, accuracy)]
        assert list(row) == [photo, user, *place, url, bool(marker)]


def test_a_table_may_be_plain_or_packed_and_of_the_first_edition(raw: Path, tmp_path: Path) -> None:
    text = bz2.decompress((raw / BZ2).read_bytes())
    expected = list(rows(raw / BZ2))
    (tmp_path / "yfcc100m_dataset").write_bytes(text)
    (tmp_path / "list.gz").write_bytes(gzip.compress(text))
    (tmp_path / "two.bz2").write_bytes(bz2.compress(text[:5000]) + bz2.compress(text[5000:]))  # as pbzip2 packs
    lines = [line.split(b"\t") for line in text.splitlines()]
    first = [b"\t".join([columns[1], *columns[3:]]) + b"\n" for columns in lines]
    (tmp_path / "first.tsv").write_bytes(b"".join(first))
    for path in tmp_path.iterdir():
        assert list(rows(path, ROWS)) == expected


def database_of(path: Path, values: list[tuple], columns: str | None = None) -> None:
    columns = columns or "photoid INTEGER PRIMARY KEY, uid, longitude REAL, latitude REAL, accuracy INTEGER, " \
                         "downloadurl, marker INTEGER"  # fmt: skip
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE yfcc100m_dataset ({columns})")
        database.executemany(f"INSERT INTO yfcc100m_dataset VALUES ({', '.join('?' * len(values[0]))})", values)


def test_a_database_may_have_numbers_and_nulls_where_the_sample_has_text(tmp_path: Path) -> None:
    values = [(70, "5%40N01", None, None, None, "http://a/b.jpg", 0), (9, "6@N02", 2.5, -1.0, 16, "https://c", 1)]
    database_of(tmp_path / SQL, values)
    assert [tuple(row) for row in rows(tmp_path / SQL)] == [
        (9, "6@N02", 2.5, -1.0, 16, "https://c", True),
        (70, "5@N01", None, None, None, "http://a/b.jpg", False),
    ]


def test_ranges_of_the_database_can_be_read_side_by_side(raw: Path, tmp_path: Path) -> None:
    whole = list(rows(raw / SQL))
    for count in (1, 7, 1000):
        pieces = spans(raw / SQL, count)
        assert len(pieces) <= count
        assert [row for span in pieces for row in rows_within(raw / SQL, span)] == whole
    assert list(rows_within(raw / SQL, range(11, 13))) == whole[10:12]
    far = [(number, "1@N1", None, None, None, "http://a", 0) for number in (-(2**63), 0, 5, 2**63 - 1)]
    database_of(tmp_path / SQL, far)
    assert [row.photo for row in rows(tmp_path / SQL)] == [row[0] for row in far]
    database_of(tmp_path / "empty", [(1,)], "photoid")
    with sqlite3.connect(tmp_path / "empty") as database:
        database.execute("DELETE FROM yfcc100m_dataset")
    assert list(rows(tmp_path / "empty")) == []


GOOD = ["0", "7", "0" * 32, "5@N01", *[""] * 8, "2.5", "1.5", "16", "", "http://a/b.jpg", *[""] * 7, "0"]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        (1, "x7", r"photo 'x7' is not a whole number"),
        (1, "", r"photo '' is not a whole number"),
        (1, "\u0667", r"photo '\u0667' is not a whole number"),
        (3, "", r"user '' is not"),
        (3, "somebody", r"user 'somebody' is not"),
        (12, "east", r"longitude 'east' is not a number of degrees"),
        (13, "nan", r"latitude 'nan' is not a number of degrees"),
        (14, "16.5", r"accuracy '16\.5' is not a whole number"),
        (16, "", r"download URL '' is not https\?://"),
        (16, "file:///etc/passwd", r"download URL 'file:///etc/passwd' is not"),
        (24, "", r"marker '' is not 0\|1"),
        (24, "2", r"marker '2' is not 0\|1"),
        (5, "a\tb", r"has 26 columns, not 25"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, column: int, value: str, says: str) -> None:
    bad = [*GOOD[:column], value, *GOOD[column + 1 :]]
    path = tmp_path / "list.bz2"
    path.write_bytes(bz2.compress("\n".join(["\t".join(GOOD), "\t".join(bad), ""]).encode()))
    with pytest.raises(ValueError, match=rf"list\.bz2 line 2:? {says}"):
        list(rows(path))
    if column != 5:
        used = [bad[index] for index in (1, 3, 12, 13, 14, 16, 24)]
        database_of(tmp_path / SQL, [used], "photoid, uid, longitude, latitude, accuracy, downloadurl, marker")
        with pytest.raises(ValueError, match=rf"yfcc100m_dataset\.sql row 1: {says}"):
            list(rows(tmp_path / SQL))


def test_a_cut_list_is_an_error_not_a_smaller_one(raw: Path, tmp_path: Path) -> None:
    text = bz2.decompress((raw / BZ2).read_bytes())
    path = tmp_path / "list"
    for kept in (len(text) - 1, len(text) - 9, len(text) // 2 + 3):
        path.write_bytes(text[:kept])
        with pytest.raises(ValueError, match=r"list line \d+ is cut"):
            list(rows(path))
    path.write_bytes(text[: text.rindex(b"\n", 0, -1) + 1])  # between two lines
    with pytest.raises(ValueError, match=rf"list has {ROWS - 1} rows, the options say {ROWS}"):
        list(rows(path, ROWS))
    for name, packed in ((BZ2, (raw / BZ2).read_bytes()), ("list.gz", gzip.compress(text))):
        for data in (packed[: len(packed) // 2], packed[:-9], b"junk" + packed, text):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(ValueError, match=rf"{name} is cut or cannot be read"):
                list(rows(tmp_path / name))
    whole = (raw / SQL).read_bytes()
    for kept in (16, 100, len(whole) // 2, len(whole) - 20_000):
        (tmp_path / SQL).write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"sql (is cut, or is not the database|has no table)"):
            list(rows(tmp_path / SQL))
    with pytest.raises(ValueError, match=r"nothing does not exist"):
        list(rows(tmp_path / "nothing"))


def test_another_database_is_an_error_and_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / SQL
    database_of(path, [(1, 2)], "photoid, uid")
    with pytest.raises(ValueError, match=r"sql is cut, or is not the database of YFCC100M: no such column: longitude"):
        list(rows(path))
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE yfcc100m_dataset RENAME TO other")
        database.execute("CREATE VIEW yfcc100m_dataset AS SELECT * FROM other")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"sql has no table yfcc100m_dataset"):
        list(rows(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_without_end_is_refused_before_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "list.bz2"
    path.write_bytes(bz2.compress(b"\t" * 50_000_000))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"line 1 is longer than 1048576 bytes"):
        list(rows(path))
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


@pytest.mark.slow
def test_a_long_list_is_streamed(tmp_path: Path) -> None:
    path, line = tmp_path / "list.gz", "\t".join(GOOD) + "\n"
    path.write_bytes(gzip.compress((line * 12_000).encode()))
    database_of(tmp_path / SQL, [(number, "5@N01", 2.5, 1.5, 16, "http://a", 0) for number in range(12_000)])
    options = GEO.model_copy(update={"rows": 12_000, "exclude_uploaders_of": ()})
    for name in ("list.gz", SQL):
        tracemalloc.start()
        assert sum(1 for _ in geo.wanted(tmp_path, options.model_copy(update={"metadata": name}))) == 12_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_500_000


@pytest.mark.parametrize(
    ("url", "key"),
    [  # MD5 of "a" and of "": RFC 1321, appendix A.5
        ("a", "cc1/75b/cc175b9c0f1b6a831c399e269772661"),  # 0c c1 75 b9 c0 f1 b6 a8 31 c3 99 e2 69 77 26 61
        ("", "d41/d8c/d41d8cd98f0b24e980998ecf8427e"),  # d4 1d 8c d9 8f 00 b2 04 e9 80 09 98 ec f8 42 7e
    ],
)
def test_images_lie_where_the_rule_says(url: str, key: str) -> None:
    assert image_key(url) == f"data/images/{key}.jpg"


def test_placeholders_are_told_from_photos(raw: Path) -> None:
    grey = np.full((300, 500, 3), 243, np.uint8)
    notice = grey.copy()
    notice[140:160, 240:260] = 120  # 4 % of the columns
    assert is_placeholder(simplejpeg.encode_jpeg(grey))
    assert is_placeholder(simplejpeg.encode_jpeg(notice))
    assert is_placeholder(simplejpeg.encode_jpeg(notice[..., :1].copy(), colorspace="GRAY"))
    notice[100:200, 200:300] = 120
    assert not is_placeholder(simplejpeg.encode_jpeg(notice))
    assert not is_placeholder(simplejpeg.encode_jpeg(grey) + bytes(20_000))
    assert not any(map(is_placeholder, (b"", b"\xff\xd8\xff", b"<html>", simplejpeg.encode_jpeg(grey)[:300])))
    bomb = simplejpeg.encode_jpeg(grey).replace((300).to_bytes(2, "big") + (500).to_bytes(2, "big"), b"\xff\xdc" * 2)
    assert not is_placeholder(bomb)
    for form in ("PNG", "GIF", "BMP"):  # Flickr's own is a PNG
        file = io.BytesIO()
        Image.fromarray(grey[:60, :80]).save(file, form)
        assert is_placeholder(file.getvalue())
    with tarfile.open(raw / "mirror.tar") as tar:
        found = [is_placeholder(tar.extractfile(member).read()) for member in tar]
    assert found.count(True) == 2


def test_split_is_by_photographer() -> None:
    users = [pseudonym(f"{number}@N00") for number in range(2000)]
    assert {split_of(user, 0.0, 1) for user in users} == {"train"}
    assert {split_of(user, 1.0, 1) for user in users} == {"val"}
    shares = [[split_of(user, 0.1, seed) for user in users] for seed in (1, 2)]
    assert all(150 < share.count("val") < 250 for share in shares)
    assert shares[0] != shares[1]
    few = {user for user in users if split_of(user, 0.1, 1) == "val"}
    assert few < {user for user in users if split_of(user, 0.2, 1) == "val"}


def expected_places(raw: Path) -> list[dict[str, str]]:
    with zipfile.ZipFile(raw / ZIP) as archive:
        tested = {name.rpartition("_")[2].removesuffix(".jpg") for name in archive.namelist() if name.endswith(".jpg")}
    return [
        row
        for row in listed(raw)
        if row["marker"] == "0" and row["longitude"] not in ("", "0.0") and int(row["accuracy"]) >= 11
        and row["uid"] not in tested
    ]  # fmt: skip


def test_wanted_are_the_photos_whose_place_is_known(raw: Path) -> None:
    found = list(geo.wanted(raw, GEO))
    expected = expected_places(raw)
    assert [item.key for item in found] == [row["photoid"] for row in expected]
    for item, row in zip(found, expected, strict=True):
        digest = hashlib.md5(row["downloadurl"].encode()).digest()
        name = "".join(hex(byte)[2:] for byte in digest)
        image = f"s3://multimedia-commons/data/images/{name[:3]}/{name[3:6]}/{name}.jpg"
        assert item.urls == (image, row["downloadurl"])
        assert item.fields == {
            "uploader": hashlib.sha256(row["uid"].encode()).hexdigest()[:16],
            "latitude": float(row["latitude"]),
            "longitude": float(row["longitude"]),
        }
    assert geo.SOURCE.select(raw, GEO) == {
        "passed_over": {
            "no coordinates": 120, "photographer of Im2GPS": 20, "too inaccurate": 20, "video": 20,
            "zero coordinates": 20,
        }
    }  # fmt: skip
    only = GEO.model_copy(update={"original_urls": False, "image_base": "https://a.b/"})
    assert next(geo.wanted(raw, only)).urls == (f"https://a.b/{image_key(expected[0]['downloadurl'])}",)
    everyone = GEO.model_copy(update={"exclude_uploaders_of": ()})
    assert len(list(geo.wanted(raw, everyone))) == len(expected) + 20


@pytest.mark.parametrize(
    ("longitude", "latitude", "accuracy", "is_wanted"),
    [
        ("2.5", "1.5", "11", True), ("2.5", "1.5", "10", False), ("2.5", "1.5", "", False), ("2.5", "1.5", "-1", False),
        ("180", "-90", "16", True), ("180.1", "0", "16", False), ("1", "90.1", "16", False),
        ("0", "0.0", "16", False), ("0", "51.5", "16", True), ("", "1.5", "16", False), ("2.5", "", "16", False),
    ],
)  # fmt: skip
def test_a_place_must_be_whole_possible_and_accurate(
    tmp_path: Path, longitude: str, latitude: str, accuracy: str, is_wanted: bool
) -> None:
    (tmp_path / "list").write_text("\t".join([*GOOD[:12], longitude, latitude, accuracy, *GOOD[15:]]) + "\n")
    options = GEO.model_copy(update={"metadata": "list", "rows": 1, "exclude_uploaders_of": ()})
    assert len(list(geo.wanted(tmp_path, options))) == is_wanted


def nearest(latitude: float, longitude: float) -> Place:
    return min(PLACES, key=lambda place: abs(place.latitude - latitude)
                                         + abs((place.longitude - longitude + 180) % 360 - 180))  # fmt: skip


def test_samples_are_what_was_fetched_with_the_places_of_the_list(raw: Path, with_places: Path) -> None:
    """The drawing of the nearest place comes back from the file; only those that are nowhere are missing."""
    by_photo = {row["photoid"]: (number, row) for number, row in enumerate(listed(raw))}
    found = everything(geo, with_places, GEO)
    with tarfile.open(raw / "mirror.tar") as tar:
        mirror = {member.name: tar.extractfile(member).read() for member in tar}
    gone = {row["photoid"] for row in expected_places(raw)} - {sample.name.removesuffix(".jpg") for sample in found}
    assert len(gone) == 4
    assert not any(quote(by_photo[photo][1]["downloadurl"], safe="") in mirror for photo in gone)
    assert len(found) == len(expected_places(raw)) - 4
    assert [sample.bad for sample in found if sample.bad] == ["placeholder"] * 2
    for sample_ in found:
        number, row = by_photo[sample_.name.removesuffix(".jpg")]
        assert sample_.fields == {"latitude": float(row["latitude"]), "longitude": float(row["longitude"])}
        assert sample_.image in mirror.values()
        data = sample_.place.path.read_bytes()
        assert data[sample_.place.offset : sample_.place.offset + len(sample_.image)] == sample_.image
        if sample_.bad:
            continue
        place = nearest(float(row["latitude"]), float(row["longitude"]))
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(sample_.image)))
        drawn = view(np.random.default_rng([0, 24, number]), place, 128, row["uid"])
        height, width = drawn.shape[:2]
        shown = np.asarray(Image.fromarray(drawn).convert(image.mode).convert("RGB")).astype(int)
        apart = np.abs(shown - np.asarray(image.convert("RGB")))
        for part in (np.s_[height // 2 :, : width // 2], np.s_[: height // 2, width // 2 :]):  # without faces
            assert apart[part].mean() < 16


def test_no_photographer_is_on_both_sides(raw: Path, with_places: Path, with_faces: Path) -> None:
    user = {row["photoid"]: row["uid"] for row in listed(raw)}
    sides: dict[str, set[str]] = {}
    splits = Counter()
    found = [*everything(geo, with_places, GEO), *everything(faces, with_faces, FACES)]
    for sample_ in found:
        sides.setdefault(user[sample_.name.removesuffix(".jpg").partition("_")[0]], set()).add(sample_.split)
        splits[sample_.split] += 1
    assert len(sides) > 30
    assert all(len(side) == 1 for side in sides.values())
    assert min(splits["train"], splits["val"]) > 50


def test_units_are_parts_that_can_be_read_anywhere(with_places: Path, with_faces: Path) -> None:
    for source, folder, options in ((geo, with_places, GEO), (faces, with_faces, FACES)):
        units = pickle.loads(pickle.dumps(source.units(folder, options)))
        assert len(units) == 3
        backwards = [sample for unit in reversed(units) for sample in source.samples(unit)]
        assert sorted(backwards) == sorted(everything(source, folder, options))
        assert source.classes(folder) == []


def test_without_a_crawl_there_are_no_units(raw: Path) -> None:
    for source, options in ((geo, GEO), (faces, FACES)):
        with pytest.raises(ValueError, match=r"crawl\.json does not exist"):
            source.units(raw, options)


@pytest.mark.parametrize("source", [geo, pytest.param(faces, marks=pytest.mark.slow)])
def test_shards_are_the_same_whoever_writes_them_and_name_nobody(
    raw: Path, with_places: Path, with_faces: Path, tmp_path: Path, source: ModuleType
) -> None:
    folder, options = (with_places, GEO) if source is geo else (with_faces, FACES)
    counts = Counter(sample.split for sample in everything(source, folder, options))
    changes = {"seed": 1, "samples_per_shard": 90, "bad_images": "skip", "options": options.model_dump()}
    target = tmp_path / "yfcc"
    index = sharded("yfcc", source.SOURCE, folder, target, settings(counts, **changes))
    small = {"face too small": sum(sample.bad == "face too small" for sample in everything(source, folder, options))}
    assert index.skipped == {"placeholder": 2} | (small if source is faces else {})
    assert sum(split.samples for split in index.splits.values()) == counts.total() - sum(index.skipped.values())
    users = {row["uid"].encode() for row in listed(raw)} | {pseudonym(row["uid"]).encode() for row in listed(raw)}
    for path in target.iterdir():
        data = path.read_bytes()
        assert not any(user in data for user in users)
        assert b"invalid" not in data
    known = {"latitude", "longitude"} if source is geo else {"image_id"}
    samples = stored(target)
    assert len(samples) == sum(split.samples for split in index.splits.values())
    for one in samples.values():
        assert one.fields.keys() == {"name", "sha256", "width", "height"} | known


# Faces


def boxes_by_photo(raw: Path) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {}
    for photo, *box in csv.reader((raw / BOXES).open(), delimiter="\t"):
        found.setdefault(photo, []).append([int(value) for value in box])
    return {photo: sorted(boxes) for photo, boxes in found.items()}


def test_wanted_are_the_photos_with_large_enough_faces(raw: Path) -> None:
    boxes = boxes_by_photo(raw)
    found = list(faces.wanted(raw, FACES))
    order = [row["photoid"] for row in listed(raw)]
    large = {photo for photo, held in boxes.items() if any(min(box[2:]) >= 18 for box in held)}
    assert len(large) < len(boxes)
    assert [item.key for item in found] == [photo for photo in order if photo in large]
    assert all(item.fields["boxes"] == boxes[item.key] for item in found)
    assert list(faces.wanted(raw, FACES.model_copy(update={"metadata": SQL}))) == found


def test_every_face_is_cut_where_its_box_is_margin_included(raw: Path, with_faces: Path) -> None:
    boxes = boxes_by_photo(raw)
    found = everything(faces, with_faces, FACES)
    assert Counter(sample.bad for sample in found)["placeholder"] == 2
    seen = 0
    for sample_ in found:
        photo, number = sample_.name.removesuffix(".jpg").split("_")
        assert sample_.fields == {"image_id": int(photo)}
        if sample_.bad == "placeholder":
            assert sample_.crop is None
            continue
        left, top, width, height = boxes[photo][int(number)]
        across, down = round(width * 0.25), round(height * 0.25)
        assert sample_.crop == Box(top - down, left - across, height + 2 * down, width + 2 * across)
        assert (sample_.bad == "face too small") == (min(width, height) < 18)
        seen += 1
    assert seen == sum(len(boxes[photo]) for photo in {sample.name.split("_")[0] for sample in found
                                                       if sample.bad != "placeholder"})  # fmt: skip


def test_what_is_cut_is_the_drawn_face_upright(raw: Path, with_faces: Path) -> None:
    """Also where EXIF turns the photo, and the box speaks of it as it is stored."""
    by_photo = {row["photoid"]: (number, row) for number, row in enumerate(listed(raw))}
    kinds = Counter()
    for sample_ in everything(faces, with_faces, FACES):
        number, row = by_photo[sample_.name.partition("_")[0]]
        if sample_.bad or row["latitude"]:
            continue
        image = Image.open(io.BytesIO(sample_.image))
        kinds["turned" if image.getexif().get(0x0112) == 6 else f"{image.format} {image.mode}"] += 1
        cut = check(sample_.image, 10**6, 10**6, crop=sample_.crop)
        drawn, [(left, top, width, height)] = sample.portrait(np.random.default_rng([0, 24, number]), 128)
        across, down = round(width * 0.25), round(height * 0.25)
        part = drawn[max(top - down, 0) : top + height + down, max(left - across, 0) : left + width + across]
        pixels = simplejpeg.decode_jpeg(cut.image, "RGB").astype(int)
        assert pixels.shape == part.shape
        assert np.abs(np.asarray(Image.fromarray(part).convert(image.mode).convert("RGB")) - pixels).mean() < 12
    assert kinds.pop("JPEG RGB") > 100
    assert kinds == {"turned": 2, "JPEG L": 3, "JPEG CMYK": 3, "PNG RGB": 2}


def test_the_order_of_the_boxes_lines_does_not_matter(raw: Path, tmp_path: Path) -> None:
    lines = (raw / BOXES).read_bytes().splitlines(keepends=True)
    (tmp_path / "sorted.tsv").write_bytes(b"".join(sorted(lines)))
    one, other = faces.read_boxes(raw / BOXES), faces.read_boxes(tmp_path / "sorted.tsv")
    assert one.photos == other.photos
    assert np.array_equal(one.boxes, other.boxes)
    assert list(one.photos) == sorted(one.photos)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("7\t1\t2\t3\n", r"tsv line 1: '7\\t1\\t2\\t3\\n' is not a photo, left, top, width, height"),
        ("7\t1\t2\t3\t4\n8\t1\t2\t3\t4\t5\n", r"tsv line 2: "),
        ("7\t1\t2\t3\t4\n\n", r"tsv line 2: '\\n' is not"),
        ("7\t1\t2\t3.5\t4\n", r"tsv line 1: "),
        ("7\t1\t2\t0\t4\n", r"tsv line 1: "),
        ("7\t1\t2\t3\t-4\n", r"tsv line 1: "),
        ("7\t1\t2\t3\t9999999999\n", r"tsv line 1: "),
        ("99999999999999999999\t1\t2\t3\t4\n", r"tsv line 1: "),
        ("7\t1\t2\t3\t4\n8\t1\t2\t3\t4", r"tsv line 2: '8\\t1\\t2\\t3\\t4' is not"),  # cut
        ("7\t1\t2\t3\t4\n8\t1\t2\t3\t4\n7\t1\t2\t3\t4\n", r"tsv: photo 7 has the box \[1, 2, 3, 4\] twice"),
    ],
)
def test_boxes_that_are_none_are_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "boxes.tsv").write_text(text)
    with pytest.raises(ValueError, match=says):
        faces.read_boxes(tmp_path / "boxes.tsv")


def test_boxes_must_be_of_photos_of_the_list(raw: Path, tmp_path: Path) -> None:
    video = next(row["photoid"] for row in listed(raw) if row["marker"] == "1")
    (tmp_path / SQL).symlink_to(raw / SQL)
    options = FACES.model_copy(update={"metadata": SQL})
    with pytest.raises(ValueError, match=r"face_boxes\.tsv does not exist"):
        list(faces.wanted(tmp_path, options))
    for strange in ("12345", video):
        (tmp_path / BOXES).write_text((raw / BOXES).read_text() + f"{strange}\t1\t2\t30\t40\n")
        with pytest.raises(ValueError, match=rf"tsv has boxes of 1 photos that are not in the list: {strange}"):
            list(faces.wanted(tmp_path, options))


@pytest.mark.parametrize(("boxes", "detector"), [(None, None), (BOXES, "net.onnx")])
def test_faces_come_from_boxes_or_a_detector(boxes: str | None, detector: str | None) -> None:
    with pytest.raises(ValueError, match=r"shard\.options: just one of boxes and detector must be given"):
        parsed(faces.Options, {**FACES.model_dump(), "boxes": boxes, "detector": detector}, "shard.options")


# A network with the inputs and outputs of YuNet (OpenCV's face_detect.cpp) that takes red for a face: its score is the
# mean red of an 8 x 8 cell, its box 32 x 16 pixels around the cell. Written as ONNX (onnx.proto) by hand.


def field(number: int, value: bytes | str | int) -> bytes:
    def varint(rest: int) -> bytes:
        return bytes([rest]) if rest < 128 else bytes([rest % 128 + 128]) + varint(rest // 128)

    if isinstance(value, int):
        return varint(number << 3) + varint(value % 2**64)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def node(kind: str, inputs: list[str], output: str, **lists: list[int]) -> bytes:
    attributes = [field(5, field(1, name) + b"".join(field(8, value) for value in values) + field(20, 7))
                  for name, values in lists.items()]  # fmt: skip
    return field(
        1, b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, kind) + b"".join(attributes)
    )


def tensor(name: str, values: np.ndarray) -> bytes:
    kind = 7 if values.dtype == np.int64 else 1
    dims = b"".join(field(1, size) for size in values.shape)
    return field(5, dims + field(2, kind) + field(8, name) + field(9, values.tobytes()))


def value(number: int, name: str, *sides: int | str) -> bytes:
    """An input or output of floats; a side with a name is of any length."""
    dims = b"".join(field(1, field(1 if isinstance(side, int) else 2, side)) for side in sides)
    return field(number, field(1, name) + field(2, field(1, field(1, 1) + field(2, dims))))


def red_detector() -> bytes:
    graph = field(2, "red")
    for stride in (8, 16, 32):
        for name, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            weights, bias = np.zeros((channels, 3, stride, stride), np.float32), np.zeros(channels, np.float32)
            if channels == 1 and stride == 8:
                weights[:, 2] = 1 / (255 * 8 * 8)  # of blue, green, red
            if channels == 4:
                bias[:] = (0.5, 0.5, np.log(4), np.log(2))  # centre, and logarithms of the sides, in strides
            key = f"{name}_{stride}"
            shape = np.array([1, channels, -1], np.int64)
            graph += tensor(f"{key}w", weights) + tensor(f"{key}b", bias) + tensor(f"{key}s", shape)
            sizes = {"kernel_shape": [stride] * 2, "strides": [stride] * 2, "pads": [0] * 4}
            graph += node("Conv", ["input", f"{key}w", f"{key}b"], f"{key}c", **sizes)
            graph += node("Reshape", [f"{key}c", f"{key}s"], f"{key}r")
            graph += node("Transpose", [f"{key}r"], key, perm=[0, 2, 1]) + value(12, key, 1, f"n{stride}", channels)
    graph += value(11, "input", 1, 3, "h", "w")
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 11))


def test_a_detector_finds_the_faces_of_all_photos(raw: Path, tmp_path: Path) -> None:
    options = FACES.model_copy(update={"boxes": None, "detector": "net.onnx", "margin": 0.0, "min_side": 1})
    for name in (BZ2, "mirror.tar"):
        (tmp_path / name).symlink_to(raw / name)
    photos = [row for row in listed(raw) if row["marker"] == "0"]
    assert [item.key for item in faces.wanted(tmp_path, options)] == [row["photoid"] for row in photos]
    assert all(item.fields.keys() == {"uploader"} for item in faces.wanted(tmp_path, options))
    picture = np.zeros((120, 155, 3), np.uint8)
    picture[::2] = 100  # no placeholder
    none, bad = simplejpeg.encode_jpeg(picture), b"\xff\xd8\xffjunk"
    picture[40:48, 80:88] = picture[80:88, 16:24] = (255, 0, 0)
    two = simplejpeg.encode_jpeg(picture, 98, colorsubsampling="444")
    notice = simplejpeg.encode_jpeg(np.full((300, 500, 3), 243, np.uint8))
    with tarfile.open(tmp_path / "red.tar", "w", tarfile.USTAR_FORMAT) as tar:
        for row, image in zip(photos, (two, none, bad, notice, two[:-200], two), strict=False):
            info = tarfile.TarInfo(quote(row["downloadurl"], safe=""))
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    crawl(partial(faces.wanted, tmp_path, options), tmp_path, CRAWL, tmp_path / "red.tar")
    with pytest.raises(ValueError, match=r"net\.onnx does not exist: the weights of the face detector"):
        faces.units(tmp_path, options)
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"net\.onnx is not a face detector that OpenCV can read"):
        everything(faces, tmp_path, options)
    (tmp_path / "net.onnx").write_bytes(red_detector())
    found = [(sample.name, sample.crop, sample.bad) for sample in everything(faces, tmp_path, options)]
    keys = [row["photoid"] for row in photos]
    boxes = (Box(76, 4, 16, 32), Box(36, 68, 16, 32))
    assert found == [
        *[(f"{keys[0]}_{number}.jpg", box, None) for number, box in enumerate(boxes)],
        (f"{keys[2]}_0.jpg", None, "broken header"),
        (f"{keys[3]}_0.jpg", None, "placeholder"),
        (f"{keys[4]}_0.jpg", None, "truncated"),
        *[(f"{keys[5]}_{number}.jpg", box, None) for number, box in enumerate(boxes)],
    ]


# The sample


def test_the_sample_has_what_upstream_has(raw: Path) -> None:
    found = listed(raw)
    assert {len(row) for row in found} == {25}
    assert Counter(row["marker"] for row in found) == {"0": 460, "1": 20}
    assert sum(row["latitude"] == "" for row in found) == 140
    assert Counter(row["accuracy"] for row in found) == {"16": 320, "3": 20, "": 140}
    assert [int(row["photoid"]) for row in found] != sorted(int(row["photoid"]) for row in found)
    titles = {unquote_plus(row["title"]) for row in found}
    assert {"tab\there", "new\nline", "\u6771\u4eac + 100 %", ""} <= titles
    assert all("+" in row["description"] and "%09" in row["description"] for row in found)
    assert {row["uid"] for row in found} >= set(im2gps_sample.PHOTOGRAPHERS)
    assert len({row["uid"] for row in found}) > 40
    lives_in = {f"{98_000_001 + number}@N99": home(number).name for number in range(USERS)}
    placed = [row for row in found if row["uid"] in lives_in and row["longitude"] not in ("", "0.0")]
    at_home = [nearest(float(row["latitude"]), float(row["longitude"])).city == lives_in[row["uid"]] for row in placed]
    assert 0.6 < np.mean(at_home) < 0.85
    assert all(".invalid/" in row["downloadurl"] for row in found)
    with tarfile.open(raw / "mirror.tar") as tar:
        images = {member.name: tar.extractfile(member).read() for member in tar}
    photos = [row["downloadurl"] for row in found if row["marker"] == "0"]
    assert len(images) == len(photos) - 6
    assert sum(quote(url, safe="") in images for url in photos) == 6
    opened = [Image.open(io.BytesIO(image)) for image in images.values()]
    kinds = Counter(
        "turned" if image.getexif().get(0x0112) == 6 else f"{image.format} {image.mode}" for image in opened
    )
    assert kinds.pop("JPEG RGB") > 400
    assert kinds.keys() == {"turned", "JPEG L", "JPEG CMYK", "PNG RGB"}
    assert min(kinds.values()) >= 4
    assert len({image.size for image in opened}) > 200
    assert (raw / SQL).read_bytes()[16:18] == (1024).to_bytes(2, "big")


def test_the_same_options_give_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    sample.write(tmp_path, rows=ROWS, users=USERS)
    names = (SQL, BZ2, BOXES, "mirror.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == (raw / name).read_bytes()
        (tmp_path / name).unlink()
    sample.write(tmp_path, rows=ROWS, users=USERS, seed=1)
    assert all((tmp_path / name).read_bytes() != (raw / name).read_bytes() for name in names)
    for options, says in (({"rows": 191}, r"rows 191 is not in 192\.\."), ({"users": 3}, r"users 3 is not in 4\.\."),
                          ({"size": 16}, r"size 16 is not in 64\.\.1024")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            sample.write(tmp_path, **options)
