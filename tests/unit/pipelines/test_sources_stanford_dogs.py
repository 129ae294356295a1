"""Stanford Dogs' look-alike, read by independent means; its source against them; every way in which files disagree."""

from __future__ import annotations

import io
import pickle
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.io import loadmat, savemat

from pipelines.dogs_overlap import imagenet_overlap, main
from pipelines.samples import imagenet as imagenet_sample
from pipelines.samples import stanford_dogs as sample
from pipelines.shard import write_shards
from pipelines.shards import read_index
from pipelines.sources import imagenet as imagenet_source
from pipelines.sources import stanford_dogs
from pipelines.sources.base import Box, Sample
from pipelines.sources.stanford_dogs import SOURCE, Options, crop
from tests.sharding import settings, sharded, stored

FILES = ("annotation.tar", "images.tar", "lists.tar")
OPTIONS = {"breeds": 5, "train": 8, "test": 4}
COUNTS = {"train": 40, "test": 4 * 5 + 1 + 2 + 0 + 1 + 2}
HUES = {"Red disc": 0, "flat-coated green disc": 84, "red bars": 0, "flat-coated green bars": 84, "blue disc": 204}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dogs")
    sample.write(folder, **OPTIONS)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    for name in FILES:
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    return tmp_path


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers() if member.isfile()}


