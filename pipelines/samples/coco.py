"""A look-alike of COCO 2014: both image zips, the zip of annotations and the list of minival ids, small.

The layout is the upstream one to the letter: image numbers with gaps and out of order, some members packed and some
not, polygons and run lengths, sparse category numbers from 1 to 90, images without an object, crowd regions, two boxes
without height. The categories are not: a category is a shape in a colour family, with a made-up name ("red disc"). A
few files are not what most are: greyscale, CMYK, PNG named .jpg, turned by an EXIF tag; boxes are those of the picture
as it is stored.

What the pictures show, and how far it may overlap: `pipelines.samples.coco_scenes`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.samples.coco_scenes import CYCLE, Category, Thing, categories, flat, scene
from pipelines.samples.drawing import HUES, SHAPES, Picture
from pipelines.samples.writing import ODD_KINDS, add_to_zip, check_ranges, encode

ASPECTS = (4 / 3, 4 / 3, 3 / 4, 3 / 2, 1.0)  # width / height
KINDS = ("instances", "person_keypoints", "captions")  # of annotations: a file each for both subsets
LICENSES = [{"url": "http://example.invalid/licence", "id": 1, "name": "Made-up Licence"}]


class Drawn(NamedTuple):
    """An image of a subset."""

    number: int
    picture: Picture
    file: bytes
    things: list[Thing]


def write(
    folder: Path,
    *,
    train: int = 240,
    val: int = 160,
    test: int = 80,
    classes: int = 6,
    highest: int = 90,
    size: int = 160,
    overlap: int = 0,
    seed: int = 0,
) -> None:
    """Write `train` + `val` pictures, about `size` pixels on the longer side; `test` of the latter are on the list.

    highest: the number of the last category, upstream's 90 or less: a net has an output for each number up to it.
    overlap: per cent of an object's box that the others' boxes may cover, all together; with 0 no two objects touch.

    The same options give the same bytes (of one version of libjpeg and zlib). Raises ValueError for options that leave
    no room for two of everything.
    """
    check_ranges(
        "coco",
        train=(train, 2 * CYCLE, 10_000),
        val=(val, 2 * CYCLE, 10_000),
        test=(test, 2, val - 2),
        classes=(classes, 2, len(SHAPES) * len(HUES)),
        highest=(highest, classes, 90),
        size=(size, 64, 1024),
        overlap=(overlap, 0, 50),
    )
    known = categories(classes, highest)
    rng = np.random.default_rng([seed, 2])
    numbers = rng.choice(np.arange(1, 600_000), train + val, replace=False).tolist()
    texts: dict[str, dict[str, Any]] = {}
    for split, (subset, share) in enumerate((("train2014", numbers[:train]), ("val2014", numbers[train:]))):
        images = list(_images(split, share, known, size, overlap / 100, seed))
        _write_zip(folder / f"{subset}.zip", subset, images)
        texts |= _texts(subset, images, known, np.random.default_rng([seed, 3, split]))
    with zipfile.ZipFile(folder / "annotations_trainval2014.zip", "w") as archive:
        for name in (f"{kind}_{subset}.json" for kind in KINDS for subset in ("train2014", "val2014")):
            data = json.dumps(texts[name]).encode()
            add_to_zip(archive, f"annotations/{name}", data, zipfile.ZIP_DEFLATED)
    tests = rng.permutation(numbers[train:])[:test]
    (folder / "mscoco_minival_ids.txt").write_text("".join(f"{number}\n" for number in tests))


def _images(
    split: int, numbers: list[int], known: list[Category], size: int, overlap: float, seed: int
) -> Iterator[Drawn]:
    """The pictures of a subset. `ODD_KINDS` are spread evenly over it: twice in train2014, once in val2014."""
    step = len(numbers) // (len(ODD_KINDS) * (2 - split))
    for index, number in enumerate(numbers):
        rng = np.random.default_rng([seed, split, index])
        long_side, aspect = size * rng.uniform(0.75, 1.25), ASPECTS[rng.integers(len(ASPECTS))]
        height, width = round(long_side / max(aspect, 1.0)), round(long_side * min(aspect, 1.0))
        picture, things = scene(rng, known, height, width, index % CYCLE, overlap)
        if split == 0 and index in (0, 1):
            things.append(flat(things[0]))
        turn, rest = divmod(index, step)
        kind = ODD_KINDS[turn % len(ODD_KINDS)] if rest == 0 else "jpeg"
        shown = np.rot90(picture, -1) if kind == "turned" else picture  # stored as it was drawn
        yield Drawn(number, picture, encode(np.ascontiguousarray(shown), kind, int(rng.integers(80, 96))), things)


def _write_zip(path: Path, subset: str, images: list[Drawn]) -> None:
    """The folder's own entry, then the images; every third is packed."""
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo(f"{subset}/")
        entry.external_attr = 0o40755 << 16 | 0x10
        archive.writestr(entry, b"")
        for index, image in enumerate(images):
            method = zipfile.ZIP_STORED if index % 3 else zipfile.ZIP_DEFLATED
            add_to_zip(archive, _path(subset, image.number), image.file, method)


def _path(subset: str, number: int) -> str:
    return f"{subset}/COCO_{subset}_{number:012d}.jpg"


def _texts(
    subset: str, images: list[Drawn], categories: list[Category], rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """The JSONs of a subset. Instances are what is looked for; the others only lie beside it, as upstream."""
    head = {
        "info": {
            "description": "A made-up look-alike of COCO 2014", "url": "http://example.invalid", "version": "1.0",
            "year": 2014, "contributor": "Nobody", "date_created": "2015-01-27 09:11:52.357475",
        },
        "images": [_described(subset, image) for image in images],
        "licenses": LICENSES,
    }  # fmt: skip
    known = [{"supercategory": kind.shape, "id": kind.number, "name": kind.name} for kind in categories]
    words = {image.number: [thing.category.name for thing in image.things] for image in images}
    captions = [{"image_id": number, "id": number, "caption": ", ".join(said)} for number, said in words.items()]
    return {
        f"instances_{subset}.json": {**head, "annotations": _annotations(images, rng), "categories": known},
        f"person_keypoints_{subset}.json": {**head, "annotations": [], "categories": []},
        f"captions_{subset}.json": {**head, "annotations": captions},
    }


def _described(subset: str, image: Drawn) -> dict[str, Any]:
    height, width = image.picture.shape[:2]
    name = _path(subset, image.number)
    return {
        "license": 1, "file_name": name.rpartition("/")[2], "coco_url": f"http://example.invalid/{name}",
        "height": height, "width": width, "date_captured": "2013-11-14 11:18:45",
        "flickr_url": f"http://example.invalid/{image.number}.jpg", "id": image.number,
    }  # fmt: skip


def _annotations(images: list[Drawn], rng: np.random.Generator) -> list[dict[str, Any]]:
    """The objects of all images, mixed. As upstream, a crowd's id tells its category and image: 90CC00IIIIII."""
    things = [(image.number, thing) for image in images for thing in image.things]
    numbers = rng.choice(np.arange(1, 2_300_000), len(things), replace=False).tolist()
    annotations = []
    for number, index in zip(numbers, rng.permutation(len(things)), strict=True):
        image, (category, box, annotation) = things[index]
        crowd = 900_000_000_000 + 100_000_000 * category.number + image
        place = {"image_id": image, "bbox": list(box), "category_id": category.number}
        annotations.append({**annotation, **place, "id": crowd if annotation["iscrowd"] else number})
    return annotations
