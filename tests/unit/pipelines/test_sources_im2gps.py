"""Im2GPS and Im2GPS3k: coordinates against Pillow's reading of the comments, and every way in which they can lack."""

from __future__ import annotations

import csv
import io
import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.samples import im2gps as sample
from pipelines.samples.cities import PLACES, Place, choose, near, view
from pipelines.samples.im2gps import PHOTOGRAPHERS
from pipelines.shard import write_shards
from pipelines.sources import im2gps
from pipelines.sources.base import Sample
from pipelines.sources.im2gps import SOURCE, Options, comments, coordinates, photographers
from tests.sharding import settings, sharded

ZIP, ZIP_3K, TABLE = "gps_query_imgs.zip", "im2gps3ktest.zip", "im2gps3k_places365.csv"
COMMENTED = Options(images=ZIP, table=None, left_out=0)
TABLED = Options(images=ZIP_3K, table=TABLE, left_out=3)
NAME = "99900000000_0123456789_7_99000001@N99.jpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("im2gps")
    sample.write(folder, photos=24)
    sample.write_3k(folder, photos=24)
    return folder


def everything(folder: Path, options: Options) -> list[Sample]:
    return [sample for unit in SOURCE.units(folder, options) for sample in SOURCE.samples(unit)]


def images(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if name.endswith(".jpg")}


def zip_of(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def jpeg_with(*texts: str) -> bytes:
    return sample.encode(np.full((40, 50, 3), 90, np.uint8), comments=tuple(text.encode() for text in texts))


def test_the_coordinates_are_those_of_the_comments_as_pillow_reads_them(folder: Path) -> None:
    found = {sample.name: sample for sample in everything(folder, COMMENTED)}
    assert len(found) == 24
    for name, data in images(folder / ZIP).items():
        lines = [text.decode() for marker, text in Image.open(io.BytesIO(data)).applist if marker == "COM"]
        assert len(lines) == 10
        said = dict(line.split(": ", 1) for line in lines)
        expected = {"latitude": float(said["latitude"]), "longitude": float(said["longitude"])}
        assert found[name].fields == expected
        assert (found[name].image, found[name].split) == (data, "test")
        assert found[name].name.split("_")[-1].removesuffix(".jpg") == said["owner"]


def test_the_coordinates_of_the_3k_are_those_of_the_table(folder: Path) -> None:
    found = {sample.name: sample for sample in everything(folder, TABLED)}
    rows = {row["IMG_ID"]: row for row in csv.DictReader((folder / TABLE).open())}
    held = images(folder / ZIP_3K)
    assert len(found) == len(rows) == 21
    assert len(held) == 24
    for name, row in rows.items():
        assert found[name].fields == {"latitude": float(row["LAT"]), "longitude": float(row["LON"])}
        assert found[name].image == held[name]


def nearest(fields: dict) -> Place:
    return min(PLACES, key=lambda place: abs(place.latitude - fields["latitude"])
                                         + abs((place.longitude - fields["longitude"] + 180) % 360 - 180))  # fmt: skip


def test_every_photo_shows_the_place_of_its_coordinates_and_its_photographers_mark(folder: Path) -> None:
    """The drawing of the nearest place comes back from the file, whatever the file's kind."""
    seen = set()
    for sample_ in everything(folder, COMMENTED):
        *_, number, _, _, photographer = sample_.name.removesuffix(".jpg").split("_")
        place = nearest(sample_.fields)
        rng = np.random.default_rng([0, 10, int(number) - 99_900_000_000])
        choose(rng), rng.bytes(5), rng.integers(1, 200), near(rng, place)  # what is drawn before: the name, the place
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(sample_.image)))
        drawn = Image.fromarray(view(rng, place, 128, photographer)).convert(image.mode).convert("RGB")
        assert image.size == drawn.size
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - np.asarray(drawn)).mean() < 12
        seen.add(place)
    assert len(seen) > 10


def test_photos_that_are_not_packed_have_a_place(folder: Path) -> None:
    places = [sample.place for sample in everything(folder, COMMENTED)]
    assert places.count(None) == 12
    for sample_ in everything(folder, COMMENTED) + everything(folder, TABLED):
        if sample_.place:
            data = sample_.place.path.read_bytes()
            assert data[sample_.place.offset : sample_.place.offset + len(sample_.image)] == sample_.image


def test_photographers_are_read_from_the_names(folder: Path) -> None:
    assert photographers(folder / ZIP) == photographers(folder / ZIP_3K) == set(PHOTOGRAPHERS)