def rewrite(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def change(path: Path, changes: dict[str, bytes | None]) -> None:
    """Rewrite an archive with some members replaced; None leaves a member out."""
    files = {**contents(path), **changes}
    rewrite(path, {name: data for name, data in files.items() if data is not None})


def change_list(folder: Path, name: str, edit: Callable[[list[str], list[str], list[int]], None]) -> None:
    table = loadmat(io.BytesIO(contents(folder / "lists.tar")[name]), squeeze_me=True)
    columns = [table[key].tolist() for key in ("file_list", "annotation_list", "labels")]
    edit(*columns)
    files, names = (np.array([[text] for text in column], dtype=object) for column in columns[:2])
    mat = io.BytesIO()
    savemat(mat, {"file_list": files, "annotation_list": names, "labels": np.array([columns[2]]).T})
    change(folder / "lists.tar", {name: mat.getvalue()})


def rows(folder: Path, name: str) -> dict[str, int]:
    """A list as tensorflow/datasets reads it: stanford_dogs.py."""
    table = loadmat(io.BytesIO(contents(folder / "lists.tar")[name]), squeeze_me=True)
    return dict(zip(table["file_list"].tolist(), table["labels"].tolist(), strict=True))


def everything(folder: Path, **options: bool) -> list[Sample]:
    return [one for unit in SOURCE.units(folder, Options(**options)) for one in SOURCE.samples(unit)]


def boxes_of(xml: bytes) -> np.ndarray:
    """(boxes, 4): xmin, ymin, xmax, ymax, by a search of the text."""
    found = [re.findall(rf"<{key}>(\d+)</{key}>", xml.decode()) for key in ("xmin", "ymin", "xmax", "ymax")]
    return np.array(found, dtype=int).T


# The look-alike


def test_the_archives_have_the_upstream_layout(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == list(FILES)
    images, annotations = contents(whole / "images.tar"), contents(whole / "annotation.tar")
    assert len(images) == sum(COUNTS.values())
    for name in images:
        assert re.fullmatch(r"Images/(n\d{8})-[\w-]+/\1_\d+\.jpg", name)
    stems = [name.removeprefix("Images/").removesuffix(".jpg") for name in images]
    assert [f"Annotation/{stem}" for stem in stems] == list(annotations)
    assert stems != sorted(stems)
    with tarfile.open(whole / "images.tar") as tar:
        folders = [member.name for member in tar.getmembers() if member.isdir()]
    assert folders[:2] == ["Images", "Images/n90001357-Red_disc"]


def test_the_lists_have_the_upstream_cells(whole: Path) -> None:
    mats = contents(whole / "lists.tar")
    assert sorted(mats) == ["file_list.mat", "test_list.mat", "train_list.mat"]
    for mat in mats.values():
        assert mat[:116] == b"MATLAB 5.0 MAT-file".ljust(116)  # no time of day
        table = loadmat(io.BytesIO(mat))
        assert {key for key in table if not key.startswith("__")} == {"file_list", "annotation_list", "labels"}
        assert table["file_list"].shape == table["annotation_list"].shape == table["labels"].shape
        assert table["file_list"].shape[1] == 1
        assert [f"{item[0][0]}.jpg" for item in table["annotation_list"]] == [item[0][0] for item in table["file_list"]]
        assert table["labels"].dtype == np.uint8
        assert {item[0] for item in table["labels"]} == {1, 2, 3, 4, 5}
    assert list(rows(whole, "file_list.mat")) == sorted(rows(whole, "file_list.mat"))
    train, test = rows(whole, "train_list.mat"), rows(whole, "test_list.mat")
    assert list(train) != sorted(train)
    assert Counter(train.values()) == dict.fromkeys(range(1, 6), 8)
    assert Counter(test.values()) == {1: 5, 2: 6, 3: 4, 4: 5, 5: 6}


def test_annotations_describe_what_the_images_show(whole: Path) -> None:
    """Inside the boxes there is noise, outside none; the noise is strong enough to outlast the JPEG."""
    images, annotations = contents(whole / "images.tar"), contents(whole / "annotation.tar")
    numbers = Counter[int]()
    for name, data in images.items():
        xml = annotations[name.replace("Images", "Annotation").removesuffix(".jpg")]
        image = Image.open(io.BytesIO(data))
        assert f"<width>{image.width}</width>\n\t\t<height>{image.height}</height>".encode() in xml
        grey = np.asarray(image.convert("RGB").convert("L")).astype(int)
        rough = np.abs(np.diff(grey, n=2, axis=1))  # of columns 1 to -1: of a slope there remains nothing
        inside = np.zeros(grey.shape, dtype=bool)
        margin = np.zeros(grey.shape, dtype=bool)
        for left, top, right, bottom in boxes_of(xml):
            assert 0 <= left < right <= image.width
            assert 0 <= top < bottom <= image.height
            inside[top:bottom, left:right] = True
            margin[max(top - 16, 0) : bottom + 16, max(left - 16, 0) : right + 16] = True  # the JPEG's blocks
        assert rough[inside[:, 1:-1]].mean() > 3
        if (~margin).sum() > 100:
            assert rough[~margin[:, 1:-1]].mean() < 1
        numbers[len(boxes_of(xml))] += 1
    assert set(numbers) == {1, 2}
    assert numbers[2] >= 2


def kind(data: bytes) -> str:
    image = Image.open(io.BytesIO(data))
    if image.getexif().get(0x0112, 1) != 1:
        return "turned"
    return image.format if image.format != "JPEG" else {"L": "grey", "RGB": "rgb"}.get(image.mode, image.mode)


def test_each_split_has_an_odd_file_of_each_kind(whole: Path) -> None:
    images = contents(whole / "images.tar")
    for split in ("train", "test"):
        kinds = Counter(kind(images[f"Images/{name}"]) for name in rows(whole, f"{split}_list.mat"))
        assert kinds == {"grey": 1, "CMYK": 1, "turned": 1, "PNG": 1, "rgb": COUNTS[split] - 4}


def test_the_same_options_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    sample.write(tmp_path, **OPTIONS)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    sample.write(tmp_path, **OPTIONS, seed=1)
    assert all((tmp_path / name).read_bytes() != (whole / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"breeds": 1}, "breeds 1 is not in 2..12"),
        ({"breeds": 13}, "breeds 13 is not in 2..12"),
        ({"train": 3}, "train 3 is not in 4..10000"),
        ({"test": 3}, "test 3 is not in 4..10000"),
        ({"size": 40}, "size 40 is not in 48..1024"),
    ],
)
def test_options_without_room_for_everything_are_refused(tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=f"sample stanford_dogs: {re.escape(says)}"):
        sample.write(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_every_number_of_breeds_makes_a_readable_set(tmp_path: Path) -> None:
    for breeds in (2, 12):
        sample.write(tmp_path, breeds=breeds, train=4, test=4, size=48)
        assert len(SOURCE.classes(tmp_path)) == breeds
        assert len({one.fields["label"] for one in everything(tmp_path, crop_to_box=True)}) == breeds


# The source


def test_labels_and_splits_are_those_of_the_lists(whole: Path) -> None:
    images = contents(whole / "images.tar")
    wnids = sorted({name.split("/")[1][:9] for name in images})
    found = everything(whole)
    for split in COUNTS:
        listed = rows(whole, f"{split}_list.mat")
        here = [one for one in found if one.split == split]
        assert [one.name for one in here] == list(listed)
        for one in here:
            assert one.image == images[f"Images/{one.name}"]
            assert one.fields == {"label": listed[one.name] - 1}
            assert wnids[one.fields["label"]] == one.name[:9]
            assert one.crop is None
    assert Counter(one.split for one in found) == COUNTS


def test_places_point_at_the_very_bytes(whole: Path) -> None:
    for one in everything(whole):
        data = one.place.path.read_bytes()
        assert data[one.place.offset : one.place.offset + len(one.image)] == one.image


def test_classes_are_wnids_with_names_and_never_names_alone(whole: Path, tmp_path: Path) -> None:
    assert SOURCE.classes(whole) == [
        "n90001357 Red disc",
        "n90004071 flat-coated green disc",
        "n90006785 red bars",
        "n90009499 flat-coated green bars",
        "n90800001 blue disc",
    ]
    imagenet_sample.write(tmp_path, classes=12, train=1, val=1)
    words = {name[10:].split(",")[0].lower(): name[:9] for name in imagenet_source.classes(tmp_path)}
    assert words["blue disc"] == "n90002714"  # spelled as a breed, but another thing
    assert words["red bars"] == "n90006785"


def test_the_label_is_what_the_picture_shows_within_the_crop(whole: Path) -> None:
    """The hue of most saturated pixels: red, green or violet. Grey pictures have none."""
    names = [name[10:] for name in SOURCE.classes(whole)]
    right = total = 0
    for one in everything(whole, crop_to_box=True):
        image = Image.open(io.BytesIO(one.image)).convert("RGB")
        box = one.crop
        part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height)).convert("HSV")
        hue, saturation, _ = (np.asarray(band).astype(int) for band in part.split())
        votes = {
            centre: np.count_nonzero((np.abs((hue - centre + 128) % 256 - 128) < 20) & (saturation > 120))
            for centre in set(HUES.values())
        }
        if max(votes.values()) > 50:
            total += 1
            right += max(votes, key=votes.get) == HUES[names[one.fields["label"]]]
    assert total > 0.8 * sum(COUNTS.values())
    assert right / total > 0.85


