"""Test images with what a detector found in them and what is there, from the best ones to the worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.figures import draw
from pipelines.pictures.base import Images
from pipelines.pictures.photo_grid import DPI, with_jpegs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.pictures.boxes import Box

IMAGES, COLUMNS = 8, 2
# All in pixels of the PNG. SIDE is the longer one of a photograph.
SIDE, GAP, MARGIN, TITLE, SPACE = 400, 24, 14, 34, 16
JPEG_QUALITY = 85  # lines and letters are drawn into the photographs
PIXELATED = b"image-rendering:crisp-edges;image-rendering:pixelated"  # what matplotlib writes for "none"
IOU = 0.5  # from which on a box is an object's

Arrays = dict[str, npt.NDArray[Any]]
Places = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class Judged(NamedTuple):
    """What became of D detections and G objects.

    right: (D,) bool, has an object. ignored: (D,) bool, has none but lies in a crowd. found_by: (G,) int64, the
    detection that has the object; -1 where none has, and of crowds.
    """

    right: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    found_by: Places


class Example(NamedTuple):
    """A test image, by its place in the order of evaluation: how many objects it has, how many of them are found, and
    how many boxes are false.
    """

    place: int
    objects: int
    found: int
    false: int


def judge(arrays: Arrays) -> Judged:
    """COCO's rule at an IoU of .5, image by image and category by category.

    The detections, from the highest score down, each get the object that they overlap most among those that are left.
    Of one that gets none, at least half may lie in a crowd. arrays: those of `tasks.coco_ap.CocoAP`.
    """
    scores = arrays["detection_score"]
    judged = Judged(
        right=np.zeros(len(scores), np.bool_),
        ignored=np.zeros(len(scores), np.bool_),
        found_by=np.full(len(arrays["object_image"]), -1, np.int64),
    )
    detections = _by_image(arrays["detection_image"], -scores)
    for image, objects in _by_image(arrays["object_image"], arrays["object_crowd"]).items():  # crowds last
        if image in detections:
            _judge_image(judged, arrays, detections[image], objects)
    return judged


def _by_image(images: Places, key: npt.NDArray[Any]) -> dict[int, Places]:
    """The places of each image's rows, by rising key."""
    order = np.lexsort((key, images))
    numbers, starts = np.unique(images[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=False))  # without rows there is still a part


def _judge_image(judged: Judged, arrays: Arrays, detections: Places, objects: Places) -> None:
    crowd = arrays["object_crowd"][objects]
    same = arrays["detection_category"][detections][:, None] == arrays["object_category"][objects]
    overlaps = np.where(
        same, _overlaps(arrays["detection_boxes"][detections], arrays["object_boxes"][objects], crowd), 0
    )
    for row in np.flatnonzero((overlaps >= IOU).any(axis=1)):
        free = np.flatnonzero((overlaps[row] >= IOU) & ~crowd & (judged.found_by[objects] < 0))
        if len(free):
            best = max(free, key=lambda column: (overlaps[row, column], column))  # of equal ones the last, as COCO does
            judged.right[detections[row]] = True
            judged.found_by[objects[best]] = detections[row]
        else:
            judged.ignored[detections[row]] = (overlaps[row][crowd] >= IOU).any()


