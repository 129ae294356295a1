"""CelebA: the look-alike against an independent reading, labels against pictures, and every way to disagree."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.samples import celeba as sample
from pipelines.samples import faces
from pipelines.sources import celeba
from pipelines.sources.base import NoOptions, Sample
from tests.sharding import settings, sharded, stored

ZIP, ATTRIBUTES = "img_align_celeba.zip", "list_attr_celeba.txt"
IDENTITIES, PARTITION = "identity_CelebA.txt", "list_eval_partition.txt"
OPTIONS = {"people": 12, "images": 6, "size": 61}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("celeba")
    sample.write(folder, **OPTIONS)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "raw")
    return tmp_path / "raw"


def everything(folder: Path) -> list[Sample]:
    return [one for unit in celeba.units(folder, NoOptions()) for one in celeba.samples(unit)]


def images(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(folder / ZIP) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return {Path(name).name: archive.read(name) for name in names}


def expected(folder: Path) -> dict[str, tuple]:
    """Image -> split, bytes, attributes, identity. The lists are read column by column, as NumPy reads tables."""
    table = np.loadtxt(folder / ATTRIBUTES, dtype=str, skiprows=2)
    identity = dict(np.loadtxt(folder / IDENTITIES, dtype=str))
    part = dict(np.loadtxt(folder / PARTITION, dtype=str))
    pictures = images(folder)
    return {
        row[0]: (
            ("train", "val", "test")[int(part[row[0]])], pictures[row[0]],
            [max(int(value), 0) for value in row[1:]], str(identity[row[0]]),
        )
        for row in table
    }  # fmt: skip


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_bytes()
    assert text.count(old.encode()) == 1
    path.write_bytes(text.replace(old.encode(), new.encode()))


def zip_of(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


# The source.


def test_every_image_has_its_rows_of_the_lists(whole: Path) -> None:
    found = everything(whole)
    rows = {one.name: (one.split, one.image, one.fields["attributes"], one.fields["identity"]) for one in found}
    assert rows == expected(whole)
    assert len(found) == len(rows) > 50
    assert {len(one.fields["attributes"]) for one in found} == {40}
    assert [one.name for one in found] == sorted(rows)


def test_the_classes_are_the_40_names_in_the_order_of_the_columns(whole: Path) -> None:
    names = celeba.classes(whole)
    assert names == (whole / ATTRIBUTES).read_text().splitlines()[1].split()
    assert len(names) == 40
    assert (names[0], names[15], names[39]) == ("5_o_Clock_Shadow", "Eyeglasses", "Young")  # as in upstream's list


def test_images_that_are_not_packed_are_read_in_place(whole: Path) -> None:
    data = (whole / ZIP).read_bytes()
    found = everything(whole)
    placed = [one for one in found if one.place]
    assert len(placed) == len(found) // 2
    for one in placed:
        assert data[one.place.offset : one.place.offset + len(one.image)] == one.image


def test_units_are_small_independent_and_picklable(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = everything(whole)
    monkeypatch.setattr(celeba, "UNIT", 10)
    units = pickle.loads(pickle.dumps(celeba.units(whole, NoOptions())))
    assert len(units) == -(-len(every) // 10)
    assert [one for unit in units for one in celeba.samples(unit)] == every
    assert {one.name for unit in reversed(units) for one in celeba.samples(unit)} == {one.name for one in every}
    assert len(pickle.dumps(units)) / len(every) < 300  # bytes


@pytest.mark.parametrize("name", [ZIP, ATTRIBUTES, IDENTITIES, PARTITION])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} does not exist"):
        celeba.units(folder, NoOptions())


def test_the_lists_that_are_not_read_may_be_absent_or_wrong(folder: Path) -> None:
    before = everything(folder)
    (folder / "list_bbox_celeba.txt").write_text("nonsense")
    (folder / "list_landmarks_align_celeba.txt").write_text("nonsense")
    assert everything(folder) == before


def test_lists_may_end_their_lines_either_way_and_pad_as_they_like(folder: Path) -> None:
    before = everything(folder)
    for name in (ATTRIBUTES, IDENTITIES, PARTITION):
        lines = (folder / name).read_bytes().splitlines()
        (folder / name).write_bytes(b"".join(b"  ".join(line.split()) + b" \n" for line in lines))
    assert everything(folder) == before


@pytest.mark.parametrize("rows", [1, 20, 60])
def test_a_list_cut_between_two_rows_is_an_error_with_both_numbers(folder: Path, rows: int) -> None:
    count = len(images(folder))
    for name, header in ((ATTRIBUTES, 2), (IDENTITIES, 0), (PARTITION, 0)):
        text = (folder / name).read_bytes()
        (folder / name).write_bytes(b"".join(text.splitlines(keepends=True)[: header + rows]))
        says = f"its first line says {count}" if header else f"{ATTRIBUTES} has {count}"
        with pytest.raises(ValueError, match=f"{name} has {rows} rows, {says}"):
            celeba.units(folder, NoOptions())
        (folder / name).write_bytes(text)


def test_a_list_cut_anywhere_is_never_a_smaller_data_set(folder: Path) -> None:
    """Only a cut within the last number of the last row can pass: fewer of its digits are a number too."""
    for name in (ATTRIBUTES, IDENTITIES, PARTITION):
        text = (folder / name).read_bytes()
        last = len(text.rstrip()) - len(text.split()[-1])
        for kept in {0, 1, 2, 3, 5, 100, 466, 480, *np.linspace(0, last, 40).astype(int), last}:
            (folder / name).write_bytes(text[:kept])
            with pytest.raises(ValueError, match=name):
                celeba.units(folder, NoOptions())
        (folder / name).write_bytes(text)


def test_more_rows_than_the_first_line_says_are_an_error(folder: Path) -> None:
    count = len(images(folder))
    edit(folder / ATTRIBUTES, f"{count}\r\n5_o", f"{count - 1}\r\n5_o")
    with pytest.raises(ValueError, match=f"{ATTRIBUTES} has {count} rows, its first line says {count - 1}"):
        celeba.units(folder, NoOptions())
    edit(folder / ATTRIBUTES, f"{count - 1}\r\n5_o", f"{count}\r\n5_o")
    with (folder / PARTITION).open("a") as file:
        file.write(f"{count + 1:06d}.jpg 0\r\n")
    with pytest.raises(ValueError, match=f"{PARTITION} has {count + 1} rows, {ATTRIBUTES} has {count}"):
        celeba.units(folder, NoOptions())


@pytest.mark.parametrize(
    ("lost", "added", "says"),
    [
        ("img_align_celeba/000003.jpg", "", "holds {less} images, .* lists {count}; in one of them only: 000003.jpg"),
        ("", "img_align_celeba/000999.jpg", "holds {more} images, .* lists {count}; in one of them only: 000999.jpg"),
        ("", "img_align_celeba/../../000001.jpg", "is not a path inside the archive"),
        ("", "/img_align_celeba/000001.jpg", "is not a path inside the archive"),
        ("", "img_align_celeba/Thumbs.db", None),
        ("", "__MACOSX/img_align_celeba/._000001.jpg", None),
    ],
)  # fmt: skip
def test_the_zip_holds_what_the_lists_speak_of(folder: Path, lost: str, added: str, says: str | None) -> None:
    files = {f"img_align_celeba/{name}": data for name, data in images(folder).items()}
    count = len(files)
    files.pop(lost, None)
    files.update({added: b"x"} if added else {})
    zip_of(folder / ZIP, files)
    if says is None:
        assert len(everything(folder)) == count
        return
    with pytest.raises(ValueError, match=f"{ZIP}.*" + says.format(less=count - 1, count=count, more=count + 1)):
        celeba.units(folder, NoOptions())


def test_a_cut_or_damaged_zip_is_an_error(folder: Path) -> None:
    data = (folder / ZIP).read_bytes()
    for kept in (0, 100, len(data) // 2, len(data) - 1):
        (folder / ZIP).write_bytes(data[:kept])
        with pytest.raises(ValueError, match=ZIP):
            everything(folder)
    place = everything_at(folder, data)
    (folder / ZIP).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(ValueError, match=r"member 'img_align_celeba/000002\.jpg' is cut or corrupt"):
        everything(folder)


def everything_at(folder: Path, data: bytes) -> int:
    """A byte within the second image, which is stored."""
    (folder / ZIP).write_bytes(data)
    return everything(folder)[1].place.offset + 700


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        (ATTRIBUTES, "\r\n5_o", "x\r\n5_o", "line 1: not a number of images: '\\d+x'"),
        (ATTRIBUTES, "\r\n5_o", " 7\r\n5_o", "line 1: not a number of images"),
        (ATTRIBUTES, " Young", "", "line 2: 39 names of attributes, there should be 40"),
        (ATTRIBUTES, " Young", " Bald", "line 2: 39 names of attributes, there should be 40"),
        (ATTRIBUTES, " Young", " Young Old", "line 2: 41 names of attributes, there should be 40"),
        (ATTRIBUTES, "\n000002.jpg", "\n000002.jpg 1", "line 4: not an image and 40 values of -1 or 1: '000002.jpg 1"),
        (ATTRIBUTES, "\n000002.jpg ", "\n000002.jpg 0", "line 4: not an image and 40 values of -1 or 1"),
        (ATTRIBUTES, "\n000002.jpg ", "\n000002.jpg \u0661", "line 4: not an image and 40 values of -1 or 1"),
        (ATTRIBUTES, "\n000002.jpg", "\n000003.jpg", "line 4: '000003.jpg' stands where '000002.jpg' should"),
        (ATTRIBUTES, "\n000002.jpg", "\n../../2.jpg", "line 4: '../../2.jpg' stands where '000002.jpg' should"),
        (ATTRIBUTES, "\n000002.jpg", "\n\n000002.jpg", "line 4: not an image and 40 values of -1 or 1: ''"),
        (IDENTITIES, "000002.jpg ", "000002.jpg 7 ", "line 2: not an image and one value"),
        (IDENTITIES, "000002.jpg ", "000002.jpg x", "line 2: 'x\\d+' is not the number of a person"),
        (IDENTITIES, "000002.jpg ", "000002.jpg -", "line 2: '-\\d+' is not the number of a person"),
        (IDENTITIES, "000002.jpg", "000001.jpg", "line 2: '000001.jpg' stands where '000002.jpg' should"),
        (IDENTITIES, "000001.jpg", "path label\n000001.jpg", "line 1: 'path' stands where '000001.jpg' should"),
        (PARTITION, "000002.jpg 0", "000002.jpg 3", "line 2: '3' is not one of 0, 1, 2"),
        (PARTITION, "000002.jpg 0", "000002.jpg train", "line 2: 'train' is not one of 0, 1, 2"),
        (PARTITION, "000002.jpg 0", "000002.jpg", "line 2: not an image and one value: '000002.jpg'"),
    ],
)
def test_a_row_that_is_none_is_named(folder: Path, name: str, old: str, new: str, says: str) -> None:
    edit(folder / name, old, new)
    with pytest.raises(ValueError, match=f"{name} {says}"):
        celeba.units(folder, NoOptions())


def test_a_list_that_is_one_endless_line_is_refused_unread(folder: Path) -> None:
    for name in (ATTRIBUTES, IDENTITIES, PARTITION):
        text = (folder / name).read_bytes()
        with (folder / name).open("wb") as file:
            file.truncate(1 << 40)  # sparse: a terabyte of zeros
        with pytest.raises(ValueError, match=f"{name} line 1: .{{,300}}$"):
            celeba.units(folder, NoOptions())
        (folder / name).write_bytes(text)


# Sharding.


def test_shards_hold_every_image_whatever_the_number_of_processes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celeba, "UNIT", 15)
    wanted = expected(whole)
    counts = Counter(split for split, *_ in wanted.values())
    index = sharded("celeba", celeba.SOURCE, whole, tmp_path / "out", settings(counts))
    assert {name: split.samples for name, split in index.splits.items()} == counts
    assert index.reencoded == {"cmyk": 2, "png": 2, "turned": 2}
    found = {}
    for name, (split, _, _, fields) in stored(tmp_path / "out").items():
        image = wanted[name][1]
        assert fields["sha256"] == hashlib.sha256(image).hexdigest()
        found[name] = (split, image, fields["attributes"], fields["identity"])
    assert found == wanted


# The look-alike.


def test_the_lists_have_upstreams_form_to_the_byte(whole: Path) -> None:
    count = len(images(whole))
    lines = (whole / ATTRIBUTES).read_bytes().split(b"\r\n")
    assert lines[0] == b"%d" % count
    assert len(lines[1]) == 464  # of upstream's header, a blank at its end included
    assert lines[1].endswith(b" Young ")
    assert lines[-1] == b""
    assert len(lines) == 2 + count + 1
    for row in lines[2:-1]:
        assert len(row) == len("000001.jpg -1") + 39 * len(" -1") - (row[11:12] == b"1")
    identity = (whole / IDENTITIES).read_bytes()
    assert b"\r" not in identity
    assert not identity.endswith(b"\n")
    assert len((whole / PARTITION).read_bytes()) == 14 * count  # upstream: 2,836,386 for 202,599
    assert sorted(path.name for path in whole.iterdir()) == sorted([ZIP, ATTRIBUTES, IDENTITIES, PARTITION])


def test_the_sizes_of_upstreams_lists_follow_from_that_form() -> None:
    """Of https://github.com/tensorflow/datasets, celeb_a/checksums.tsv; a first value of 1 is one byte shorter."""
    names = len(" ".join(sample.ATTRIBUTES)) + 1
    longest = len("202599\r\n") + names + 2 + 202_599 * (len("000001.jpg -1") + 39 * 3 + 2)
    assert longest - 26_721_026 == 22_516  # images with 5_o_Clock_Shadow, 11.1 %
    assert 202_599 * len("000001.jpg 0\r\n") == 2_836_386