def test_the_crop_holds_all_boxes_and_no_more(whole: Path) -> None:
    annotations = contents(whole / "annotation.tar")
    several = 0
    for one in everything(whole, crop_to_box=True):
        boxes = boxes_of(annotations[f"Annotation/{one.name.removesuffix('.jpg')}"])
        left, top = boxes[:, :2].min(axis=0)
        right, bottom = boxes[:, 2:].max(axis=0)
        assert one.crop == Box(top, left, bottom - top, right - left)
        several += len(boxes) > 1
    assert several >= 2


def test_units_are_small_independent_and_picklable(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = everything(whole, crop_to_box=True)
    monkeypatch.setattr(stanford_dogs, "UNIT", 9)
    units = pickle.loads(pickle.dumps(SOURCE.units(whole, Options(crop_to_box=True))))
    assert [len(unit.images) for unit in units] == [9, 9, 9, 9, 4, 9, 9, 8]
    assert [one for unit in units for one in SOURCE.samples(unit)] == expected
    assert {one.name for unit in reversed(units) for one in SOURCE.samples(unit)} == {one.name for one in expected}


@pytest.mark.slow
def test_shards_are_the_same_bytes_for_any_number_of_processes(whole: Path, tmp_path: Path) -> None:
    for options in ({}, {"crop_to_box": True}):
        target = tmp_path / ("cropped" if options else "kept")
        index = sharded("stanford_dogs", SOURCE, whole, target, settings(COUNTS, options=options))
        assert index == read_index(target)
        assert {name: split.samples for name, split in index.splits.items()} == COUNTS
        assert list(index.classes) == SOURCE.classes(whole)
        assert index.skipped == {}
    kept, cropped = stored(tmp_path / "kept"), stored(tmp_path / "cropped")
    assert read_index(tmp_path / "kept").reencoded == {"cmyk": 2, "png": 2, "turned": 2}
    rest = sum(COUNTS.values()) - 6
    assert read_index(tmp_path / "cropped").reencoded == {
        "cmyk, cropped": 2, "cropped": rest, "cropped, turned": 2, "png, cropped": 2,
    }  # fmt: skip
    for one in everything(whole, crop_to_box=True):
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(one.image)))
        assert (kept[one.name].fields["width"], kept[one.name].fields["height"]) == upright.size
        size = Image.open(io.BytesIO(cropped[one.name].image)).size
        turned = kind(one.image) == "turned"
        assert size == ((one.crop.height, one.crop.width) if turned else (one.crop.width, one.crop.height))
        assert cropped[one.name].fields["label"] == one.fields["label"]


