"""Rows of photographs, each framed and marked as right or wrong."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.figures import GREY, draw
from pipelines.pictures.base import Images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160  # of `figures.draw`'s PNG: what follows is in its pixels, so that a photograph's pixels are the picture's
SIDE, STEP, GAP, MARGIN = 96, 112, 36, 14
HEADING, TITLE, CAPTION, SPACE = 46, 32, 30, 14
JPEG_QUALITY = 75
GREEN, ORANGE = "#009E73", "#D55E00"  # of Okabe and Ito's palette
MARKS = {True: ("✓ ", GREEN), False: ("✗ ", ORANGE), None: ("", GREY)}


class Tile(NamedTuple):
    """A photograph, by its place in the order of evaluation. `right` is null where there is nothing to be judged."""

    place: int
    text: str
    right: bool | None = None


class Row(NamedTuple):
    """Groups of photographs side by side."""

    title: str
    groups: Sequence[Sequence[Tile]]


def photo_grid(headings: Sequence[str], rows: Sequence[Row], images: Images) -> dict[str, bytes]:
    """{".png": ..., ".svg": ...} of rows of photographs under a heading for each group."""
    places = sorted({tile.place for row in rows for group in row.groups for tile in group})
    photos = {place: _square(image) for place, image in zip(places, images(places), strict=True)}
    sizes = [max(len(row.groups[i]) for row in rows) for i in range(len(headings))]
    lefts = [MARGIN + STEP * sum(sizes[:i]) + GAP * i for i in range(len(headings))]
    title = TITLE if any(row.title for row in rows) else 0
    step = title + SIDE + CAPTION + SPACE
    width = lefts[-1] + STEP * sizes[-1] - (STEP - SIDE) + MARGIN
    height = HEADING + step * len(rows)

    def plot(figure: Figure) -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for left, heading in zip(lefts, headings, strict=True):
            axes.text(left, HEADING / 2 - 2, heading, va="center", color=GREY)
        for top, row in zip(range(HEADING, height, step), rows, strict=True):
            axes.text(MARGIN, top + title / 2, row.title, va="center", fontweight="bold", fontsize=9.5)
            for left, group in zip(lefts, row.groups, strict=True):
                for column, tile in enumerate(group):
                    _put(axes, photos[tile.place], tile, left + STEP * column, top + title)
        axes.set(xlim=(0, width), ylim=(height, 0))

    files = draw(plot, width / DPI, height / DPI)
    return files | {".svg": with_jpegs(files[".svg"])}


def _put(axes: Axes, photo: npt.NDArray[np.uint8], tile: Tile, left: float, top: float) -> None:
    """A photograph in its frame, above its text."""
    from matplotlib.patches import Rectangle

    mark, color = MARKS[tile.right]
    # "none": the SVG holds the photograph's own pixels, and not all photographs as one.
    axes.imshow(photo, extent=(left, left + SIDE, top + SIDE, top), interpolation="none", aspect="auto")
    thick = 1 if tile.right is None else 2.5
    axes.add_patch(Rectangle((left, top), SIDE, SIDE, facecolor="none", edgecolor=color, linewidth=thick))
    text = f"{mark}{tile.text}"
    axes.text(left + SIDE / 2, top + SIDE + CAPTION / 2 + 3, text, ha="center", va="center", color=color, fontsize=9)


def _square(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(SIDE, SIDE, 3): the whole image, on white where it is not square."""
    from PIL import Image, ImageOps

    square = ImageOps.pad(Image.fromarray(image), (SIDE, SIDE), Image.Resampling.LANCZOS, color="white")
    return np.asarray(square)


def with_jpegs(svg: bytes, quality: int = JPEG_QUALITY) -> bytes:
    """The photographs in an SVG as JPEG: matplotlib puts them in as PNG, which is five to eight times the bytes."""
    from PIL import Image

    def jpeg(found: re.Match[bytes]) -> bytes:
        data = io.BytesIO()
        photo = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")
        photo.save(data, "JPEG", quality=quality, optimize=True)
        return b'"data:image/jpeg;base64,' + base64.b64encode(data.getvalue()) + b'"'

    return re.sub(rb'"data:image/png;base64,([^"]+)"', jpeg, svg)
