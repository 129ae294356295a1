"""The pictures of the look-alike COCO: small to large objects on a dull background among dull clutter.

An object is a shape in a colour family. Where objects may overlap, the one drawn later hides a part of the other. Box,
polygons and area stay those of the whole object, while upstream's are those of what is seen of it; so much of it is
seen that the whole can be told. Crowds lie apart from all else.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.samples.drawing import HUES, SHAPES, Outlines, Picture

CYCLE, EMPTY, CROWDED = 8, 3, 5  # of every eight images, one has no object and one has a crowd
MOST = 5  # objects in an image, beside a crowd
SMALL, MEDIUM, LARGE = (0.1, 0.25), (0.25, 0.6), (0.6, 0.92)  # an object's longer side, in the picture's shorter sides
SPANS = (SMALL, MEDIUM, LARGE, LARGE)  # equally likely; there is not always room for a large one
CROWD, CLUTTER = 0.44, 0.12  # the same of a crowd and of what is no object
MARGIN, GAP = 1, 3  # pixels: between an object and the picture's edge, and between objects that are apart
TRIES = 60  # at finding an object's place
HOLLOW = "ring"  # its hole is no part of a polygon: upstream's cannot say so

T = TypeVar("T")
Box = tuple[float, float, float, float]  # x, y, width, height
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
    box: Box
    annotation: dict[str, Any]


class Placed(NamedTuple):
    """An object, or a crowd of them, with its place in the picture."""

    category: Category
    figures: list[list[Points]]  # the outlines of the object, or of each of the crowd
    box: Box
    crowd: bool


def categories(count: int, highest: int = 90) -> list[Category]:
    """Numbers from 1 to `highest` with gaps, and shapes and colours that run through all their pairs."""
    shapes, hues = list(SHAPES), list(HUES)
    return [
        Category(
            1 + round((highest - 1) * index / (count - 1)),
            shapes[index % len(shapes)],
            hues[(index + index // math.lcm(len(shapes), len(hues))) % len(hues)],
        )
        for index in range(count)
    ]


def scene(
    rng: np.random.Generator, known: list[Category], height: int, width: int, phase: int, overlap: float
) -> tuple[Picture, list[Thing]]:
    """A picture (height, width, 3) and what is in it: one to five objects, or where `phase` says so a crowd or none.

    phase: the picture's place in the `CYCLE`; overlap: the largest share, in 0..0.5, of an object's box that
    the others' boxes cover, all together. An object for which no such place is found is left out.
    """
    picture = _background(rng, height, width)
    for _ in range(rng.integers(3, 7)):
        clutter = _turned(rng, _any(rng, list(SHAPES.values())), CLUTTER * min(height, width))
        place = rng.uniform(0, [width, height])
        _paint(picture, _moved(clutter, place), _colour(rng, rng.uniform(), rng.uniform(0, 0.2)))
    placed: list[Placed] = []
    for category, figures, crowd in _wanted(rng, known, min(height, width), phase):
        placed += _put(rng, Placed(category, figures, _box(figures), crowd), placed, height, width, overlap)
    assert placed or phase == EMPTY  # the first always finds room
    for index in rng.permutation(len(placed)):
        for figure in placed[index].figures:
            _paint(picture, figure, _own_colour(rng, placed[index].category))
    noise = rng.integers(-8, 9, size=picture.shape, dtype=np.int16)
    seen = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return seen, [_by_mask(each, height, width) if each.crowd else _by_polygons(each) for each in placed]


def flat(thing: Thing) -> Thing:
    """A slip of the pen, as upstream has two: a box of no height, in an image with another object."""
    x, y = thing.box[:2]
    line = [x, y, x + 1.03, y, x + 1.03, y]
    return Thing(thing.category, (x, y, 1.03, 0.0), {"segmentation": [line], "area": 0.0, "iscrowd": 0})


def _wanted(
    rng: np.random.Generator, known: list[Category], side: int, phase: int
) -> Iterator[tuple[Category, list[list[Points]], bool]]:
    """What should be in a picture, around (0, 0): a crowd first, then objects from large to small, or few would fit."""
    if phase == CROWDED:
        category = _any(rng, known)
        angles = 2 * math.pi * np.arange(8) / 8
        places = 0.375 * CROWD * side * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        shape = SHAPES[category.shape]
        yield category, [_moved(_turned(rng, shape, 0.24 * CROWD * side), place) for place in places], True
    spans = [side * rng.uniform(*_any(rng, SPANS)) for _ in range(0 if phase == EMPTY else rng.integers(1, MOST + 1))]
    for span in sorted(spans, reverse=True):
        category = _any(rng, known)
        yield category, [_turned(rng, SHAPES[category.shape], span)], False


def _put(
    rng: np.random.Generator, thing: Placed, others: list[Placed], height: int, width: int, overlap: float
) -> list[Placed]:
    """The thing where it covers no more of the others than it may; none if no such place was found."""
    low = MARGIN - np.array(thing.box[:2])
    high = np.array([width, height]) - MARGIN - np.add(thing.box[:2], thing.box[2:])
    for _ in range(TRIES):
        shift = rng.uniform(low, high)
        figures = [[np.round(outline, 2) for outline in _moved(figure, shift)] for figure in thing.figures]
        moved = thing._replace(figures=figures, box=_box(figures))
        if _may_lie(moved, others, overlap):
            return [moved]
    return []


def _may_lie(thing: Placed, others: list[Placed], overlap: float) -> bool:
    """Whether no box, the thing's or another's, is then covered by more than that share of it."""
    near = [other for other in others if _shared(thing.box, other.box, GAP) > 0]
    if not near or overlap == 0 or any(each.crowd for each in [thing, *near]):
        return not near
    everything = [*others, thing]
    return all(
        sum(_shared(each.box, other.box) for other in everything if other is not each)
        <= overlap * each.box[2] * each.box[3]
        for each in everything
    )


def _shared(one: Box, other: Box, gap: float = 0) -> float:
    """Square pixels that are in both boxes, if the first were larger by `gap` pixels on all sides."""
    sides = [
        min(one[axis] + one[axis + 2] + gap, other[axis] + other[axis + 2]) - max(one[axis] - gap, other[axis])
        for axis in (0, 1)
    ]
    return max(sides[0], 0.0) * max(sides[1], 0.0)


def _box(figures: list[list[Points]]) -> Box:
    corners = np.concatenate([outline for figure in figures for outline in figure])
    x, y = corners.min(axis=0).tolist()
    width, height = np.round(np.ptp(corners, axis=0), 2).tolist()
    return x, y, width, height


def _by_polygons(thing: Placed) -> Thing:
    (outlines,) = thing.figures
    polygons = outlines[:1] if thing.category.shape == HOLLOW else outlines
    segmentation = [polygon.ravel().tolist() for polygon in polygons]
    area = sum(cv2.contourArea(polygon.astype(np.float32)) for polygon in polygons)
    return Thing(thing.category, thing.box, {"segmentation": segmentation, "area": area, "iscrowd": 0})


def _by_mask(thing: Placed, height: int, width: int) -> Thing:
    """A crowd, as upstream writes it: the lengths of runs of zeros and ones in turns, column by column."""
    mask = np.zeros((height, width), np.uint8)
    for figure in thing.figures:
        _paint(mask, figure, (1,))
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=2))
    counts = np.diff(changes, prepend=0).tolist()
    x, y, wide, high = cv2.boundingRect(mask)
    annotation = {"segmentation": {"counts": counts, "size": [height, width]}, "area": int(mask.sum()), "iscrowd": 1}
    return Thing(thing.category, (x, y, wide, high), annotation)


def _turned(rng: np.random.Generator, outlines: Outlines, span: float) -> list[Points]:
    """A shape around (0, 0), turned by up to 30 degrees; the longer side of its box is `span` pixels."""
    turn = rng.uniform(-math.pi / 6, math.pi / 6)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    turned = [outline @ rotation for outline in outlines]
    corners = np.concatenate(turned)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [(outline - (low + high) / 2) * (span / (high - low).max()) for outline in turned]


def _moved(outlines: list[Points], shift: npt.NDArray[np.float64]) -> list[Points]:
    return [outline + shift for outline in outlines]


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


def _any(rng: np.random.Generator, things: Sequence[T]) -> T:
    return things[int(rng.integers(len(things)))]