def test_a_turned_image_is_cropped_before_it_is_turned(whole: Path, tmp_path: Path) -> None:
    write_shards("stanford_dogs", SOURCE, whole, tmp_path / "out", settings(COUNTS, options={"crop_to_box": True}), 1)
    shown = stored(tmp_path / "out")
    turned = [one for one in everything(whole, crop_to_box=True) if kind(one.image) == "turned"]
    assert len(turned) == 2
    for one in turned:
        left, top, height, width = one.crop.left, one.crop.top, one.crop.height, one.crop.width
        part = Image.open(io.BytesIO(one.image)).convert("RGB").crop((left, top, left + width, top + height))
        expected = np.asarray(part.transpose(Image.Transpose.ROTATE_270)).astype(int)
        assert np.abs(np.asarray(Image.open(io.BytesIO(shown[one.name].image))) - expected).mean() < 4


def test_an_unknown_option_is_refused(whole: Path, tmp_path: Path) -> None:
    strange = settings(COUNTS, options={"crop_to_boxes": True})
    with pytest.raises(ValueError, match="shard.options: crop_to_boxes: Extra inputs"):
        write_shards("stanford_dogs", SOURCE, whole, tmp_path / "out", strange, 1)


# Files that contradict each other


def test_missing_archives_are_named(folder: Path) -> None:
    for name in reversed(("lists.tar", "images.tar", "annotation.tar")):
        (folder / name).unlink()
        with pytest.raises(ValueError, match=rf"{name} does not exist"):
            SOURCE.units(folder, Options())


