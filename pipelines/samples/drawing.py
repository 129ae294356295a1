"""Pictures that can be learned: one large shape of a colour family, on a busy background, behind clutter.

A picture's class is its shape and colour family. What does not decide it is drawn at random: place, size and angle,
brightness and saturation, background, clutter, noise. No shape is another's mirror image, so flips keep the class.
"""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]  # (height, width, 3) RGB
Colour = tuple[float, float, float]  # RGB, each in 0..255
Outlines = list[npt.NDArray[np.float64]]  # closed polygons (points, 2) in a circle of radius 1; even-odd fill


def _polygon(corners: int, radius: float = 1.0, turn: float = 0.0) -> npt.NDArray[np.float64]:
    angles = 2 * np.pi * np.arange(corners) / corners + turn
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(points: int, inner: float) -> npt.NDArray[np.float64]:
    star = _polygon(2 * points, turn=-np.pi / 2)
    star[1::2] *= inner
    return star


def _box(x: float, y: float, half_width: float, half_height: float) -> npt.NDArray[np.float64]:
    return np.array([x, y]) + np.array([half_width, half_height]) * [[-1, -1], [1, -1], [1, 1], [-1, 1]]


_CROSS = np.array([[-.3, -1], [.3, -1], [.3, -.3], [1, -.3], [1, .3], [.3, .3],
                   [.3, 1], [-.3, 1], [-.3, .3], [-1, .3], [-1, -.3], [-.3, -.3]])  # fmt: skip

SHAPES: dict[str, Outlines] = {
    "disc": [_polygon(40)],
    "bars": [_box(x, 0.0, 0.17, 0.9) for x in (-0.75, 0.0, 0.75)],
    "ring": [_polygon(40), _polygon(40, radius=0.6)],
    "checks": [_box(x, y, 0.3, 0.3) for x in (-0.6, 0.0, 0.6) for y in (-0.6, 0.0, 0.6) if (x == 0) == (y == 0)],
    "cross": [_CROSS],
    "star": [_star(5, inner=0.42)],
}
HUES = {"red": 0.0, "blue": 0.6, "green": 0.33, "violet": 0.8}  # centres of the families, in turns


def draw(
    rng: np.random.Generator, shape: str, hue: str, height: int, width: int, ground: Colour | None = None
) -> Picture:
    """A picture (height, width, 3) uint8 of one `SHAPES` in one of the `HUES`; all else is drawn from `rng`.

    The shape spans 65-100 % of the shorter side, so a random crop of a fifth of the area still shows much of it.
    ground: what the background's patches are around, in place of a colour from `rng`; no more than that differs by it.
    """
    picture = _background(rng, height, width, ground)
    side = min(height, width)
    for _ in range(rng.integers(2, 5)):
        _fill(picture, rng, _any_shape(rng), _colour(rng), side * rng.uniform(0.08, 0.16), spread=0.5)
    colour = _colour(rng, HUES[hue] + rng.uniform(-0.06, 0.06), saturation=rng.uniform(0.55, 0.95))
    _fill(picture, rng, SHAPES[shape], colour, side * rng.uniform(0.325, 0.5), spread=0.1)
    for _ in range(rng.integers(1, 4)):
        _fill(picture, rng, _any_shape(rng), _colour(rng), side * rng.uniform(0.05, 0.12), spread=0.5)
    noise = rng.integers(-12, 13, size=picture.shape, dtype=np.int16)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, height: int, width: int, ground: Colour | None) -> Picture:
    """Soft patches of dull colours: a coarse random grid, stretched."""
    drawn = _colour(rng, saturation=rng.uniform(0.0, 0.35))
    base = np.array(ground or drawn)
    grid = base + rng.uniform(-45, 45, size=(4, 5, 1)) + rng.uniform(-20, 20, size=(4, 5, 3))
    soft = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(soft, 0, 255).astype(np.uint8)


def _any_shape(rng: np.random.Generator) -> Outlines:
    return list(SHAPES.values())[rng.integers(len(SHAPES))]


def _colour(
    rng: np.random.Generator, hue: float | None = None, saturation: float | None = None
) -> tuple[int, int, int]:
    turn = rng.uniform() if hue is None else hue % 1.0
    red, green, blue = colorsys.hsv_to_rgb(
        turn, rng.uniform(0.2, 0.9) if saturation is None else saturation, rng.uniform(0.4, 0.95)
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _fill(
    picture: Picture,
    rng: np.random.Generator,
    outlines: Outlines,
    colour: tuple[int, int, int],
    radius: float,
    spread: float,
) -> None:
    """Draw a shape in place: centred within `spread` of the middle (in sides), turned by up to 30 degrees."""
    height, width = picture.shape[:2]
    centre = np.array([width, height]) * (0.5 + rng.uniform(-spread, spread, size=2))
    turn = rng.uniform(-math.pi / 6, math.pi / 6)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    sixteenths = [np.round(16 * (centre + radius * outline @ rotation)).astype(np.int32) for outline in outlines]
    cv2.fillPoly(picture, sixteenths, colour, lineType=cv2.LINE_AA, shift=4)
