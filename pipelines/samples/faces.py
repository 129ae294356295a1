"""Drawn faces that can be learned: who it is and what they wear can be read from the pixels.

A person is a colour of skin that no human has, so that nobody takes a face for a real one, a shape of the head, places
of the eyes, a kind of glasses and the attributes that stay (`TRAITS`, hair). What differs from picture to picture are
the attributes of `MOODS`, and what decides nothing: light, background, clothes, place, size and angle, noise. The names
of attributes are those of CelebA.

Coordinates: the face's centre is 0, 0 and its chin 0, 1; y points down.
"""

from __future__ import annotations

import colorsys
import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.samples.drawing import Picture
from pipelines.samples.writing import ODD_KINDS

Colour = tuple[int, int, int]  # RGB
Points = npt.NDArray[np.float64]  # (points, 2) of x, y

HAIR: dict[str, Colour] = {
    "Black_Hair": (25, 22, 28), "Blond_Hair": (240, 212, 90), "Brown_Hair": (120, 70, 30), "Gray_Hair": (170, 170, 175),
}  # fmt: skip
BALD = 0.15  # share of people; all shares were chosen here
TRAITS = {
    "Arched_Eyebrows": 0.3, "Big_Lips": 0.3, "Big_Nose": 0.3, "Bushy_Eyebrows": 0.3, "Chubby": 0.3, "Double_Chin": 0.2,
    "Narrow_Eyes": 0.3, "Pale_Skin": 0.25, "Wavy_Hair": 0.4,
}  # fmt: skip
MOODS = {
    "Bags_Under_Eyes": 0.25, "Bangs": 0.35, "Blurry": 0.15, "Eyeglasses": 0.35, "Goatee": 0.25, "Heavy_Makeup": 0.25,
    "Mouth_Slightly_Open": 0.4, "Mustache": 0.25, "Rosy_Cheeks": 0.3, "Smiling": 0.5, "Wearing_Earrings": 0.25,
    "Wearing_Hat": 0.25, "Wearing_Lipstick": 0.3, "Wearing_Necklace": 0.25, "Wearing_Necktie": 0.25,
}  # fmt: skip
DRAWN = frozenset({*HAIR, "Bald", *TRAITS, *MOODS, "No_Beard", "Straight_Hair"})

WHITE, DARK, RED, GOLD, VIOLET = (245, 245, 245), (30, 20, 25), (205, 20, 45), (250, 200, 20), (120, 40, 150)


class Person(NamedTuple):
    """What stays the same from picture to picture."""

    traits: frozenset[str]
    skin: Colour
    hair: Colour  # of the beard of those who are bald, too
    eyes: Colour
    width: float  # of the face, half of it
    eye: float  # of an eye from the middle
    nose: float  # its tip
    mouth: float  # its height
    corners: int  # of the glasses: 4, 6 or many
    length: float  # down to where the hair reaches


def make_person(rng: np.random.Generator) -> Person:
    """Someone drawn from `rng`."""
    hair = list(HAIR)[rng.integers(len(HAIR))]
    traits = {name for name, share in TRAITS.items() if rng.uniform() < share}
    is_bald = rng.uniform() < BALD
    traits = traits - {"Wavy_Hair"} | {"Bald"} if is_bald else traits | {hair}
    if not is_bald and "Wavy_Hair" not in traits:
        traits.add("Straight_Hair")
    pale = "Pale_Skin" in traits
    skin = _colour(
        rng.uniform(0.22, 0.92), rng.uniform(0.1, 0.2) if pale else rng.uniform(0.45, 0.7), 0.95 if pale else 0.75
    )
    return Person(
        frozenset(traits), skin, HAIR[hair], _colour(rng.uniform(), 0.9, 0.6),
        rng.uniform(0.68, 0.8) + 0.14 * ("Chubby" in traits), rng.uniform(0.26, 0.4), rng.uniform(0.12, 0.32),
        rng.uniform(0.5, 0.62), (4, 6, 24)[rng.integers(3)], rng.uniform(-0.1, 1.2),
    )  # fmt: skip


def choose_look(rng: np.random.Generator, person: Person) -> frozenset[str]:
    """The attributes of `DRAWN` that a picture of the person shall show."""
    moods = {name for name, share in MOODS.items() if rng.uniform() < share}
    if "Bald" in person.traits:
        moods.discard("Bangs")
    if not moods & {"Mustache", "Goatee"}:
        moods.add("No_Beard")
    return person.traits | moods


