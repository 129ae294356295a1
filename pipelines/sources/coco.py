"""COCO 2014 (https://cocodataset.org), split as the paper's detectors were trained and measured.

`train2014.zip` and `val2014.zip` hold the images, `annotations_trainval2014.zip` a JSON of instances for each of them.
Split "test" is the part of val2014 that `mscoco_minival_ids.txt` lists, 8,059 images at paper scale; "train" is all the
rest, 115,228. The list is that of TensorFlow's Object Detection API, whose authors trained the paper's detectors
(https://github.com/tensorflow/models/issues/7051); the 5,000 images of the minival that other projects use are others.

A category is upstream's own sparse number, 1..90. Crowd regions, images without an object and boxes without an area are
kept as they are (two boxes have no height: https://github.com/cocodataset/cocoapi/issues/355). EXIF turns no picture.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.archives import opened
from pipelines.sources.base import Fields, NoOptions, Object, Place, Sample, Source
from pipelines.zips import ZipMember, read_zip, zip_members

SUBSETS = ("train2014", "val2014")
ANNOTATIONS, MINIVAL = "annotations_trainval2014.zip", "mscoco_minival_ids.txt"

UNIT = 1_000  # images
MAX_IMAGES = 200_000  # in one archive; upstream: 82,783 and 40,504
MAX_IMAGE_BYTES = 1 << 26
MAX_FILES, MAX_JSON_BYTES = 100, 800_000_000  # upstream: 6 files, a few hundred MB; at 800 MB, 1.9 GB of memory
MAX_BRACKETS = 50_000_000  # lists and objects in a JSON, each of which takes 56 bytes at least; upstream: 5 million
MAX_LIST_BYTES = 1 << 20  # upstream: 54,864
MAX_NUMBER = 10**12 - 1  # of an image or annotation: names have 12 digits
MAX_CATEGORY = 999  # upstream: 90
MAX_SIDE = 65_500  # pixels; of a JPEG
OVERHANG = 1.0  # pixels; upstream: none, or TensorFlow Datasets, whose BBoxFeature refuses it, could not be built

# All that is read of the JSON: what else there is, polygons above all, is dropped while it is parsed.
KEYS = {"images", "annotations", "categories", "id", "name", "file_name", "height", "width",
        "image_id", "category_id", "bbox", "area", "iscrowd"}  # fmt: skip
COLUMNS = ("image_id", "category_id", "iscrowd", "bbox", "area")
OBJECT = np.dtype(
    [("image", "<i8"), ("category", "<i4"), ("crowd", "?"), ("x", "<f8"), ("y", "<f8"), ("width", "<f8"),
     ("height", "<f8"), ("area", "<f8")]
)  # fmt: skip
Objects = npt.NDArray[np.void]  # (objects,) of OBJECT: a tenth of what dicts of all objects take


class Picture(NamedTuple):
    """An image as its JSON and its archive describe it."""

    number: int  # COCO's id
    height: int
    width: int
    split: str
    member: ZipMember


class Listing(NamedTuple):
    """A JSON of instances."""

    where: str
    categories: dict[int, str]
    sizes: dict[int, tuple[int, int]]  # of the images: height and width
    objects: Objects  # in upstream's order


class Slice(NamedTuple):
    """Some of the images of an archive, with all their objects."""

    path: Path
    pictures: tuple[Picture, ...]
    objects: Objects


def classes(folder: Path) -> list[str]:
    """The categories as "1 person", by number. An object's category is that number, not the place in this list."""
    path = folder / ANNOTATIONS
    found = [(where, _categories(tree, where)) for where, tree in (_tree(path, subset) for subset in SUBSETS)]
    return [f"{number} {name}" for number, name in sorted(_agreed(found).items())]


def units(folder: Path, _options: NoOptions) -> list[Slice]:
    """Slices of train2014, then of val2014, in the order of the archives.

    Raises ValueError where the JSONs, the zips and the list of ids disagree. Memory: 1.2 GB while a JSON of 500 MB is
    parsed, afterwards 53 bytes for an object and 0.5 kB for an image.
    """
    tests = _minival(folder / MINIVAL)
    listings = [_listing(folder / ANNOTATIONS, subset) for subset in SUBSETS]
    train, val = listings
    _agreed([(listing.where, listing.categories) for listing in listings])
    if both := train.sizes.keys() & val.sizes.keys():
        raise ValueError(f"{len(both)} images are in {train.where} and in {val.where}, such as {min(both)}")
    for line, number in enumerate(tests, start=1):
        if number not in val.sizes:
            raise ValueError(f"{folder / MINIVAL} line {line}: {number} is not an image of {val.where}")
    return [
        piece
        for subset, listing in zip(SUBSETS, listings, strict=True)
        for piece in _slices(folder, subset, listing, set(tests))
    ]