def test_the_zip_has_upstreams_names_and_odd_files_twice(whole: Path) -> None:
    with zipfile.ZipFile(whole / ZIP) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        methods = Counter(info.compress_type for info in archive.infolist()[1:])
    assert names[0] == "img_align_celeba/"
    assert names[1:] == [f"img_align_celeba/{number:06d}.jpg" for number in range(1, len(names))]
    assert min(methods.values()) > 20
    kinds, sizes = Counter(), Counter()
    for data in images(whole).values():
        image = Image.open(io.BytesIO(data))
        turned = image.getexif().get(0x0112, 1) != 1
        kinds["turned" if turned else image.format if image.format != "JPEG" else image.mode] += 1
        sizes[ImageOps.exif_transpose(image).size] += 1
    assert {kind: count for kind, count in kinds.items() if kind != "RGB"} == {
        "L": 2, "CMYK": 2, "PNG": 2, "turned": 2,
    }  # fmt: skip
    assert set(sizes) == {(50, 61)}


def test_people_have_one_split_and_several_pictures_or_one(whole: Path) -> None:
    rows = expected(whole).values()
    splits = {(identity, split) for split, _, _, identity in rows}
    assert len(splits) == 12
    assert Counter(split for _, split in splits) == {"train": 8, "val": 2, "test": 2}
    counts = Counter(identity for *_, identity in rows)
    assert sorted(counts.values())[:2] == [1, 1]
    assert max(counts.values()) == 7
    order = [split for split, *_ in rows]
    assert order == sorted(order, key=("train", "val", "test").index)


