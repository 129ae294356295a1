"""The look-alike COCO 2014 read with `zipfile`, `json` and Pillow alone, the source against that, and every way in
which the files can disagree."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.samples import coco as sample
from pipelines.samples.drawing import HUES
from pipelines.shard import write_shards
from pipelines.sources import coco
from pipelines.sources.base import NoOptions, Sample
from tests.sharding import digests, settings, sharded, stored

SUBSETS = ("train2014", "val2014")
ANNOTATIONS, MINIVAL = "annotations_trainval2014.zip", "mscoco_minival_ids.txt"
FILES = [ANNOTATIONS, MINIVAL, "train2014.zip", "val2014.zip"]
OPTIONS = {"train": 40, "val": 32, "test": 14}
COUNTS = {"train": 58, "test": 14}
CATEGORIES = ["1 red disc", "19 blue bars", "37 green ring", "54 violet checks", "72 red cross", "90 blue star"]

SOURCE = coco.SOURCE


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    sample.write(folder, **OPTIONS)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(written, tmp_path / "raw"))


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}


def change_zip(path: Path, **changes: bytes | None) -> None:
    """Rewrite an archive with some members replaced or added; None leaves a member out."""
    files: dict[str, bytes | None] = {**contents(path), **changes}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            if data is not None:
                archive.writestr(name, data)


def tree(folder: Path, subset: str) -> dict[str, Any]:
    return json.loads(contents(folder / ANNOTATIONS)[f"annotations/instances_{subset}.json"])


def change(folder: Path, edit: Callable[[dict[str, Any]], object], subset: str = "train2014") -> None:
    """Edit a JSON of instances in place."""
    edit(edited := tree(folder, subset))
    change_zip(folder / ANNOTATIONS, **{f"annotations/instances_{subset}.json": json.dumps(edited).encode()})


def everything(folder: Path) -> list[Sample]:
    return [found for unit in SOURCE.units(folder, NoOptions()) for found in SOURCE.samples(unit)]


def fields_of(record: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    objects = [
        {"category": each["category_id"], "box": each["bbox"], "area": each["area"], "crowd": each["iscrowd"] == 1}
        for each in annotations
        if each["image_id"] == record["id"]
    ]
    return {"image_id": record["id"], "objects": objects}


def expected(folder: Path) -> dict[str, tuple[str, bytes, dict[str, Any]]]:
    """Name -> split, image and fields of every image."""
    tests = {int(line) for line in (folder / MINIVAL).read_text().splitlines()}
    found = {}
    for subset in SUBSETS:
        images, listed = contents(folder / f"{subset}.zip"), tree(folder, subset)
        for record in listed["images"]:
            name = f"{subset}/{record['file_name']}"
            split = "test" if record["id"] in tests else "train"
            found[name] = (split, images.pop(name), fields_of(record, listed["annotations"]))
        assert not images
    return found


# What the source gives


def test_every_image_comes_once_with_its_objects_in_upstream_s_order(written: Path) -> None:
    found = everything(written)
    assert {each.name: (each.split, each.image, each.fields) for each in found} == expected(written)
    assert Counter(each.split for each in found) == {"train": 40 + 32 - 14, "test": 14} == Counter(
        split for split, _, _ in expected(written).values()
    )  # fmt: skip
    assert len(found) == 72
    assert {each.bad for each in found} == {None}
    assert {each.crop for each in found} == {None}


def test_the_test_images_are_those_of_the_list_and_of_val2014(written: Path) -> None:
    listed = [int(line) for line in (written / MINIVAL).read_text().splitlines()]
    tests = [each for each in everything(written) if each.split == "test"]
    assert {each.fields["image_id"] for each in tests} == set(listed)
    assert {each.name.split("/")[0] for each in tests} == {"val2014"}
    assert listed != sorted(listed)


def test_crowds_empty_images_sparse_categories_and_boxes_without_height_are_kept(written: Path) -> None:
    found = {thing["category"] for each in everything(written) for thing in each.fields["objects"]}
    assert found == {1, 19, 37, 54, 72, 90}
    for split in ("train", "test"):
        objects = [each.fields["objects"] for each in everything(written) if each.split == split]
        assert [] in objects
        assert {thing["crowd"] for things in objects for thing in things} == {True, False}
        flat = [thing for things in objects for thing in things if thing["box"][3] == 0]
        assert [(thing["box"][2], thing["area"]) for thing in flat] == ([(1.03, 0.0)] * 2 if split == "train" else [])


def test_classes_are_number_and_name_by_number(written: Path) -> None:
    assert SOURCE.classes(written) == CATEGORIES
    assert not SOURCE.upright


def test_categories_are_sorted_by_number_not_by_text(folder: Path) -> None:
    for subset in SUBSETS:
        change(folder, lambda listed: listed["categories"].insert(3, {"id": 2, "name": "odd one"}), subset)
    assert SOURCE.classes(folder)[:3] == ["1 red disc", "2 odd one", "19 blue bars"]


def test_places_point_at_the_very_bytes_of_what_is_not_packed(written: Path) -> None:
    found = everything(written)
    for each in found:
        if each.place:
            with each.place.path.open("rb") as file:
                file.seek(each.place.offset)
                assert file.read(len(each.image)) == each.image
    stored = {name for subset in SUBSETS for name in methods(written / f"{subset}.zip", zipfile.ZIP_STORED)}
    assert {each.name for each in found if each.place} == stored
    assert 0 < len(stored) < len(found)


def methods(path: Path, method: int) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [info.filename for info in archive.infolist() if info.compress_type == method and not info.is_dir()]


def test_units_are_small_independent_and_picklable(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = everything(written)
    assert [each.name for each in whole] == [
        name for subset in SUBSETS for name in contents(written / f"{subset}.zip")
    ]  # in the order in which they lie
    monkeypatch.setattr(coco, "UNIT", 7)
    blobs = [pickle.dumps(unit) for unit in SOURCE.units(written, NoOptions())]
    assert len(blobs) == 6 + 5
    assert max(map(len, blobs)) < 7 * 1000
    assert [each for blob in blobs for each in SOURCE.samples(pickle.loads(blob))] == whole
    backwards = {each.name: each for blob in reversed(blobs) for each in SOURCE.samples(pickle.loads(blob))}
    assert backwards == {each.name: each for each in whole}


@pytest.mark.slow
def test_polygons_are_dropped_while_the_json_is_parsed(folder: Path) -> None:
    """A number takes about 7 bytes in the text and 32 as an object of Python."""
    polygon = [[round(0.37 * number % 640, 2) for number in range(1500)]]
    change(folder, lambda listed: [each.update(segmentation=polygon * 10) for each in listed["annotations"]])
    with zipfile.ZipFile(folder / ANNOTATIONS) as archive:
        size = archive.getinfo("annotations/instances_train2014.json").file_size
    assert size > 5_000_000
    tracemalloc.start()
    SOURCE.units(folder, NoOptions())
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert current < 200_000
    assert peak < 2.5 * size


# What it refuses


def set_first(key: str, value: object, records: str = "annotations") -> Callable[[dict[str, Any]], object]:
    return lambda listed: listed[records][0].update({key: value})


def repeat(records: str) -> Callable[[dict[str, Any]], object]:
    return lambda listed: listed[records].append(listed[records][0])


TRAIN = r"annotations_trainval2014\.zip:annotations/instances_train2014\.json"
BOX = rf"{TRAIN}: annotation \d+: bbox .* is not \[x, y, width, height\] in an image of \d+ x \d+ pixels"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (set_first("image_id", 7), rf"{TRAIN}: annotation \d+: image_id 7 is not an image of the file"),
        (set_first("image_id", "7"), "image_id '7' is not an image"),
        (set_first("image_id", [7]), r"image_id \[7\] is not an image"),
        (set_first("category_id", 12), rf"{TRAIN}: annotation \d+: category_id 12 is not a category of the file"),
        (set_first("category_id", True), "category_id True is not a category"),
        (set_first("iscrowd", 2), rf"{TRAIN}: annotation \d+: iscrowd 2 is not 0 or 1"),
        (set_first("iscrowd", None), "iscrowd None is not 0 or 1"),
        (set_first("area", -1.0), rf"{TRAIN}: annotation \d+: area -1\.0 is not a number of square pixels"),
        (set_first("area", float("nan")), "area nan is not"),
        (set_first("area", float("inf")), "area inf is not"),
        (set_first("area", 10**400), "area 1000.* is not"),
        (set_first("area", "1"), "area '1' is not"),
        (set_first("bbox", [1, 2, float("nan"), 4]), BOX),
        (set_first("bbox", [1, 2, 3, float("-inf")]), BOX),
        (set_first("bbox", [1, 2, -0.5, 4]), BOX),
        (set_first("bbox", [1, 2, 3, -4]), BOX),
        (set_first("bbox", [-1.5, 2, 3, 4]), BOX),
        (set_first("bbox", [1, 2, 10**400, 4]), BOX),
        (set_first("bbox", [1, 2, 3, 400.0]), BOX),
        (set_first("bbox", [250.0, 2, 3, 4]), BOX),
        (set_first("bbox", [1, 2, 3]), BOX),
        (set_first("bbox", [1, 2, 3, "4"]), BOX),
        (set_first("bbox", [1, 2, 3, True]), BOX),
        (set_first("bbox", {"x": 1}), BOX),
        (lambda listed: listed["annotations"][0].pop("bbox"), BOX),
        (set_first("id", None), rf"{TRAIN}: in annotations, id None is not a whole number in 1\.\.999999999999"),
        (set_first("id", 1.0), r"in annotations, id 1\.0 is not a whole number"),
        (set_first("id", -1, "images"), "in images, id -1 is not a whole number"),
        (set_first("id", [1], "categories"), r"in categories, id \[1\] is not a whole number"),
        (repeat("annotations"), rf"{TRAIN}: two of the annotations have the id \d+"),
        (repeat("images"), rf"{TRAIN}: two of the images have the id \d+"),
        (repeat("categories"), rf"{TRAIN}: two of the categories have the id 1$"),
        (set_first("name", " ", "categories"), rf"{TRAIN}: category 1, ' ', has no name or is above 999"),
        (set_first("id", 1000, "categories"), "category 1000, 'red disc', has no name or is above 999"),
        (set_first("height", 0, "images"), rf"{TRAIN}: image \d+ has \d+ x 0 pixels, not 1\.\.65500"),
        (set_first("width", 12.5, "images"), r"has 12\.5 x \d+ pixels, not 1\.\.65500"),
        (set_first("file_name", "../x.jpg", "images"),
         r"image (\d+) is 'train2014/\.\./x\.jpg', not 'train2014/COCO_train2014_0+\1\.jpg'"),
        (lambda listed: listed.pop("annotations"), rf"{TRAIN} has no list of annotations"),
        (lambda listed: listed.update(images={}), "has no list of images"),
        (lambda listed: listed["images"].append("image"), "has no list of images"),
        (lambda listed: listed["categories"].clear(), r"category_id \d+ is not a category"),
    ],
)  # fmt: skip
def test_annotations_that_contradict_themselves_are_an_error(folder: Path, edit: Callable, says: str) -> None:
    change(folder, edit)
    with pytest.raises(ValueError, match=says):
        SOURCE.units(folder, NoOptions())


def test_a_box_may_stand_out_by_a_pixel(folder: Path) -> None:
    record = tree(folder, "train2014")["images"][0]
    box = [-1.0, -0.5, record["width"] + 2.0, record["height"] + 1.25]
    change(folder, lambda listed: listed["annotations"][0].update(image_id=record["id"], bbox=box))
    (found,) = [each for each in everything(folder) if each.fields["image_id"] == record["id"]]
    assert found.fields["objects"][0]["box"] == box
    change(folder, lambda listed: listed["annotations"][0].update(bbox=[*box[:3], box[3] + 0.5]))
    with pytest.raises(ValueError, match=BOX):
        everything(folder)


def test_a_json_of_endless_lists_is_refused_before_it_is_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "MAX_BRACKETS", 100)
    with pytest.raises(ValueError, match=r"instances_train2014.json has [\d,]+ lists and objects, allowed are 100$"):
        coco.classes(folder)


@pytest.mark.parametrize("data", [b"", b"junk", b"[]", b"null", b"[" * 10**5, b'{"images": [\xff]}', b'{"images": [1]'])
def test_what_is_no_json_of_instances_is_an_error(folder: Path, data: bytes) -> None:
    change_zip(folder / ANNOTATIONS, **{"annotations/instances_train2014.json": data})
    for read in (SOURCE.classes, lambda folder: SOURCE.units(folder, NoOptions())):
        with pytest.raises(ValueError, match=rf"{TRAIN} (is not JSON: |has no list of categories)"):
            read(folder)


def test_archives_without_what_they_should_hold_are_an_error(folder: Path) -> None:
    change_zip(folder / ANNOTATIONS, **{"annotations/instances_val2014.json": None})
    for read in (SOURCE.classes, everything):
        with pytest.raises(ValueError, match=r"trainval2014\.zip has no member annotations/instances_val2014\.json"):
            read(folder)
    sample.write(folder, **OPTIONS)
    for name in ("val2014.zip", "train2014.zip", ANNOTATIONS, MINIVAL):
        (folder / name).unlink()
        with pytest.raises(ValueError, match=rf"{name} does not exist"):
            everything(folder)


@pytest.mark.parametrize("name", ["train2014.zip", "val2014.zip", ANNOTATIONS])
def test_a_cut_archive_is_an_error_wherever_it_is_cut(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for kept in (0, 30, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        (folder / name).write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=name):
            everything(folder)


def test_subsets_must_agree_on_the_categories(folder: Path) -> None:
    change(folder, set_first("name", "red disk", "categories"), "val2014")
    for read in (SOURCE.classes, everything):
        with pytest.raises(ValueError, match=r"category 1 is 'red disc' in .*train2014\.json, 'red disk' in .*val2014"):
            read(folder)
    change(folder, lambda listed: listed["categories"].append({"id": 5, "name": "more"}))
    change(folder, set_first("name", "red disc", "categories"), "val2014")
    with pytest.raises(ValueError, match=r"category 5 is 'more' in .*train2014\.json, None in .*val2014\.json"):
        SOURCE.classes(folder)


def test_an_image_in_both_subsets_is_an_error(folder: Path) -> None:
    number = tree(folder, "train2014")["images"][0]["id"]
    name = f"COCO_val2014_{number:012d}.jpg"
    record = {"id": number, "height": 9, "width": 9, "file_name": name}
    change(folder, lambda listed: listed["images"].append(record), "val2014")
    with pytest.raises(
        ValueError, match=rf"1 images are in .*train2014\.json and in .*val2014\.json, such as {number}$"
    ):
        everything(folder)


def test_images_that_either_side_lacks_are_named(folder: Path) -> None:
    first = next(iter(contents(folder / "train2014.zip")))
    change_zip(folder / "train2014.zip", **{first: None})
    with pytest.raises(ValueError, match=rf"1 images of .*{TRAIN} are not in .*train2014\.zip, such as '{first}'"):
        everything(folder)
    more = "train2014/COCO_train2014_000000700000.jpg"
    for name in (more, "train2014/Thumbs.db", "COCO_train2014_000000000007.jpg"):
        sample.write(folder, **OPTIONS)
        change_zip(folder / "train2014.zip", **{name: b"data"})
        with pytest.raises(ValueError, match=rf"1 images of .*train2014\.zip are not in .*{TRAIN}, such as '{name}'"):
            everything(folder)


def test_hostile_members_of_an_archive_are_refused(folder: Path) -> None:
    for name in ("../up.jpg", "/etc/passwd"):
        for archive in ("val2014.zip", ANNOTATIONS):
            sample.write(folder, **OPTIONS)
            change_zip(folder / archive, **{name: b"data"})
            with pytest.raises(ValueError, match=rf"{archive}: member name '{name}' is not a path inside the archive"):
                everything(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"mscoco_minival_ids\.txt is empty: it should list the ids of the test images"),
        ("{val}\n7\n", r"mscoco_minival_ids\.txt line 2: 7 is not an image of .*instances_val2014\.json"),
        ("{val}\n{train}\n", r"ids\.txt line 2: \d+ is not an image of .*instances_val2014\.json"),
        ("{val}\n0{val}\n", r"ids\.txt line 2: \d+ stands in line 1 already"),
        ("{val}\n\n{other}\n", r"ids\.txt line 2: '' is not the id of an image"),
        ("{val}\n-5\n", "line 2: '-5' is not the id"),
        ("{val}, {other}\n", "line 1: '.*, .*' is not the id"),
        ("{val}\n\u0661\n", "line 2: '.+' is not the id"),
        ("<html>\n", "line 1: '<html>' is not the id"),
        ("1" * 5000, "line 1: '1{40}' is not the id"),
        ("1\n" * 600_000, r"ids\.txt has more than 1048576 bytes: it is not a list of image ids"),
    ],
)
def test_a_list_that_names_no_val_images_is_an_error(folder: Path, text: str, says: str) -> None:
    val, other = (each["id"] for each in tree(folder, "val2014")["images"][:2])
    train = tree(folder, "train2014")["images"][0]["id"]
    (folder / MINIVAL).write_text(text.replace("{val}", f"{val}").replace("{other}", f"{other}")
                                  .replace("{train}", f"{train}"))  # fmt: skip
    with pytest.raises(ValueError, match=says):
        everything(folder)


def test_a_list_with_windows_line_ends_or_without_the_last_is_the_same_list(folder: Path, written: Path) -> None:
    lines = (folder / MINIVAL).read_text().split()
    for text in ("\r\n".join([*lines, ""]), "\n".join(lines)):
        (folder / MINIVAL).write_bytes(text.encode())
        assert [each.split for each in everything(folder)] == [each.split for each in everything(written)]


def test_an_image_of_another_size_than_its_annotations_say_is_bad(folder: Path) -> None:
    records = tree(folder, "train2014")["images"]
    name = f"train2014/{records[2]['file_name']}"
    wrong = io.BytesIO()
    Image.new("RGB", (records[2]["height"] + 1, records[2]["width"])).save(wrong, "JPEG")
    change_zip(folder / "train2014.zip", **{name: wrong.getvalue()})
    assert {each.name: each.bad for each in everything(folder) if each.bad} == {
        name: "another size than its annotations say"
    }
    with pytest.raises(ValueError, match=rf"{name}: another size than its annotations say"):
        write_shards("coco", SOURCE, folder, folder.with_name("out"), settings(COUNTS), processes=1)
    skipping = settings(COUNTS, bad_images="skip")
    index = write_shards("coco", SOURCE, folder, folder.with_name("out"), skipping, processes=1)
    assert index.skipped == {"another size than its annotations say": 1}


def test_what_is_no_image_is_left_to_the_check_of_images(folder: Path) -> None:
    names = list(contents(folder / "val2014.zip"))[:4]
    broken = (b"", b"<html>", contents(folder / "val2014.zip")[names[2]][:-20], b"\xff\xd8\xff")
    change_zip(folder / "val2014.zip", **dict(zip(names, broken, strict=True)))
    assert not any(each.bad for each in everything(folder))
    skipping = settings(COUNTS, bad_images="skip")
    index = write_shards("coco", SOURCE, folder, folder.with_name("out"), skipping, processes=1)
    assert index.skipped == {"broken header": 1, "empty": 1, "not an image": 1, "truncated": 1}


# Shards


def test_shards_hold_the_boxes_and_are_the_same_from_one_and_two_processes(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco, "UNIT", 10)
    index = sharded("coco", SOURCE, written, tmp_path / "out", settings(COUNTS))
    assert list(index.classes) == CATEGORIES
    assert index.reencoded == {"cmyk": 3, "png": 3}  # but nothing is turned, or the boxes would lie elsewhere
    assert index.skipped == {}
    upstream = expected(written)
    for name, (split, _, image, fields) in stored(tmp_path / "out").items():
        of, before, said = upstream.pop(name)
        assert of == split
        assert said.items() <= fields.items()
        assert fields.keys() == {"name", "sha256", "width", "height", "image_id", "objects"}
        assert Image.open(io.BytesIO(image)).size == Image.open(io.BytesIO(before)).size
    assert not upstream


def test_another_number_of_samples_is_an_error(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold 14 samples of split 'test', shard.samples in params.yaml says 8059"):
        write_shards("coco", SOURCE, written, tmp_path / "out", settings({"train": 58, "test": 8059}), processes=1)


# The look-alike


def kind(data: bytes) -> str:
    image = Image.open(io.BytesIO(data))
    if image.getexif().get(0x0112, 1) != 1:
        return "turned"
    return image.format if image.format != "JPEG" else image.mode


def test_the_archives_have_the_upstream_layout(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == FILES
    with zipfile.ZipFile(written / ANNOTATIONS) as archive:
        assert archive.namelist() == [
            f"annotations/{what}_{subset}.json"
            for what in ("instances", "person_keypoints", "captions") for subset in SUBSETS
        ]  # fmt: skip
    for subset, count, odd in (("train2014", 40, 2), ("val2014", 32, 1)):
        with zipfile.ZipFile(written / f"{subset}.zip") as archive:
            names = archive.namelist()
        assert names[0] == f"{subset}/"
        numbers = [int(name.removeprefix(f"{subset}/COCO_{subset}_").removesuffix(".jpg")) for name in names[1:]]
        assert names[1:] == [f"{subset}/COCO_{subset}_{number:012d}.jpg" for number in numbers]
        assert numbers != sorted(numbers)
        kinds = Counter(map(kind, contents(written / f"{subset}.zip").values()))
        assert kinds == {"L": odd, "CMYK": odd, "PNG": odd, "turned": odd, "RGB": count - 4 * odd}


def test_the_annotations_have_the_upstream_fields(written: Path) -> None:
    """As pycocotools' `createIndex` reads them: https://github.com/cocodataset/cocoapi."""
    for subset in SUBSETS:
        listed = tree(written, subset)
        assert list(listed) == ["info", "images", "licenses", "annotations", "categories"]
        assert set(listed["info"]) == {"description", "url", "version", "year", "contributor", "date_created"}
        assert {tuple(each) for each in listed["images"]} == {
            ("license", "file_name", "coco_url", "height", "width", "date_captured", "flickr_url", "id")
        }
        assert {tuple(each) for each in listed["annotations"]} == {
            ("segmentation", "area", "iscrowd", "image_id", "bbox", "category_id", "id")
        }
        assert {tuple(each) for each in listed["categories"]} == {("supercategory", "id", "name")}
        assert {tuple(each) for each in listed["licenses"]} == {("url", "id", "name")}
        images = {each["id"]: each for each in listed["images"]}
        of = Counter(each["image_id"] for each in listed["annotations"])
        assert of.keys() < images.keys()
        assert max(of.values()) >= 3
        sides = [side for each in images.values() for side in (each["height"], each["width"])]
        assert len(set(sides)) > 20
        assert {side % 2 for side in sides} == {0, 1}