def samples(unit: Slice) -> Iterator[Sample]:
    """The images of a unit with their objects, in the archive's order."""
    objects: dict[int, list[Object]] = {picture.number: [] for picture in unit.pictures}
    for image, category, crowd, x, y, width, height, area in unit.objects.tolist():
        objects[image].append(Object(category=category, box=[x, y, width, height], area=area, crowd=crowd))
    with opened(unit.path) as file:
        for picture in unit.pictures:
            data, offset = read_zip(file, str(unit.path), picture.member)
            fields: Fields = {"image_id": picture.number, "objects": objects[picture.number]}
            place = Place(unit.path, offset) if offset is not None else None
            yield Sample(picture.split, picture.member.name, data, fields, place, bad=_mismatch(data, picture))


def _slices(folder: Path, subset: str, listing: Listing, tests: set[int]) -> Iterator[Slice]:
    path = folder / f"{subset}.zip"
    members = {member.name: member for member in zip_members(path, max_members=MAX_IMAGES, max_bytes=MAX_IMAGE_BYTES)}
    number_of = {_name(subset, number): number for number in listing.sizes}
    for lost, there, missing in (
        (number_of.keys() - members.keys(), listing.where, path),
        (members.keys() - number_of.keys(), path, listing.where),
    ):
        if lost:
            raise ValueError(f"{len(lost)} images of {there} are not in {missing}, such as {min(lost)!r}")
    pictures = [
        Picture(number, *listing.sizes[number], "test" if number in tests else "train", member)
        for member in members.values()
        for number in [number_of[member.name]]
    ]
    dealt = _dealt([picture.number for picture in pictures], listing.objects)
    for start, objects in zip(range(0, len(pictures), UNIT), dealt, strict=True):
        yield Slice(path, tuple(pictures[start : start + UNIT]), objects)


def _dealt(numbers: list[int], objects: Objects) -> list[Objects]:
    """The objects of every `UNIT` images, those of an image in upstream's order."""
    by_number = np.argsort(numbers)
    position = by_number[np.searchsorted(numbers, objects["image"], sorter=by_number)]
    order = np.argsort(position, kind="stable")
    cuts = np.searchsorted(position[order], range(UNIT, len(numbers), UNIT))
    return np.split(objects[order], cuts)


def _name(subset: str, number: int) -> str:
    return f"{subset}/COCO_{subset}_{number:012d}.jpg"


def _mismatch(data: bytes, picture: Picture) -> str | None:
    """Why the boxes cannot be those of this image. What no decoder reads is judged elsewhere."""
    from PIL import Image

    from pipelines.images import OTHER_FORMATS, PILLOW_ERRORS

    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=("JPEG", *OTHER_FORMATS)) as image,
        ):
            size = image.height, image.width
    except (*PILLOW_ERRORS, Image.DecompressionBombError):
        return None
    return None if size == (picture.height, picture.width) else "another size than its annotations say"


def _minival(path: Path) -> list[int]:
    with opened(path) as file:
        text = file.read(MAX_LIST_BYTES + 1)
    if len(text) > MAX_LIST_BYTES:
        raise ValueError(f"{path} has more than {MAX_LIST_BYTES} bytes: it is not a list of image ids")
    found: dict[int, int] = {}
    for line, word in enumerate(text.decode("ascii", "replace").splitlines(), start=1):
        if not re.fullmatch("[0-9]{1,12}", word):
            raise ValueError(f"{path} line {line}: {word[:40]!r} is not the id of an image")
        if int(word) in found:
            raise ValueError(f"{path} line {line}: {int(word)} stands in line {found[int(word)]} already")
        found[int(word)] = line
    if not found:
        raise ValueError(f"{path} is empty: it should list the ids of the test images")
    return list(found)


def _listing(path: Path, subset: str) -> Listing:
    where, tree = _tree(path, subset)
    categories, sizes = _categories(tree, where), _sizes(tree, where, subset)
    records = _records(tree, "annotations", where)
    rows = (_row(record, where, categories, sizes) for record in records)
    return Listing(where, categories, sizes, np.fromiter(rows, OBJECT, len(records)))