def kind_at(place: int, count: int) -> str:
    """The kind of file of an image in a row of `count`: "jpeg", but each of `ODD_KINDS` twice, evenly spread."""
    turn, rest = divmod(place, count // (2 * len(ODD_KINDS)))
    is_odd = rest == 0 and turn < 2 * len(ODD_KINDS)
    return ODD_KINDS[turn % len(ODD_KINDS)] if is_odd else "jpeg"


def draw_face(
    rng: np.random.Generator, person: Person, look: frozenset[str], height: int, width: int, tall: float, turn: float
) -> Picture:
    """A picture (height, width, 3) uint8 of a person with the attributes `look`; all else is drawn from `rng`.

    tall: half the face's height, as a share of the picture's; turn: degrees to either side, at most.
    """
    angle = math.radians(rng.uniform(-turn, turn))
    scale = tall * height * rng.uniform(0.94, 1.06)
    centre = np.array([width, height]) * (0.5 + rng.uniform(-0.02, 0.02, size=2))
    axes = scale * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    canvas = Canvas(_background(rng, height, width), axes, centre)
    _clothes(canvas, rng, person, look)
    _head(canvas, person, look)
    _eyes(canvas, person, look)
    _mouth(canvas, person, look)
    if "Wearing_Hat" in look:
        hat = _colour(rng.uniform(), 0.8, rng.uniform(0.4, 0.9))
        canvas.fill(np.minimum(_oval(0, -0.75, 0.85 * person.width, 0.75), [2.0, -0.6]), hat)
        canvas.fill(_box(0, -0.62, person.width + 0.25, 0.09), _shade(hat, 0.7))
    picture = canvas.picture
    if "Blurry" in look:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.09 * scale), dtype=np.uint8)
    noise = rng.integers(-6, 7, size=picture.shape)
    return np.clip(picture * rng.uniform(0.75, 1.1) + noise, 0, 255).astype(np.uint8)


class Canvas(NamedTuple):
    """A picture that is drawn on, and how the face lies in it: pixels are `centre` + coordinates @ `axes`."""

    picture: Picture
    axes: npt.NDArray[np.float64]
    centre: npt.NDArray[np.float64]

    def fill(self, points: Points, colour: Colour) -> None:
        """Draw a polygon."""
        cv2.fillPoly(self.picture, [self._sixteenths(points)], colour, lineType=cv2.LINE_AA, shift=4)

    def line(self, points: Points, colour: Colour, thickness: float, closed: bool = False) -> None:
        """Draw a line from point to point."""
        pixels = max(1, round(thickness * math.hypot(*self.axes[0])))
        cv2.polylines(self.picture, [self._sixteenths(points)], closed, colour, pixels, cv2.LINE_AA, shift=4)

    def _sixteenths(self, points: Points) -> npt.NDArray[np.int32]:
        return np.round(16 * (self.centre + points @ self.axes)).astype(np.int32)


def _clothes(canvas: Canvas, rng: np.random.Generator, person: Person, look: frozenset[str]) -> None:
    shirt = _colour(rng.uniform(), rng.uniform(0.1, 0.6), rng.uniform(0.3, 0.9))
    canvas.fill(_box(0, 1.0, 0.35, 0.5), _shade(person.skin, 0.8))
    canvas.fill(np.array([[-0.35, 1.3], [0.35, 1.3], [1.5, 1.7], [1.6, 3.0], [-1.6, 3.0], [-1.5, 1.7]]), shirt)
    if "Wearing_Necktie" in look:
        canvas.fill(np.array([[-0.12, 1.25], [0.12, 1.25], [0.22, 2.2], [-0.22, 2.2]]), RED)
    if "Wearing_Necklace" in look:
        canvas.line(np.array([[-0.42, 1.15], [-0.22, 1.36], [0.22, 1.36], [0.42, 1.15]]), GOLD, 0.09)