@pytest.mark.parametrize(
    "texts",
    [
        ("latitude: 35.6", "longitude: -139.7"),
        ("photo: 1 2 3\nlatitude: 35.6\nlongitude: -139.7\naccuracy: 16",),
        ("LATITUDE = 35.6\r\nLongitude=-139.7\0",),
        ("lat 35.6", "long: -139.7"),
        ("Lat:+35.600", "lng: -139.70"),
        (" longitude : -139.7 \0\0", "lon -139.7", "lat 35.6", "latitude: 35.600000"),  # the same, twice
        ("title: latitude: 1.5", "tags: geo:lat=2.5 longitude: 3.5", "latitude: 35.6", "longitude: -139.7"),
        ("the longitude: 1.5", "longitude: 2.5 or so", "latitude: 35.6", "longitude: -139.7"),
    ],
)
def test_coordinates_are_found_by_their_labels(texts: tuple[str, ...]) -> None:
    assert coordinates(comments(jpeg_with(*texts)), "x.jpg") == (35.6, -139.7)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ((), r"its 0 comments have no latitude"),
        (("photo: 1 2 3", "latitude: 35.6"), r"its 2 comments have no longitude"),
        (("title: latitude: 35.6", "longitude: 1"), r"its 2 comments have no latitude"),
        (("latitude: 35,6", "longitude: 1"), r"its 2 comments have no latitude"),
        (("latitude: 35.6", "longitude: 1", "lat: 35.7"), r"its 3 comments say latitude 35.6 and 35.7"),
        (("latitude: 90.5", "longitude: 1"), r"latitude 90.5 is not in -90..90"),
        (("latitude: 9", "longitude: -181"), r"longitude -181.0 is not in -180..180"),
    ],
)
def test_a_photo_without_one_clear_place_is_an_error(tmp_path: Path, texts: tuple[str, ...], says: str) -> None:
    zip_of(tmp_path / ZIP, {NAME: jpeg_with(*texts)})
    with pytest.raises(ValueError, match=rf"gps_query_imgs\.zip: {NAME}: {says}"):
        everything(tmp_path, COMMENTED)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def test_all_comments_before_the_picture_are_read_and_none_within_it() -> None:
    start, app, scan = b"\xff\xd8", segment(0xE1, b"Exif\0\0" + b"\xff\xfe\0\x06lie!" * 9), b"\xff\xda\0\x02"
    long = b"x" * 65_533
    data = start + app + segment(0xFE, b"one") + b"\xff\xff\xff" + segment(0xFE, long) + segment(0xDB, b"t")
    data += b"\xff\x01" + segment(0xFE, b"") + segment(0xFE, b"last")
    assert comments(data + scan + segment(0xFE, b"within")) == [b"one", long, b"", b"last"]
    assert comments(data + b"\xff\xd9" + segment(0xFE, b"after")) == [b"one", long, b"", b"last"]
    assert comments(start + b"\xff\xfe\0\x01" + segment(0xFE, b"x")) == []  # a length that is none
    assert comments(start + b"junk" + segment(0xFE, b"x")) == []
    assert comments(start + b"\xff" * 50_000) == []
    for nothing in (b"", b"\xff", start, b"\x89PNG\r\n\x1a\n" + segment(0xFE, b"x"), b"<html></html>"):
        assert comments(nothing) == []


def test_units_are_small_independent_and_picklable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = everything(folder, COMMENTED)
    assert [sample.name for sample in whole] == sorted(sample.name for sample in whole)
    monkeypatch.setattr(im2gps, "UNIT", 7)
    units = pickle.loads(pickle.dumps(SOURCE.units(folder, COMMENTED)))
    assert len(units) == 4
    assert [sample for unit in units for sample in SOURCE.samples(unit)] == whole


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["photo.jpg"], r"'photo\.jpg' is not \[<place>_\]<photo>_<secret>_<server>_<photographer>\.jpg"),
        ([f"a/{NAME}", f"b/{NAME}"], rf"two images are named '{NAME}'"),
        ([f"../{NAME}"], r"member name .* is not a path inside the archive"),
        ([f"/tmp/{NAME}"], r"member name .* is not a path inside the archive"),
        (["99900000000_0123456789_7_99000001N99.jpg"], r"is not \[<place>_\]"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, names: list[str], says: str) -> None:
    zip_of(tmp_path / ZIP, dict.fromkeys(names, jpeg_with("lat 1", "lon 2")))
    with pytest.raises(ValueError, match=says):
        everything(tmp_path, COMMENTED)


def test_files_that_are_no_photos_are_passed_over(tmp_path: Path) -> None:
    files = {
        f"set/{NAME}": jpeg_with("lat 1", "lon 2"),
        "Thumbs.db": b"x",
        f"__MACOSX/._{NAME}": b"x",
        "set/a.txt": b"",
    }
    zip_of(tmp_path / ZIP, files)
    assert [sample.name for sample in everything(tmp_path, COMMENTED)] == [NAME]


def test_a_cut_or_missing_zip_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gps_query_imgs\.zip does not exist"):
        SOURCE.units(tmp_path, COMMENTED)
    whole = (folder / ZIP).read_bytes()
    for kept in (0, 100, len(whole) // 2, len(whole) - 10):
        (tmp_path / ZIP).write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"gps_query_imgs\.zip is cut or is not a zip archive"):
            SOURCE.units(tmp_path, COMMENTED)


