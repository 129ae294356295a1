"""Boxes with their labels, drawn on a photograph of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]  # (height, width, 3) RGB
Colour = tuple[int, int, int]
Area = tuple[int, int, int, int]  # left, top, right, bottom: the last two are the first pixels outside

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Okabe and Ito's palette without black: people with any kind of colour vision tell them apart.
HUES: tuple[Colour, ...] = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0)),
    *((204, 121, 167), (86, 180, 233), (240, 228, 66)),
)
SHADES = ((BLACK, 0.0), (WHITE, 0.55), (BLACK, 0.45))  # what is mixed into them, and how much of it
FONT_SHARE, MIN_FONT = 1 / 28, 12  # of the shorter side; px
LINE_SHARE, MIN_LINE = 1 / 160, 2
DASH, SPACE = 4, 3  # in thicknesses of a line
# Relative luminance at which black and white have the same contrast: (L + 0.05)² = 1.05 * 0.05 (WCAG 2.1).
MIDDLE = (1.05 * 0.05) ** 0.5 - 0.05


class Box(NamedTuple):
    """What is to be drawn. corners: x1, y1, x2, y2 in pixels, x1 <= x2 and y1 <= y2. label: "" for none."""

    corners: tuple[float, float, float, float]
    label: str
    colour: Colour
    dashed: bool = False


def colour_of(category: int) -> Colour:
    """The colour of a category, by its number from 0 on: those of 21 numbers in a row all differ."""
    hue, (mixed, share) = HUES[category % len(HUES)], SHADES[category // len(HUES) % len(SHADES)]
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(hue, mixed, strict=True))
    return red, green, blue


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever has more contrast to a background (WCAG 2.1's relative luminance)."""
    shares = [value / 255 for value in background]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return BLACK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > MIDDLE else WHITE


def draw_boxes(image: Pixels, boxes: Sequence[Box]) -> Pixels:
    """A new picture: the image (H, W, 3) with the boxes on it, the first on top. The image stays as it is.

    Lines and letters grow with the shorter side, lines lie within their boxes, with an edge that is seen on any ground.
    A label stands above its box or, where there is no room, within or below it; labels make way for those before them.
    What of a box lies outside the image is not drawn; one without an area becomes a dot or a line.
    """
    picture = Image.fromarray(image)
    draw, short = ImageDraw.Draw(picture), min(picture.size)
    thickness = max(MIN_LINE, round(LINE_SHARE * short))
    font = ImageFont.load_default(max(MIN_FONT, round(FONT_SHARE * short)))
    areas = [_area(box.corners, picture.size) for box in boxes]
    for box, area in reversed([*zip(boxes, areas, strict=True)]):
        pieces = [*_frame(area, thickness, box.dashed)]
        for left, top, right, bottom in pieces:
            draw.rectangle((left - 1, top - 1, right, bottom), fill=text_colour(box.colour))
        for left, top, right, bottom in pieces:
            draw.rectangle((left, top, right - 1, bottom - 1), fill=box.colour)
    labelled = [(box, area) for box, area in zip(boxes, areas, strict=True) if box.label]
    plates: list[Area] = []
    for box, area in labelled:
        plates.append(_plate(draw.textbbox((0, 0), box.label, font), area, picture.size, plates))
    for (box, _), (left, top, right, bottom) in reversed([*zip(labelled, plates, strict=True)]):
        draw.rectangle((left, top, right - 1, bottom - 1), fill=box.colour)
        middle = ((left + right) / 2, (top + bottom) / 2)
        draw.text(middle, box.label, fill=text_colour(box.colour), font=font, anchor="mm")
    return np.array(picture)


def _area(corners: tuple[float, float, float, float], size: tuple[int, int]) -> Area:
    """The pixels nearest to a box, at least one, all within the image of a size (width, height)."""
    width, height = size
    x1, y1, x2, y2 = corners
    left, top = min(max(round(x1), 0), width - 1), min(max(round(y1), 0), height - 1)
    return left, top, max(min(round(x2), width), left + 1), max(min(round(y2), height), top + 1)


def _frame(area: Area, thickness: int, dashed: bool) -> Iterator[Area]:
    """The four sides of a frame, inwards from its area, in one piece each or in dashes."""
    left, top, right, bottom = area
    high, wide = min(thickness, bottom - top), min(thickness, right - left)
    step = (DASH + SPACE) * thickness if dashed else max(right - left, bottom - top)
    dash = DASH * thickness if dashed else step
    for x in range(left, right, step):
        end = min(x + dash, right)
        yield from ((x, top, end, top + high), (x, bottom - high, end, bottom))
    for y in range(top, bottom, step):
        end = min(y + dash, bottom)
        yield from ((left, y, left + wide, end), (right - wide, y, right, end))


def _plate(text: tuple[float, float, float, float], box: Area, size: tuple[int, int], taken: Sequence[Area]) -> Area:
    """Where the label of a box goes: the first of its places that is free, or the first of all."""
    margin = max(2, round(text[3] / 6))
    wide, high = round(text[2]) + 2 * margin, round(text[3]) + 2 * margin
    left, top, right, bottom = box
    places = [(x, y) for y in (top - high, top, bottom, bottom - high) for x in (left, right - wide)]
    within = [(x, y) for x, y in places if 0 <= y <= size[1] - high] or [(left, 0)]  # of a low image all are too low
    shifted = [(max(min(x, size[0] - wide), 0), y) for x, y in within]
    plates = [(x, y, x + wide, y + high) for x, y in shifted]
    return next((plate for plate in plates if not any(_overlap(plate, other) for other in taken)), plates[0])


def _overlap(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