def _head(canvas: Canvas, person: Person, look: frozenset[str]) -> None:
    width = person.width
    has_hair = "Bald" not in look
    if has_hair:
        waves = 0.08 if "Wavy_Hair" in look else 0.0
        canvas.fill(_oval(0, -0.12, width + 0.22, 1.1, waves), person.hair)
        canvas.fill(_box(0, person.length / 2, width + 0.2, abs(person.length / 2)), person.hair)
    for side in (-1, 1):
        canvas.fill(_oval(side * width, 0, 0.12, 0.2), _shade(person.skin, 0.9))
        if "Wearing_Earrings" in look:
            canvas.fill(_oval(side * (width + 0.04), 0.3, 0.1, 0.12), GOLD)
    if "Double_Chin" in look:
        canvas.fill(_oval(0, 0.8, 0.62 * width, 0.42), _shade(person.skin, 0.65))
    face = _oval(0, 0, width, 1.0)
    canvas.fill(face, person.skin)
    if has_hair:
        hairline = -0.25 if "Bangs" in look else -0.62
        canvas.fill(np.minimum(face, [2.0, hairline]) * [1.02, 1.02], person.hair)
    if "Rosy_Cheeks" in look:
        for side in (-1, 1):
            canvas.fill(_oval(side * 0.62 * width, 0.32, 0.17, 0.13), (240, 70, 90))


def _eyes(canvas: Canvas, person: Person, look: frozenset[str]) -> None:
    tall = 0.05 if "Narrow_Eyes" in look else 0.13
    arch = 0.16 if "Arched_Eyebrows" in look else 0.0
    for side in (-1, 1):
        x = side * person.eye
        if "Heavy_Makeup" in look:
            canvas.fill(_oval(x, -0.1, 0.24, 0.17), VIOLET)
        if "Bags_Under_Eyes" in look:
            canvas.line(np.array([[x - 0.14, 0.13], [x, 0.18], [x + 0.14, 0.13]]), _shade(person.skin, 0.5), 0.05)
        canvas.fill(_oval(x, -0.06, 0.17, tall), WHITE)
        canvas.fill(_oval(x, -0.06, min(0.09, 1.4 * tall), min(0.09, tall)), person.eyes)
        brow = np.array([[x - 0.2, -0.3], [x, -0.3 - arch], [x + 0.2, -0.3]])
        canvas.line(brow, _shade(person.hair, 0.7), 0.15 if "Bushy_Eyebrows" in look else 0.05)
        if "Eyeglasses" in look:
            angles = 2 * math.pi * (np.arange(person.corners) + 0.5) / person.corners
            canvas.line(np.array([x, -0.05]) + 0.26 * np.stack([np.cos(angles), np.sin(angles)], 1), DARK, 0.07, True)
            canvas.line(np.array([[side * 0.05, -0.08], [side * person.width, -0.1]]), DARK, 0.05)
    nose = 0.2 if "Big_Nose" in look else 0.09
    tip = np.array([[0, -0.1], [nose, person.nose], [0, person.nose + 0.05], [-nose, person.nose]])
    canvas.fill(tip, _shade(person.skin, 0.7))


def _mouth(canvas: Canvas, person: Person, look: frozenset[str]) -> None:
    if "Goatee" in look:
        canvas.fill(_oval(0, 0.85, 0.2, 0.2), person.hair)
    if "Mustache" in look:
        canvas.fill(_oval(0, person.mouth - 0.13, 0.32, 0.08), person.hair)
    bend = 0.14 if "Smiling" in look else -0.03
    x = np.linspace(-0.34, 0.34, 9)
    y = person.mouth + bend * (0.5 - (x / 0.34) ** 2)
    thickness = 0.15 if "Big_Lips" in look else 0.07
    lips = RED if "Wearing_Lipstick" in look else _shade(person.skin, 0.5)
    canvas.line(np.stack([x, y], 1), lips, thickness)
    if "Mouth_Slightly_Open" in look:
        canvas.line(np.stack([x, y + 0.02], 1)[1:-1], lips, thickness + 0.12)
        canvas.line(np.stack([x, y + 0.02], 1)[2:-2], DARK, thickness + 0.03)


def _oval(x: float, y: float, half_width: float, half_height: float, waves: float = 0.0) -> Points:
    angles = 2 * np.pi * np.arange(72) / 72
    radius = 1 + waves * np.cos(12 * angles)
    return np.array([x, y]) + np.stack([half_width * radius * np.cos(angles), half_height * radius * np.sin(angles)], 1)


def _box(x: float, y: float, half_width: float, half_height: float) -> Points:
    return np.array([x, y]) + np.array([half_width, half_height]) * [[-1, -1], [1, -1], [1, 1], [-1, 1]]


def _background(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Soft patches: a coarse random grid, stretched."""
    grid = rng.uniform(60, 200, size=(1, 1, 3)) + rng.uniform(-40, 40, size=(4, 4, 3))
    soft = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(soft, 0, 255).astype(np.uint8)


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(colour: Colour, light: float) -> Colour:
    red, green, blue = (round(light * part) for part in colour)
    return red, green, blue