def runs(segmentation: dict[str, Any]) -> np.ndarray:
    """The mask of an uncompressed run-length encoding."""
    counts = segmentation["counts"]
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    return flat.reshape(segmentation["size"], order="F")


def test_segments_fit_their_boxes_and_areas(written: Path) -> None:
    seen = Counter[int]()
    for subset in SUBSETS:
        listed = tree(written, subset)
        images = {each["id"]: each for each in listed["images"]}
        for each in listed["annotations"]:
            seen[each["iscrowd"]] += 1
            if each["iscrowd"]:
                mask, image = runs(each["segmentation"]), images[each["image_id"]]
                assert mask.shape == (image["height"], image["width"])
                assert mask.sum() == each["area"] > 0
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                extent = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            else:
                polygons = [np.reshape(polygon, (-1, 2)) for polygon in each["segmentation"]]
                low, high = np.concatenate(polygons).min(axis=0), np.concatenate(polygons).max(axis=0)
                extent = [*low, *(high - low)]
                area = sum(
                    abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 for x, y in map(np.transpose, polygons)
                )
                assert each["area"] == pytest.approx(area, abs=0.01)
            assert each["bbox"] == pytest.approx(extent, abs=0.011)
    assert min(seen.values()) >= 7


def test_boxes_lie_tight_around_what_the_pictures_show(written: Path) -> None:
    """Labels too: objects are strongly coloured, all else is dull, and a box holds its category's hue alone."""
    hue_of = {int(text.split()[0]): text.split()[1] for text in CATEGORIES}
    off = []
    for each in everything(written):
        hsv = np.asarray(Image.open(io.BytesIO(each.image)).convert("RGB").convert("HSV")).astype(float)
        strong = (hsv[..., 1] > 120) & (hsv[..., 2] > 70)
        explained = np.zeros_like(strong)
        for thing in each.fields["objects"] if kind(each.image) != "L" else []:
            x, y, width, height = thing["box"]
            if height:
                top, left = max(round(y) - 3, 0), max(round(x) - 3, 0)
                around = np.s_[top : round(y + height) + 3, left : round(x + width) + 3]
                explained[around] = True
                rows, columns = np.nonzero(strong[around])
                low, high = (columns.min() + left, rows.min() + top), (columns.max() + left + 1, rows.max() + top + 1)
                off.append(np.array([*low, *high]) - [x, y, x + width, y + height])
                turns = hsv[around][..., 0][strong[around]] / 256 - HUES[hue_of[thing["category"]]]
                assert np.median(np.abs((turns + 0.5) % 1 - 0.5)) < 0.08
        assert np.mean(strong & ~explained) < 0.002
    assert len(off) > 100
    assert np.abs(np.mean(off, axis=0)).max() < 0.5  # nowhere to one side
    assert np.quantile(np.abs(off), 0.9) < 2  # JPEG smears colours over two pixels
    assert np.abs(off).max() < 5  # and swallows the tips of small stars


