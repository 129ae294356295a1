"""A look-alike of COCO 2014: both image zips, the zip of annotations and the list of minival ids, small.

The layout is the upstream one to the letter: image numbers with gaps and out of order, some members packed and some
not, polygons and run lengths, sparse category numbers from 1 to 90, images without an object, crowd regions, two boxes
without height. The categories are not: a category is a shape in a colour family, with a made-up name ("red disc"). A
few files are not what most are: greyscale, CMYK, PNG named .jpg, turned by an EXIF tag; boxes are those of the picture
as it is stored.

Objects lie on a dull background among dull clutter and never overlap, so every box is that of what is seen.
"""

from __future__ import annotations

import colorsys
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.samples.drawing import HUES, SHAPES, Outlines, Picture
from pipelines.samples.writing import ODD_KINDS, add_to_zip, check_ranges, encode

ASPECTS = (4 / 3, 4 / 3, 3 / 4, 3 / 2, 1.0)  # width / height
CYCLE, EMPTY, CROWDED = 8, 3, 5  # of every eight images, one has no object and one has a crowd
HOLLOW = "ring"  # its hole is no part of a polygon: upstream's cannot say so
KINDS = ("instances", "person_keypoints", "captions")  # of annotations: a file each for both subsets
LICENSES = [{"url": "http://example.invalid/licence", "id": 1, "name": "Made-up Licence"}]

T = TypeVar("T")
Points = npt.NDArray[np.float64]  # (points, 2): x and y in pixels, (0, 0) is the upper left pixel's upper left corner


class Category(NamedTuple):
    """A shape in a colour family."""

    number: int
    shape: str
    hue: str

    @property
    def name(self) -> str:
        """Its name in the JSON."""
        return f"{self.hue} {self.shape}"


class Thing(NamedTuple):
    """An object that was drawn, or a crowd of them, with its annotation as far as it is known without an id."""

    category: Category
    box: tuple[float, float, float, float]  # x, y, width, height
    annotation: dict[str, Any]


class Drawn(NamedTuple):
    """An image of a subset."""

    number: int
    picture: Picture
    file: bytes
    things: list[Thing]


def write(
    folder: Path, *, train: int = 240, val: int = 160, test: int = 80, classes: int = 6, size: int = 160, seed: int = 0
) -> None:
    """Write `train` + `val` pictures, about `size` pixels on the longer side; `test` of the latter are on the list.

    The same options give the same bytes (of one version of libjpeg and zlib). Raises ValueError for options that leave
    no room for two of everything.
    """
    check_ranges(
        "coco",
        train=(train, 2 * CYCLE, 10_000),
        val=(val, 2 * CYCLE, 10_000),
        test=(test, 2, val - 2),
        classes=(classes, 2, len(SHAPES) * len(HUES)),
        size=(size, 64, 1024),
    )
    known = _categories(classes)
    rng = np.random.default_rng([seed, 2])
    numbers = rng.choice(np.arange(1, 600_000), train + val, replace=False).tolist()
    texts: dict[str, dict[str, Any]] = {}
    for split, (subset, share) in enumerate((("train2014", numbers[:train]), ("val2014", numbers[train:]))):
        images = list(_images(split, share, known, size, seed))
        _write_zip(folder / f"{subset}.zip", subset, images)
        texts |= _texts(subset, images, known, np.random.default_rng([seed, 3, split]))
    with zipfile.ZipFile(folder / "annotations_trainval2014.zip", "w") as archive:
        for name in (f"{kind}_{subset}.json" for kind in KINDS for subset in ("train2014", "val2014")):
            data = json.dumps(texts[name]).encode()
            add_to_zip(archive, f"annotations/{name}", data, zipfile.ZIP_DEFLATED)
    tests = rng.permutation(numbers[train:])[:test]
    (folder / "mscoco_minival_ids.txt").write_text("".join(f"{number}\n" for number in tests))