def _tree(path: Path, subset: str) -> tuple[str, Any]:
    """Archive and member as errors name them, and the member's JSON, of which only `KEYS` are kept."""
    name = f"annotations/instances_{subset}.json"
    members = {member.name: member for member in zip_members(path, max_members=MAX_FILES, max_bytes=MAX_JSON_BYTES)}
    if name not in members:
        raise ValueError(f"{path} has no member {name}")
    with opened(path) as file:
        data, _ = read_zip(file, str(path), members[name])
    if (brackets := data.count(b"[") + data.count(b"{")) > MAX_BRACKETS:
        raise ValueError(f"{path}:{name} has {brackets:,} lists and objects, allowed are {MAX_BRACKETS:,}")
    try:
        text = data.decode()
        del data  # hundreds of MB
        return f"{path}:{name}", json.loads(text, object_hook=_trimmed)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{name} is not JSON: {error}") from None


def _trimmed(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key in KEYS}


def _records(tree: Any, key: str, where: str) -> list[dict[str, Any]]:
    """The objects that the JSON lists under a key, each with an id of its own."""
    records = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{where} has no list of {key}")
    seen: set[int] = set()
    for record in records:
        number = record.get("id")
        if not _within(number, 1, MAX_NUMBER, int):
            raise ValueError(f"{where}: in {key}, id {number!r:.80} is not a whole number in 1..{MAX_NUMBER}")
        if number in seen:
            raise ValueError(f"{where}: two of the {key} have the id {number}")
        seen.add(number)
    return records


def _categories(tree: Any, where: str) -> dict[int, str]:
    categories: dict[int, Any] = {record["id"]: record.get("name") for record in _records(tree, "categories", where)}
    for number, name in categories.items():
        if number > MAX_CATEGORY or not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: category {number}, {name!r:.80}, has no name or is above {MAX_CATEGORY}")
    return categories


def _agreed(found: Iterable[tuple[str, dict[int, str]]]) -> dict[int, str]:
    """The categories that all files list. Raises ValueError if they do not."""
    (first, categories), *others = found
    for where, other in others:
        if odd := categories.items() ^ other.items():
            number = min(odd)[0]
            names = f"{categories.get(number)!r} in {first}, {other.get(number)!r} in {where}"
            raise ValueError(f"category {number} is {names}")
    return categories


def _sizes(tree: Any, where: str, subset: str) -> dict[int, tuple[int, int]]:
    sizes: dict[int, Any] = {}
    for record in _records(tree, "images", where):
        number, height, width = record["id"], record.get("height"), record.get("width")
        if (name := f"{subset}/{record.get('file_name')}") != _name(subset, number):
            raise ValueError(f"{where}: image {number} is {name!r:.80}, not {_name(subset, number)!r}")
        if not (_within(height, 1, MAX_SIDE, int) and _within(width, 1, MAX_SIDE, int)):
            raise ValueError(f"{where}: image {number} has {width!r:.40} x {height!r:.40} pixels, not 1..{MAX_SIDE}")
        sizes[number] = height, width
    return sizes


def _row(
    record: dict[str, Any], where: str, categories: dict[int, str], sizes: dict[int, tuple[int, int]]
) -> tuple[Any, ...]:
    """An annotation as a row of `OBJECT`."""
    values: list[Any] = [record.get(key) for key in COLUMNS]
    image, category, crowd, box, area = values
    if type(image) is not int or image not in sizes:
        problem = f"image_id {image!r:.80} is not an image of the file"
    elif type(category) is not int or category not in categories:
        problem = f"category_id {category!r:.80} is not a category of the file"
    elif not _within(crowd, 0, 1, int):
        problem = f"iscrowd {crowd!r:.80} is not 0 or 1"
    elif not isinstance(box, list) or len(box) != 4 or not all(map(_spans, box[:2], box[2:], sizes[image][::-1])):
        height, width = sizes[image]
        problem = f"bbox {box!r:.80} is not [x, y, width, height] in an image of {width} x {height} pixels"
    elif not _within(area, 0, MAX_SIDE**2, int, float):
        problem = f"area {area!r:.80} is not a number of square pixels"
    else:
        return image, category, crowd, *box, area
    raise ValueError(f"{where}: annotation {record['id']}: {problem}")


def _spans(start: Any, length: Any, side: int) -> bool:
    """Whether a box stays, but for `OVERHANG`, within a side of its image."""
    low, high = -OVERHANG, side + OVERHANG
    kinds = (int, float)
    return _within(start, low, high, *kinds) and _within(length, 0, high - low, *kinds) and start + length <= high


def _within(value: Any, low: float, high: float, *kinds: type) -> bool:
    return type(value) in kinds and low <= value <= high  # not so for NaN, nor for True, which is an int elsewhere


SOURCE = Source(classes, units, samples, upright=False)