def test_the_same_options_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    sample.write(tmp_path, **OPTIONS)
    assert digests(tmp_path) == digests(written)
    sample.write(tmp_path, **OPTIONS, seed=1)
    assert not digests(tmp_path).items() & digests(written).items()


def test_more_classes_are_other_pairs_of_shape_and_hue(tmp_path: Path) -> None:
    sample.write(tmp_path, train=16, val=16, test=2, classes=24, size=64)
    names = [text.split(maxsplit=1) for text in SOURCE.classes(tmp_path)]
    assert len({name for _, name in names}) == 24
    assert (names[0][0], names[-1][0]) == ("1", "90")
    assert len(everything(tmp_path)) == 32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train": 15}, r"sample coco: train 15 is not in 16\.\.10000"),
        ({"val": 15}, r"val 15 is not in 16\.\."),
        ({"test": 1}, r"test 1 is not in 2\.\.158"),
        ({"val": 20, "test": 19}, r"test 19 is not in 2\.\.18"),
        ({"classes": 25}, r"classes 25 is not in 2\.\.24"),
        ({"size": 63}, r"size 63 is not in 64\.\.1024"),
        ({"overlap": -1}, r"overlap -1 is not in 0\.\.50"),
        ({"overlap": 51}, r"overlap 51 is not in 0\.\.50"),
    ],
)
def test_options_without_room_are_an_error(tmp_path: Path, options: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sample.write(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