def test_a_cut_archive_is_an_error_wherever_it_is_cut(folder: Path) -> None:
    for name in FILES:
        data = (folder / name).read_bytes()
        for kept in (0, 100, len(data) // 4, len(data) // 2):
            (folder / name).write_bytes(data[:kept])
            with pytest.raises(ValueError, match=name):
                everything(folder)
        (folder / name).write_bytes(data)


def test_a_missing_list_is_named(folder: Path) -> None:
    for name in ("test_list.mat", "train_list.mat", "file_list.mat"):  # the last that lacks is named first
        change(folder / "lists.tar", {name: None})
        with pytest.raises(ValueError, match=rf"lists\.tar has no member {name}"):
            SOURCE.classes(folder)


@pytest.mark.parametrize("mat", [b"", b"junk", b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM", bytes(3000)])
def test_a_list_that_is_not_one_is_an_error(folder: Path, mat: bytes) -> None:
    change(folder / "lists.tar", {"train_list.mat": mat})
    with pytest.raises(ValueError, match=r"lists\.tar:train_list\.mat is not a list of images: "):
        SOURCE.classes(folder)


def test_a_truncated_list_is_an_error_not_a_smaller_set(folder: Path) -> None:
    whole = contents(folder / "lists.tar")["test_list.mat"]
    change(folder / "lists.tar", {"test_list.mat": whole[: len(whole) * 2 // 3]})
    with pytest.raises(ValueError, match=r"test_list\.mat is not a list of images: "):
        SOURCE.units(folder, Options())


def test_columns_of_different_lengths_are_an_error(folder: Path) -> None:
    change_list(folder, "test_list.mat", lambda files, names, labels: labels.pop())
    with pytest.raises(ValueError, match=r"test_list\.mat has 26 images, 26 annotations and 25 labels"):
        SOURCE.classes(folder)


def test_a_split_that_lacks_a_row_is_an_error(folder: Path) -> None:
    lost = list(rows(folder, "train_list.mat"))[-1].removesuffix(".jpg")
    change_list(folder, "train_list.mat", lambda *columns: [column.pop() for column in columns])
    says = rf"file_list\.mat has 66 images, train_list\.mat and test_list\.mat have 65; in one of them only: {lost}$"
    with pytest.raises(ValueError, match=says):
        SOURCE.units(folder, Options())


def test_an_image_in_both_splits_is_an_error(folder: Path) -> None:
    name, label = next(iter(rows(folder, "test_list.mat").items()))

    def add(files: list[str], names: list[str], labels: list[int]) -> None:
        files.append(name), names.append(name.removesuffix(".jpg")), labels.append(label)

    change_list(folder, "train_list.mat", add)
    says = rf"lists\.tar: in train_list\.mat and in test_list\.mat too: {name.removesuffix('.jpg')}$"
    with pytest.raises(ValueError, match=says):
        SOURCE.units(folder, Options())


def test_an_image_that_comes_twice_is_an_error(folder: Path) -> None:
    change_list(folder, "train_list.mat", lambda *columns: [column.append(column[2]) for column in columns])
    with pytest.raises(ValueError, match=r"train_list\.mat row 41: n90001357-Red_disc/n90001357_\d+\.jpg comes twice"):
        SOURCE.units(folder, Options())


@pytest.mark.parametrize("label", [0, 2, 6, 1.5, -1])
@pytest.mark.parametrize("name", ["file_list.mat", "train_list.mat"])
def test_a_label_that_is_not_the_rank_of_the_wnid_is_an_error(folder: Path, name: str, label: float) -> None:
    change_list(folder, name, lambda files, names, labels: labels.__setitem__(0, label))
    says = rf"{name}: n90001357-Red_disc/n90001357_\d+ has label {re.escape(str(label))}(\.0)?, " \
           r"its WNID is number 1 of 5"  # fmt: skip
    with pytest.raises(ValueError, match=says):
        SOURCE.classes(folder)


def test_labels_in_the_order_of_names_are_an_error(folder: Path) -> None:
    """What one gets who sorts breeds by name: "Red disc", "blue disc", ..."""
    for name in ("file_list.mat", "train_list.mat", "test_list.mat"):
        order = sorted({path.split("/")[0][10:] for path in rows(folder, name)})

        def by_name(files: list[str], names: list[str], labels: list[int], order: list[str] = order) -> None:
            labels[:] = [order.index(path.split("/")[0][10:]) + 1 for path in files]

        change_list(folder, name, by_name)
    with pytest.raises(ValueError, match=r"has label \d, its WNID is number \d of 5"):
        SOURCE.classes(folder)


@pytest.mark.parametrize(
    "path",
    [
        "../n90001357-Red_disc/n90001357_1.jpg",
        "/n90001357-Red_disc/n90001357_1.jpg",
        "n90001357-Red_disc/n90004071_1.jpg",
        "n90001357/n90001357_1.jpg",
        "n90001357-Red_disc/n90001357_1.jpg\n",
        "n90001357-Red_disc/n90001357_1.JPEG",
        "n90001357-Red_disc/n90001357_\u0661.jpg",
    ],
)
def test_a_path_of_another_form_is_an_error(folder: Path, path: str) -> None:
    def edit(files: list[str], names: list[str], labels: list[int]) -> None:
        files[1], names[1] = path, path.removesuffix(".jpg")

    change_list(folder, "train_list.mat", edit)
    with pytest.raises(ValueError, match=r"train_list\.mat row 2: .* are not <WNID>-<breed>/<WNID>_<number>\[\.jpg\]"):
        SOURCE.units(folder, Options())


def test_the_annotation_of_another_image_is_an_error(folder: Path) -> None:
    change_list(folder, "train_list.mat", lambda files, names, labels: names.reverse())
    with pytest.raises(ValueError, match=r"train_list\.mat row 1: .* are not <WNID>"):
        SOURCE.units(folder, Options())


def test_one_wnid_with_two_names_is_an_error(folder: Path) -> None:
    def rename(files: list[str], names: list[str], labels: list[int]) -> None:
        for column in (files, names):
            column[:] = [text.replace(f"Red_disc/{changed}", f"red_disc/{changed}") for text in column]

    changed = next(iter(rows(folder, "train_list.mat"))).split("/")[1].removesuffix(".jpg")
    for name in ("file_list.mat", "train_list.mat"):
        change_list(folder, name, rename)
    with pytest.raises(ValueError, match=r"file_list\.mat: n90001357 is called '[Rr]ed_disc' and '[rR]ed_disc'"):
        SOURCE.classes(folder)


def test_a_breed_without_test_images_is_an_error(folder: Path) -> None:
    moved = {name: label for name, label in rows(folder, "test_list.mat").items() if label == 3}

    def take(files: list[str], names: list[str], labels: list[int]) -> None:
        kept = [row for row in zip(files, names, labels, strict=True) if row[2] != 3]
        files[:], names[:], labels[:] = (list(column) for column in zip(*kept, strict=True))

    def add(files: list[str], names: list[str], labels: list[int]) -> None:
        for name, label in moved.items():
            files.append(name), names.append(name.removesuffix(".jpg")), labels.append(label)

    change_list(folder, "test_list.mat", take)
    change_list(folder, "train_list.mat", add)
    with pytest.raises(ValueError, match=r"test_list\.mat has no image of n90006785$"):
        SOURCE.classes(folder)


@pytest.mark.parametrize(("archive", "root"), [("images.tar", "Images"), ("annotation.tar", "Annotation")])
def test_an_image_or_annotation_that_is_missing_or_unlisted_is_an_error(folder: Path, archive: str, root: str) -> None:
    first = next(iter(contents(folder / archive)))
    data = contents(folder / archive)[first]
    change(folder / archive, {first: None})
    stem = first.removeprefix(f"{root}/").removesuffix(".jpg")
    with pytest.raises(ValueError, match=rf"{archive} has 65 members for the 66 images of lists\.tar; .*: {stem}$"):
        SOURCE.units(folder, Options())
    more = f"{root}/n90001357-Red_disc/n90001357_999" + (".jpg" if root == "Images" else "")
    change(folder / archive, {first: data, more: b"?", f"{root}/.DS_Store": b"passed over", "note.txt": b"this too"})
    with pytest.raises(ValueError, match=rf"{archive} has 67 members .* only: n90001357-Red_disc/n90001357_999$"):
        SOURCE.units(folder, Options())
    change(folder / archive, {more: None})
    assert len(everything(folder)) == 66


def hostile(tar: tarfile.TarFile, name: str, kind: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    tar.addfile(info)


@pytest.mark.parametrize("archive", FILES)
@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("../../etc/cron.d/x", tarfile.REGTYPE, "not a path inside"),
        ("/etc/cron.d/x", tarfile.REGTYPE, "not a path inside"),
        ("Images/n90001357-Red_disc/n90001357_1.jpg", tarfile.SYMTYPE, "not a plain file"),
        ("Annotation/n90001357-Red_disc/n90001357_1", tarfile.LNKTYPE, "not a plain file"),
        ("train_list.mat", tarfile.CHRTYPE, "not a plain file"),
    ],
)
def test_hostile_members_are_refused(folder: Path, archive: str, name: str, kind: bytes, says: str) -> None:
    with tarfile.open(folder / archive, "a") as tar:
        hostile(tar, name, kind)
    with pytest.raises(ValueError, match=rf"{archive}: member .* is {says}"):
        SOURCE.units(folder, Options())


def test_members_of_absurd_size_are_refused_by_their_header(folder: Path) -> None:
    for archive, name, limit in (
        ("lists.tar", "train_list.mat", stanford_dogs.MAX_LIST_BYTES),
        ("annotation.tar", "Annotation/n90001357-Red_disc/n90001357_1", stanford_dogs.MAX_XML_BYTES),
        ("images.tar", "Images/n90001357-Red_disc/n90001357_1.jpg", stanford_dogs.MAX_IMAGE_BYTES),
    ):
        whole = (folder / archive).read_bytes()
        info = tarfile.TarInfo(name)
        info.size = limit + 1
        (folder / archive).write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + whole)
        with pytest.raises(ValueError, match=rf"{archive}: member .* claims {limit + 1} bytes, allowed are {limit}"):
            SOURCE.units(folder, Options())
        (folder / archive).write_bytes(whole)


# Annotations


def xml(*boxes: tuple[object, ...], width: object = 100, height: object = 80) -> bytes:
    things = "".join(
        "<object><name>Red_disc</name><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for box in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><folder>%s</folder>{size}{things}</annotation>".encode()


def test_crops_by_hand() -> None:
    assert crop(xml((71, 1, 92, 60)), "x") == Box(1, 71, 59, 21)
    assert crop(xml((0, 0, 100, 80)), "x", (100, 80)) == Box(0, 0, 80, 100)
    assert crop(xml((10, 20, 30, 40), (50, 5, 60, 35)), "x") == Box(5, 10, 35, 50)
    assert crop(xml((10, 20, 50, 60), (20, 30, 40, 50)), "x") == Box(20, 10, 40, 40)  # one within the other
    assert crop(xml((-3, -1, 101, 83)), "x") == Box(0, 0, 80, 100)  # cut to the image
    assert crop(xml(("\n 71 ", 1, 92, 60)), "x") == Box(1, 71, 59, 21)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (xml(), "0 objects and 0 boxes"),
        (xml((1, 1, 5, 5)).replace(b"</object>", b"</object><object/>"), "2 objects and 1 boxes"),
        (xml((30, 1, 30, 5)), "box 30, 1, 30, 5 covers nothing of 100 x 80 pixels"),
        (xml((30, 9, 40, 5)), "box 30, 9, 40, 5 covers nothing"),
        (xml((100, 1, 120, 5)), "box 100, 1, 120, 5 covers nothing"),
        (xml((1, 1, 5, 5), width=0), "covers nothing of 0 x 80"),
        (xml((1, 1, 5, 5), width=-5), "covers nothing of -5 x 80"),
        (xml((1.5, 1, 5, 5)), "bndbox/xmin '1.5' is not a number of pixels"),
        (xml((1, 1, 5, "nan")), "bndbox/ymax 'nan' is not a number of pixels"),
        (xml((1, 1, 5, "9" * 5000)), "is not a number of pixels"),
        (xml((1, 1, 5, 5), height=""), "annotation/size/height '' is not a number of pixels"),
        (xml((1, 1, 5, 5)).replace(b"xmax", b"right"), "bndbox/xmax '' is not a number of pixels"),
        (b"", "is not XML"),
        (b"\xff\xd8\xff", "is not XML"),
        (b"<annotation>", "is not XML"),
        (xml((1, 1, 5, 5))[:-20], "is not XML"),
        (b"<a>" * 20_000, "is not XML"),
        (b"<a>" * 9_000 + b"</a>" * 9_000, "0 objects and 0 boxes"),
    ],
)
def test_annotations_that_say_nothing_usable_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=rf"^archive:member.*{re.escape(says)}"):
        crop(data, "archive:member")


LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a0 "ha">'
    + b"".join(b'<!ENTITY a%d "%s">' % (level + 1, b"&a%d;" % level * 10) for level in range(12))
    + b"]><annotation>&a12;</annotation>"
)


def test_entities_that_would_unfold_are_refused_at_once(folder: Path) -> None:
    """Ten to the twelfth "ha" in a kilobyte; and a file named as an entity."""
    for evil in (LAUGHS, b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'):
        first = time.monotonic()
        with pytest.raises(ValueError, match="x has a DTD, a comment or a CDATA section"):
            crop(evil, "x")
        with pytest.raises(ValueError, match="x is not XML"):
            crop(evil.decode().encode("utf-16"), "x")  # where the letters of DOCTYPE do not follow each other
        assert time.monotonic() - first < 1
    name = next(iter(contents(folder / "annotation.tar")))
    change(folder / "annotation.tar", {name: LAUGHS})
    assert len(everything(folder)) == 66  # not read unless asked for
    with pytest.raises(ValueError, match=rf"annotation\.tar:{name} has a DTD"):
        everything(folder, crop_to_box=True)


def test_an_annotation_of_another_size_is_an_error(folder: Path) -> None:
    annotations = contents(folder / "annotation.tar")
    name = next(iter(annotations))
    wrong = re.sub(rb"<width>\d+", b"<width>999", annotations[name])
    change(folder / "annotation.tar", {name: wrong})
    says = rf"annotation\.tar:{name} speaks of 999 x (\d+) pixels, the image has \d+ x \1$"
    with pytest.raises(ValueError, match=says):
        everything(folder, crop_to_box=True)


def test_a_broken_image_is_left_to_the_check_of_images(folder: Path, tmp_path: Path) -> None:
    names = list(contents(folder / "images.tar"))[:3]
    html, broken = b"<html>gone</html>", b"\xff\xd8\xff\xe0 nothing more"
    change(folder / "images.tar", dict(zip(names, (html, broken, b""), strict=True)))
    skipping = settings(COUNTS, options={"crop_to_box": True}, bad_images="skip")
    index = write_shards("stanford_dogs", SOURCE, folder, tmp_path / "out", skipping, 1)
    assert index.skipped == {"broken header": 1, "empty": 1, "not an image": 1}


# What ImageNet has too


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    imagenet_sample.write(folder, classes=6, train=70, val=1, size=32)
    return folder


def trained(folder: Path) -> set[str]:
    found = set()
    for data in contents(folder / imagenet_source.TRAIN).values():
        with tarfile.open(fileobj=io.BytesIO(data)) as inner:
            found |= {name.removesuffix(".JPEG") for name in inner.getnames()}
    return found


def test_the_overlap_is_that_of_the_names(whole: Path, imagenet: Path) -> None:
    names = trained(imagenet)
    expected = [name for name in rows(whole, "test_list.mat") if name.split("/")[1].removesuffix(".jpg") in names]
    assert 2 <= len(expected) < COUNTS["test"]
    overlap = imagenet_overlap(whole, imagenet)
    assert overlap.seen == expected
    assert overlap.test == COUNTS["test"]
    assert overlap.absent == ["n90009499 flat-coated green bars", "n90800001 blue disc"]


def test_the_overlap_of_a_hand_made_archive(whole: Path, tmp_path: Path) -> None:
    """Names are compared whole: n90001357_1 is not n90001357_12, and no other breed's number counts."""
    test, train = (list(rows(whole, f"{split}_list.mat")) for split in ("test", "train"))
    stems = {name.split("/")[1].removesuffix(".jpg") for name in test}
    hit = test[0].split("/")[1].removesuffix(".jpg")
    seen_in_train = train[0].split("/")[1].removesuffix(".jpg")
    near = [name for name in (f"{hit}0", f"{hit}_1", hit.replace("n90001357", "n90004071")) if name not in stems]
    inner = tmp_path / "inner"
    rewrite(inner, {f"{name}.JPEG": b"" for name in (hit, seen_in_train, *near)})
    rewrite(tmp_path / imagenet_source.TRAIN, {"n90001357.tar": inner.read_bytes(), "n90002714.tar": b"never opened"})
    overlap = imagenet_overlap(whole, tmp_path)
    assert overlap.seen == [test[0]]
    assert len(overlap.absent) == 4


def test_the_command_prints_count_share_and_list(
    whole: Path, imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(whole), str(imagenet)])
    first, *names, last = capsys.readouterr().out.splitlines()
    count = len(names)
    assert first == f"{count} of 26 test images ({count / 26:.1%}) are ImageNet training images"
    assert names == imagenet_overlap(whole, imagenet).seen
    assert last == "breeds that this ImageNet does not have: n90009499 flat-coated green bars, n90800001 blue disc"
    with pytest.raises(SystemExit) as end:
        main([str(whole), str(tmp_path)])
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/{imagenet_source.TRAIN} does not exist\n"
    (tmp_path / imagenet_source.TRAIN).write_bytes((imagenet / imagenet_source.TRAIN).read_bytes()[:5000])
    with pytest.raises(SystemExit):
        main([str(whole), str(tmp_path)])
    assert re.fullmatch(r"error: .*is cut.*\n", capsys.readouterr().err)


def test_both_modules_are_light_to_import() -> None:
    code = (
        "import sys, pipelines.sources.stanford_dogs, pipelines.samples.stanford_dogs\n"
        "heavy = {'torch', 'ray', 'mlflow', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