def _overlaps(boxes: npt.NDArray[Any], others: npt.NDArray[Any], crowd: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """(K, M): the IoU of boxes (K, 4) with others (M, 4); with a crowd the share of the box that lies in it."""
    first, second = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = sides.clip(min=0).prod(axis=-1)
    area, other = ((corners[..., 2:] - corners[..., :2]).prod(axis=-1) for corners in (first, second))
    whole = np.where(crowd, area, area + other - shared)
    return shared / np.where(whole > 0, whole, 1)


def least_score(arrays: Arrays, judged: Judged) -> float:
    """The score from which on the detections of all images have the highest F1; infinite where there is none."""
    counts = ~judged.ignored
    order = np.argsort(-arrays["detection_score"][counts], kind="stable")
    if not len(order):
        return math.inf
    scores, right = arrays["detection_score"][counts][order], judged.right[counts][order]
    objects = np.count_nonzero(~arrays["object_crowd"])
    f1 = 2 * right.cumsum() / (np.arange(1, len(order) + 1) + objects)
    f1[:-1][scores[1:] == scores[:-1]] = -1  # equal scores are all in or all out
    return float(scores[f1.argmax()])


def ranked(arrays: Arrays, judged: Judged, least: float) -> list[Example]:
    """The test images by falling F1 of the detections that score at least so much; of equal ones those with more
    objects first. Images with neither objects nor such detections are left out.
    """
    shown = (arrays["detection_score"] >= least) & ~judged.ignored
    found, false, objects = (
        np.bincount(images, minlength=len(arrays["image_sizes"]))
        for images in (
            arrays["detection_image"][shown & judged.right],
            arrays["detection_image"][shown & ~judged.right],
            arrays["object_image"][~arrays["object_crowd"]],
        )
    )
    f1 = 2 * found / np.maximum(found + false + objects, 1)
    order = np.lexsort((-objects, -f1))
    return [
        Example(place, int(objects[place]), int(found[place]), int(false[place]))
        for place in order.tolist()
        if objects[place] or false[place]
    ]


def at_equal_steps(images: Sequence[Example]) -> list[Example]:
    """IMAGES of them, or all where there are fewer, from the first to the last."""
    ranks = np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(np.int64)
    return [images[rank] for rank in ranks]


def boxes_of(arrays: Arrays, judged: Judged, least: float, names: Sequence[str], place: int) -> list[Box]:
    """What is drawn on an image, in pixels of it as it is stored: detections, the best first, then what is there."""
    from pipelines.pictures.boxes import Box, colour_of

    there = np.flatnonzero((arrays["detection_image"] == place) & (arrays["detection_score"] >= least))
    boxes = []
    for number in there[np.argsort(-arrays["detection_score"][there], kind="stable")]:
        category, score = int(arrays["detection_category"][number]), arrays["detection_score"][number]
        corners = tuple(arrays["detection_boxes"][number].tolist())
        boxes.append(Box(corners, f"{names[category]} {score:.2f}", colour_of(category)))
    for number in np.flatnonzero(arrays["object_image"] == place):
        category, by = int(arrays["object_category"][number]), judged.found_by[number]
        label = f"{names[category]}, missed"
        if arrays["object_crowd"][number]:
            label = f"{names[category]}, crowd"
        elif by >= 0 and arrays["detection_score"][by] >= least:
            label = ""
        boxes.append(Box(tuple(arrays["object_boxes"][number].tolist()), label, colour_of(category), dashed=True))
    return boxes


def title(image: Example) -> str:
    """How an image fared."""
    found = f"{image.found} of {image.objects} found" if image.objects else "no object"
    return f"image {image.place}: {found}, {image.false or 'none'} false"


def photo(picture: Pixels, size: tuple[int, int], boxes: Sequence[Box]) -> Pixels:
    """An image of a size (height, width), here squeezed into a square, in its own shape and with boxes on it."""
    from PIL import Image

    from pipelines.pictures.boxes import draw_boxes

    scale = SIDE / max(size)
    height, width = (max(round(scale * side), 1) for side in size)
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
    across, down = width / size[1], height / size[0]
    scaled = [
        box._replace(corners=(across * x1, down * y1, across * x2, down * y2))
        for box in boxes
        for x1, y1, x2, y2 in [box.corners]
    ]
    return draw_boxes(np.asarray(resized), scaled)


def photos(titles: Sequence[str], pictures: Sequence[Pixels]) -> dict[str, bytes]:
    """{".png": ..., ".svg": ...} of photographs, each below its title, in COLUMNS columns."""
    rows = [range(start, min(start + COLUMNS, len(pictures))) for start in range(0, len(pictures), COLUMNS)]
    tops = [MARGIN]
    for row in rows:
        tops.append(tops[-1] + TITLE + max(len(pictures[number]) for number in row) + SPACE)
    width, height = 2 * MARGIN + COLUMNS * SIDE + (COLUMNS - 1) * GAP, tops[-1]

    def plot(figure: Figure) -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for top, row in zip(tops, rows, strict=False):
            for left, number in zip(range(MARGIN, width, SIDE + GAP), row, strict=False):
                high, wide = pictures[number].shape[:2]
                axes.text(left, top + TITLE / 2, titles[number], va="center", fontsize=9, fontweight="bold")
                extent = (left, left + wide, top + TITLE + high, top + TITLE)
                # "none": the SVG holds the photograph's own pixels, and not all photographs as one.
                axes.imshow(pictures[number], extent=extent, interpolation="none", aspect="auto")
        axes.set(xlim=(0, width), ylim=(height, 0))

    files = draw(plot, width / DPI, height / DPI)
    svg = files[".svg"].replace(PIXELATED, b"")  # which would leave out lines of small letters on a smaller page
    return files | {".svg": with_jpegs(svg, JPEG_QUALITY)}


def example_photos(
    chosen: Sequence[Example], arrays: Arrays, judged: Judged, least: float, names: Sequence[str], images: Images
) -> dict[str, bytes]:
    """{".png": ..., ".svg": ...} of images with what is in them and the detections that score at least so much."""
    places = [image.place for image in chosen]
    pictures = []
    for place, picture in zip(places, images(places, SIDE), strict=True):
        height, width = arrays["image_sizes"][place].tolist()
        pictures.append(photo(picture, (height, width), boxes_of(arrays, judged, least, names, place)))
    return photos([title(image) for image in chosen], pictures)
