"""Boxes on pictures: every pixel of a frame against a ring made by hand; labels that are seen, and seen apart."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from pipelines.pictures.boxes import Box, colour_of, draw_boxes, text_colour

GROUND = 90
RED, BLUE = (213, 94, 0), (0, 114, 178)


def plain(height=90, width=120):
    return np.full((height, width, 3), GROUND, np.uint8)


def is_of(picture, colour):
    return (picture == colour).all(axis=2)


def changed(before, after):
    return (before != after).any(axis=2)


def ring(shape, left, top, right, bottom, thickness):
    """A frame that lies within a box, as a mask."""
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    if right - left > 2 * thickness and bottom - top > 2 * thickness:
        mask[top + thickness : bottom - thickness, left + thickness : right - thickness] = False
    return mask


spans = st.tuples(st.integers(0, 89), st.integers(1, 90)).map(lambda s: (s[0], min(s[0] + s[1], 90)))


@settings(deadline=None)
@given(xs=spans, ys=spans)
def test_a_frame_is_a_ring_within_its_box_with_an_edge_of_one_pixel(xs, ys):
    image = plain(90, 90)
    (left, right), (top, bottom) = xs, ys
    drawn = draw_boxes(image, [Box((left, top, right, bottom), "", RED)])
    wanted = ring((90, 90), left, top, right, bottom, 2)
    edge = binary_dilation(wanted, np.ones((3, 3), bool)) & ~wanted
    np.testing.assert_array_equal(is_of(drawn, RED), wanted)
    np.testing.assert_array_equal(is_of(drawn, text_colour(RED)), edge)
    assert (drawn[~wanted & ~edge] == GROUND).all()


def test_the_image_stays_as_it_was_and_the_picture_can_be_written_to():
    image = plain()
    image.flags.writeable = False
    drawn = draw_boxes(image, [Box((5, 5, 80, 70), "cat", RED)])
    assert (image == GROUND).all()
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    drawn[:] = 0
    np.testing.assert_array_equal(draw_boxes(image, []), image)


def test_dashes_are_parts_of_the_ring_with_gaps_between_them():
    drawn = draw_boxes(plain(), [Box((10, 10, 110, 80), "", BLUE, dashed=True)])
    whole, dashed = ring((90, 120), 10, 10, 110, 80, 2), is_of(drawn, BLUE)
    assert not (dashed & ~whole).any()
    assert 0.4 < dashed.sum() / whole.sum() < 0.75
    for side in (dashed[10], dashed[79], dashed[:, 10], dashed[:, 109]):
        assert np.diff(side.astype(int)).clip(min=0).sum() >= 5, "no pieces"


def test_lines_grow_with_the_picture():
    def thickness(height, width):
        box = Box((0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height), "", RED)
        return is_of(draw_boxes(plain(height, width), [box]), RED)[: height // 2, width // 2].sum()

    assert thickness(60, 60) == 2
    assert thickness(480, 640) == 3
    assert 6 <= thickness(1200, 1600) <= 9
    assert thickness(100, 1600) == 2, "the shorter side counts"


def test_the_first_box_is_on_top():
    first, second = (Box((20, 20, 70, 70), "", colour) for colour in (RED, BLUE))
    np.testing.assert_array_equal(draw_boxes(plain(), [first, second]), draw_boxes(plain(), [first]))


def label_of(image, boxes, place):
    """Where the label of a box is seen, as (top, bottom, left, right), and how much of that is its colour."""
    frames = draw_boxes(image, [box._replace(label="") for box in boxes])
    drawn = draw_boxes(image, boxes)
    mask = is_of(drawn, boxes[place].colour) & changed(frames, drawn)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return (top, bottom, left, right), mask[top:bottom, left:right].mean()


@pytest.mark.parametrize("shape", [(90, 120), (480, 640), (2000, 1500)])
def test_a_label_stands_above_its_box_in_letters_that_suit_the_picture(shape):
    height, width = shape
    box = Box((0.2 * width, 0.5 * height, 0.9 * width, 0.9 * height), "person 0.98", RED)
    image = plain(height, width)
    (top, bottom, left, right), share = label_of(image, [box], 0)
    assert abs(bottom - height / 2) <= 2
    assert abs(left - 0.2 * width) <= 2
    assert max(12, min(shape) / 30) <= bottom - top <= max(24, min(shape) / 15)
    assert share > 0.5
    plate = draw_boxes(image, [box])[top : bottom - 2, left:right]
    assert (plate.max(axis=2) < 110).mean() > 0.05, "no black letters"


@pytest.mark.parametrize("corners", [(0, 0, 119, 89), (60, 0, 120, 90), (100, 0, 120, 10), (100, 80, 120, 90)])
def test_a_label_has_all_its_letters_where_there_is_no_room_above(corners):
    usual, _ = label_of(plain(), [Box((10, 40, 60, 80), "zebra 0.5", BLUE)], 0)
    place, _ = label_of(plain(), [Box(corners, "zebra 0.5", BLUE)], 0)
    assert (place[1] - place[0], place[3] - place[2]) == pytest.approx(
        (usual[1] - usual[0], usual[3] - usual[2]), abs=3
    )


def test_labels_make_way_for_those_before_them():
    image = plain(160, 200)
    corners = [(40, 60, 150, 120), (40, 60, 150, 120), (42, 61, 150, 121), (41, 60, 149, 119)]
    boxes = [Box(where, f"dog 0.{9 - number}", colour_of(number + 1)) for number, where in enumerate(corners)]
    found = [label_of(image, boxes, number) for number in range(len(boxes))]
    for ((top, bottom, left, right), _), ((top2, bottom2, left2, right2), _) in combinations(found, 2):
        assert min(bottom, bottom2) <= max(top, top2) or min(right, right2) <= max(left, left2)
    assert all(share > 0.5 for _, share in found), "one is covered"


anywhere = st.floats(-500, 500)


@settings(deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    x=st.tuples(anywhere, anywhere),
    y=st.tuples(anywhere, anywhere),
)
def test_a_box_that_is_small_or_outside_is_no_error(height, width, x, y):
    image = plain(height, width)
    corners = (min(x), min(y), max(x), max(y))
    for dashed in (False, True):
        assert draw_boxes(image, [Box(corners, "a long label", RED, dashed)]).shape == image.shape


def luminance(colour):
    """WCAG 2.1's relative luminance."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(colour) / 255]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_text_has_the_contrast_that_black_or_white_can_have(background):
    contrasts = {text: (luminance(text) + 0.05) / (luminance(background) + 0.05) for text in [(0, 0, 0), (255,) * 3]}
    contrasts = {text: max(ratio, 1 / ratio) for text, ratio in contrasts.items()}
    assert contrasts[text_colour(background)] == pytest.approx(max(contrasts.values()))
    assert contrasts[text_colour(background)] >= 4.5


def test_categories_near_each_other_have_colours_that_are_told_apart():
    for first in (0, 1, 70):
        colours = [colour_of(category) for category in range(first, first + 21)]
        assert min(np.linalg.norm(np.subtract(a, b)) for a, b in combinations(colours, 2)) > 30
        assert min(np.linalg.norm(np.subtract(a, b)) for a, b in pairwise(colours)) > 60
    assert colour_of(18) == colour_of(18)