def _categories(count: int) -> list[Category]:
    """Numbers from 1 to 90 with gaps, and shapes and colours that run through all their pairs."""
    shapes, hues = list(SHAPES), list(HUES)
    return [
        Category(
            1 + round(89 * index / (count - 1)),
            shapes[index % len(shapes)],
            hues[(index + index // math.lcm(len(shapes), len(hues))) % len(hues)],
        )
        for index in range(count)
    ]


def _images(split: int, numbers: list[int], categories: list[Category], size: int, seed: int) -> Iterator[Drawn]:
    """The pictures of a subset. `ODD_KINDS` are spread evenly over it: twice in train2014, once in val2014."""
    step = len(numbers) // (len(ODD_KINDS) * (2 - split))
    for index, number in enumerate(numbers):
        rng = np.random.default_rng([seed, split, index])
        long_side, aspect = size * rng.uniform(0.75, 1.25), ASPECTS[rng.integers(len(ASPECTS))]
        height, width = round(long_side / max(aspect, 1.0)), round(long_side * min(aspect, 1.0))
        picture, things = _scene(rng, categories, height, width, index % CYCLE)
        if split == 0 and index in (0, 1):
            things.append(_flat(things[0]))
        turn, rest = divmod(index, step)
        kind = ODD_KINDS[turn % len(ODD_KINDS)] if rest == 0 else "jpeg"
        shown = np.rot90(picture, -1) if kind == "turned" else picture  # stored as it was drawn
        yield Drawn(number, picture, encode(np.ascontiguousarray(shown), kind, int(rng.integers(80, 96))), things)


def _scene(
    rng: np.random.Generator, categories: list[Category], height: int, width: int, phase: int
) -> tuple[Picture, list[Thing]]:
    """A picture and what is in it: one to four objects of many sizes, where `phase` says so a crowd or none."""
    picture = _background(rng, height, width)
    side = min(height, width)
    for _ in range(rng.integers(3, 7)):
        clutter = _placed(rng, _any(rng, list(SHAPES.values())), rng.uniform(0, [width, height]), side * 0.06)
        _paint(picture, clutter, _colour(rng, rng.uniform(), rng.uniform(0, 0.2)))
    things: list[Thing] = []
    if phase == CROWDED:
        things += _object(picture, rng, _any(rng, categories), things, side * 0.22, crowd=True)
    for _ in range(0 if phase == EMPTY else rng.integers(1, 5)):
        radius = side * math.exp(rng.uniform(math.log(0.08), math.log(0.3)))
        things += _object(picture, rng, _any(rng, categories), things, radius, crowd=False)
    assert things or phase == EMPTY  # the first always finds room
    noise = rng.integers(-8, 9, size=picture.shape, dtype=np.int16)
    return np.clip(picture + noise, 0, 255).astype(np.uint8), things


def _object(
    picture: Picture, rng: np.random.Generator, category: Category, others: list[Thing], radius: float, crowd: bool
) -> list[Thing]:
    """Draw an object where it touches no other; none if no such place was found."""
    height, width = picture.shape[:2]
    for _ in range(30):
        centre = rng.uniform(radius + 2, [width - radius - 2, height - radius - 2])
        if all(_is_apart(centre, radius, other.box) for other in others):
            break
    else:
        return []
    if not crowd:
        outlines = _placed(rng, SHAPES[category.shape], centre, radius)
        _paint(picture, outlines, _own_colour(rng, category))
        polygons = outlines[:1] if category.shape == HOLLOW else outlines
        return [_by_polygons(category, [np.round(polygon, 2) for polygon in polygons])]
    mask = np.zeros((height, width), np.uint8)
    for angle in 2 * math.pi * np.arange(8) / 8:
        place = centre + 0.75 * radius * np.array([math.cos(angle), math.sin(angle)])
        outlines = _placed(rng, SHAPES[category.shape], place, 0.24 * radius)
        _paint(picture, outlines, _own_colour(rng, category))
        _paint(mask, outlines, (1,))
    return [_by_mask(category, mask)]


def _is_apart(centre: npt.NDArray[np.float64], radius: float, box: tuple[float, float, float, float]) -> bool:
    near = np.clip(centre, box[:2], (box[0] + box[2], box[1] + box[3]))
    return bool(np.abs(near - centre).max() > radius + 3)


def _by_polygons(category: Category, polygons: list[Points]) -> Thing:
    corners = np.concatenate(polygons)
    x, y = corners.min(axis=0).tolist()
    width, height = np.round(np.ptp(corners, axis=0), 2).tolist()
    segmentation = [polygon.ravel().tolist() for polygon in polygons]
    area = sum(cv2.contourArea(polygon.astype(np.float32)) for polygon in polygons)
    return Thing(category, (x, y, width, height), {"segmentation": segmentation, "area": area, "iscrowd": 0})


def _by_mask(category: Category, mask: npt.NDArray[np.uint8]) -> Thing:
    """A crowd, as upstream writes it: the lengths of runs of zeros and ones in turns, column by column."""
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=2))
    counts = np.diff(changes, prepend=0).tolist()
    x, y, width, height = cv2.boundingRect(mask)
    annotation = {"segmentation": {"counts": counts, "size": [*mask.shape]}, "area": int(mask.sum()), "iscrowd": 1}
    return Thing(category, (x, y, width, height), annotation)


def _flat(thing: Thing) -> Thing:
    """A slip of the pen, as upstream has two: a box of no height, in an image with another object."""
    x, y = thing.box[:2]
    line = [x, y, x + 1.03, y, x + 1.03, y]
    return Thing(thing.category, (x, y, 1.03, 0.0), {"segmentation": [line], "area": 0.0, "iscrowd": 0})


def _placed(
    rng: np.random.Generator, outlines: Outlines, centre: npt.NDArray[np.float64], radius: float
) -> list[Points]:
    """A shape within a circle, turned by up to 30 degrees."""
    scale = radius / max(np.linalg.norm(outline, axis=1).max() for outline in outlines)
    turn = rng.uniform(-math.pi / 6, math.pi / 6)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return [centre + scale * outline @ rotation for outline in outlines]


def _paint(picture: npt.NDArray[np.uint8], outlines: list[Points], colour: tuple[int, ...]) -> None:
    # OpenCV counts from the middle of a pixel, in sixteenths.
    sixteenths = [np.round(16 * (outline - 0.5)).astype(np.int32) for outline in outlines]
    cv2.fillPoly(picture, sixteenths, colour, lineType=cv2.LINE_8, shift=4)


def _background(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Soft patches of grey with a breath of colour: a coarse random grid, stretched."""
    grid = rng.uniform(60, 190) + rng.uniform(-40, 40, size=(4, 5, 1)) + rng.uniform(-8, 8, size=(4, 5, 3))
    soft = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(soft, 0, 255).astype(np.uint8)


def _own_colour(rng: np.random.Generator, category: Category) -> tuple[int, int, int]:
    return _colour(rng, HUES[category.hue] + rng.uniform(-0.05, 0.05), rng.uniform(0.6, 0.95))


def _colour(rng: np.random.Generator, hue: float, saturation: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, rng.uniform(0.45, 0.95))
    return round(255 * red), round(255 * green), round(255 * blue)


def _any(rng: np.random.Generator, things: list[T]) -> T:
    return things[rng.integers(len(things))]


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