HEAD = "IMG_ID,AUTHOR,LAT,LON\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{HEAD}{NAME},x,1,2\nother.jpg,x,1,2\n", r"csv has 1 images that .*zip has not: other\.jpg"),
        (HEAD, r"zip holds 1 images, .*csv has 0: left out would be 1, the options say 0"),
        (f"{HEAD}{NAME},x,1,2\n{NAME},x,1,2\n", rf"csv line 3: {NAME} comes twice"),
        (f"{HEAD}{NAME},x,1\n", r"csv line 2 has not the 4 columns of the first line"),
        (f"{HEAD}{NAME},x,1,2,3\n", r"csv line 2 has not the 4 columns of the first line"),
        (f"IMG_ID,LATITUDE,LON\n{NAME},1,2\n", r"csv has the columns .*, needed are IMG_ID, LAT, LON"),
        ("", r"csv has the columns None, needed are IMG_ID, LAT, LON"),
        (f"{HEAD}{NAME},x,north,2\n", r"csv line 2: 'north' is not a number of degrees"),
        (f"{HEAD}{NAME},x,nan,2\n", r"csv line 2: latitude nan is not in -90..90"),
        (f"{HEAD}{NAME},x,2,180.5\n", r"csv line 2: longitude 180.5 is not in -180..180"),
        (f'{HEAD}"{NAME},x,1,2\n', r"csv is not a table"),
    ],
)
def test_a_table_that_disagrees_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    zip_of(tmp_path / ZIP_3K, {NAME: jpeg_with()})
    (tmp_path / TABLE).write_text(text)
    with pytest.raises(ValueError, match=says):
        SOURCE.units(tmp_path, TABLED.model_copy(update={"left_out": 0}))


def test_options_and_table_must_agree(folder: Path, tmp_path: Path) -> None:
    for left_out in (2, 4):
        with pytest.raises(ValueError, match=rf"left out would be 3, the options say {left_out}"):
            SOURCE.units(folder, TABLED.model_copy(update={"left_out": left_out}))
    with pytest.raises(ValueError, match=r"left_out is 3, but there is no table"):
        SOURCE.units(folder, COMMENTED.model_copy(update={"left_out": 3}))
    zip_of(tmp_path / ZIP_3K, {NAME: jpeg_with()})
    with pytest.raises(ValueError, match=r"csv does not exist"):
        SOURCE.units(tmp_path, TABLED)
    (tmp_path / TABLE).write_bytes(b"IMG_ID,LAT,LON\n\xff\xfe")
    with pytest.raises(ValueError, match=r"csv is not a table"):
        SOURCE.units(tmp_path, TABLED)


@pytest.mark.parametrize(("options", "count"), [(COMMENTED, 24), pytest.param(TABLED, 21, marks=pytest.mark.slow)])
def test_shards_are_the_same_whoever_writes_them_and_their_number_is_asserted(
    folder: Path, tmp_path: Path, options: Options, count: int
) -> None:
    how = settings({"test": count}, seed=1, samples_per_shard=10, options=options.model_dump())
    index = sharded("im2gps", SOURCE, folder, tmp_path / "im2gps", how)
    assert (index.classes, index.splits["test"].samples, index.skipped) == ((), count, {})
    with pytest.raises(ValueError, match=rf"hold {count} samples of split 'test', .* says 237"):
        write_shards("im2gps", SOURCE, folder, tmp_path / "out", how.model_copy(update={"samples": {"test": 237}}), 1)


def test_the_sample_has_two_of_everything_and_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    for data in (images(folder / ZIP), images(folder / ZIP_3K)):
        opened = [Image.open(io.BytesIO(image)) for image in data.values()]
        kinds = Counter("turned" if image.getexif().get(0x0112) == 6 else image.mode for image in opened)
        assert kinds == {"RGB": 18, "L": 2, "CMYK": 2, "turned": 2}
        assert len({image.size for image in opened}) > 15
        named = {name.split("_")[0] for name in data if len(name.split("_")) == 6}
        assert len(named & {place.city for place in PLACES}) == len(named) > 3
    sample.write(tmp_path, photos=24)
    sample.write_3k(tmp_path, photos=24)
    for name in (ZIP, ZIP_3K, TABLE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    sample.write(tmp_path, photos=24, seed=1)
    assert (tmp_path / ZIP).read_bytes() != (folder / ZIP).read_bytes()
    for options, says in (({"photos": 5}, r"photos 5 is not in 6\.\."), ({"size": 8}, r"size 8 is not in 32\.\.1024")):
        with pytest.raises(ValueError, match=says):
            sample.write(tmp_path, **options)
    with pytest.raises(ValueError, match=r"left_out 13 is not in 0\.\.12"):
        sample.write_3k(tmp_path, photos=24, left_out=13)