def test_the_same_options_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    sample.write(tmp_path, **OPTIONS)
    names = [path.name for path in whole.iterdir()]
    assert all((tmp_path / name).read_bytes() == (whole / name).read_bytes() for name in names)
    sample.write(tmp_path, **OPTIONS, seed=1)
    assert all((tmp_path / name).read_bytes() != (whole / name).read_bytes() for name in names if name != PARTITION)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"people": 5}, "people 5 is not in 6"), ({"images": 3}, "images 3 is not in 4"), ({"size": 9}, "size 9 is not")],
)
def test_options_without_room_are_refused(tmp_path: Path, options: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=f"sample celeba: {says}"):
        sample.write(tmp_path, **options)
    assert not list(tmp_path.iterdir())


# Labels against what the pictures show, with none of the code that draws.


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Thumbnails (images, 27 x 22 x 3), attributes, identities and whether an image is in train, of a larger sample."""
    folder = tmp_path_factory.mktemp("shown")
    sample.write(folder, people=80, images=12, size=61)
    found = [one for one in everything(folder) if one.image[:2] == b"\xff\xd8"]
    pictures = [ImageOps.exif_transpose(Image.open(io.BytesIO(one.image))).convert("RGB") for one in found]
    thumbs = np.stack([np.asarray(picture.resize((22, 27)), dtype=np.float32) / 255 for picture in pictures])
    attributes = np.array([one.fields["attributes"] for one in found])
    identities = np.array([int(one.fields["identity"]) for one in found])
    return thumbs, attributes, identities, np.array([one.split == "train" for one in found])


def area_under_curve(scores: np.ndarray, truth: np.ndarray) -> float:
    """Of the ROC: the share of pairs of a positive and a negative that are in the right order."""
    return float(np.mean(scores[truth == 1][:, None] > scores[truth == 0][None]))


def test_drawn_attributes_can_be_read_from_the_pictures_of_people_never_seen(shown: tuple) -> None:
    """By ridge regression on pixels: linear, so that a net has the easier task."""
    thumbs, attributes, _, train = shown
    light = thumbs / thumbs.mean(axis=(1, 2, 3), keepdims=True)
    features = np.concatenate(
        [light.reshape(len(light), -1), np.abs(np.diff(light, axis=1)).reshape(len(light), -1)], 1
    )
    features = features - features[train].mean(axis=0)
    kernel = features @ features[train].T
    weights = np.linalg.solve(kernel[train] + 30 * np.eye(train.sum()), attributes[train] - attributes[train].mean(0))
    scores = kernel[~train] @ weights
    areas = {
        name: area_under_curve(scores[:, column], attributes[~train, column])
        for column, name in enumerate(sample.ATTRIBUTES)
    }
    drawn = [areas[name] for name in faces.DRAWN]
    others = [area for name, area in areas.items() if name not in faces.DRAWN]
    assert np.mean(drawn) > 0.8
    assert sum(area > 0.75 for area in drawn) >= 18
    assert 0.4 < np.mean(others) < 0.6


def test_every_attribute_is_there_and_absent(shown: tuple) -> None:
    _, attributes, _, train = shown
    for rows in (attributes[train], attributes[~train]):
        share = rows.mean(axis=0)
        assert share.min() > 0.02
        assert share.max() < 0.98
    columns = {name: attributes[:, column] for column, name in enumerate(sample.ATTRIBUTES)}
    hair = sum(columns[name] for name in (*faces.HAIR, "Bald"))
    assert set(hair) == {1}
    assert set(columns["Straight_Hair"] + columns["Wavy_Hair"] + columns["Bald"]) == {1}
    assert not np.any(columns["No_Beard"] & (columns["Goatee"] | columns["Mustache"]))


def test_two_pictures_of_a_person_are_more_alike_than_those_of_two_people(shown: tuple) -> None:
    """By the colours about the nose and the hair's edge alone, with the light taken out."""
    thumbs, _, identities, _ = shown
    middle = thumbs[:, 11:17, 7:15].reshape(len(thumbs), -1, 3)
    colours = np.concatenate(
        [np.median(middle, axis=1), np.median(thumbs[:, 8:20, 3:5].reshape(len(thumbs), -1, 3), 1)], 1
    )
    colours /= np.linalg.norm(colours[:, :3], axis=1, keepdims=True)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    first, second = np.triu_indices(len(thumbs), 1)
    is_same = (identities[first] == identities[second]).astype(int)
    score = -distances[first, second]
    chosen = np.concatenate([np.flatnonzero(is_same)[::4], np.flatnonzero(1 - is_same)[::150]])
    assert area_under_curve(score[chosen], is_same[chosen]) > 0.8
