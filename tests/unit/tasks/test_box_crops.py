"""Crops against a scalar port of TensorFlow's sampler, boxes seen through a crop against pixels that are cut."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.augment import Bounds
from tasks.box_crops import ATTEMPTS, KEEP_WHOLE, OBJECT_CROP_UNIFORMS, draw_object_crops, in_pixels, seen

SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
COLOURLESS = {"flip": 0.5, "brightness": 0.0, "min_saturation": 1.0, "max_saturation": 1.0}
SSD = Bounds(min_area=0.1, max_area=1.0, min_aspect=0.5, max_aspect=2.0, **COLOURLESS)


def array(*boxes):
    return np.array(boxes, np.float64).reshape(-1, 4)


def draws(count, seed=0):
    return np.random.default_rng(seed).random((count, OBJECT_CROP_UNIFORMS))


def alike(uniforms, height, width, boxes, shares=SHARES):
    """Crops of images that have the same size and the same objects."""
    sizes = np.full((2, len(uniforms)), [[height], [width]])
    return draw_object_crops(uniforms, *sizes, [boxes] * len(uniforms), SSD, shares)


def is_whole(crops, height, width):
    return (crops == [0, 0, height, width]).all(axis=1)


@st.composite
def image_and_boxes(draw, max_side=60):
    """Height, width and (M, 4) boxes in whole pixels within the image, some without area."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        x, y = draw(st.integers(0, width)), draw(st.integers(0, height))
        boxes.append((x, y, draw(st.integers(0, width - x)), draw(st.integers(0, height - y))))
    return height, width, array(*boxes)


@st.composite
def image_and_crop(draw, max_side=60):
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    tall, wide = draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    return height, width, np.array([top, left, tall, wide])


def painted(height, width, box):
    """An image of zeros with ones where the middle of a pixel lies in the box."""
    x, y, wide, tall = box
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    return (rows > y) & (rows < y + tall) & (columns > x) & (columns < x + wide)


@settings(max_examples=100, deadline=None)
@given(
    images=st.lists(image_and_boxes(), min_size=1, max_size=4),
    areas=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    aspects=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    share=st.sampled_from(SHARES),
    seed=st.integers(0, 2**32),
)
def test_a_crop_keeps_its_bounds_and_shows_the_share_of_an_object_or_is_the_whole_image(
    images, areas, aspects, share, seed
):
    bounds = Bounds(*areas, *aspects, **COLOURLESS)
    heights, widths, boxes = (list(column) for column in zip(*images, strict=True))
    numbers = draws(len(images), seed)
    crops = draw_object_crops(numbers, np.array(heights), np.array(widths), boxes, bounds, [share] * 2)
    assert (crops.dtype, crops.shape) == (np.int64, (len(images), 4))
    for (height, width, objects), (top, left, tall, wide) in zip(images, crops.tolist(), strict=True):
        assert 0 <= top < top + tall <= height
        assert 0 <= left < left + wide <= width
        if (tall, wide) == (height, width):
            continue
        assert areas[0] <= tall * wide / (height * width) <= areas[1]
        assert aspects[0] * tall - 0.5001 <= wide <= aspects[1] * tall + 0.5001
        shown = [pixels for pixels in (painted(height, width, box) for box in objects) if pixels.any()]
        shares = [pixels[top : top + tall, left : left + wide].sum() / pixels.sum() for pixels in shown]
        assert not len(objects) or max(shares) >= share - 1e-12


@settings(max_examples=30, deadline=None)
@given(images=st.lists(image_and_boxes(), min_size=2, max_size=6), seed=st.integers(0, 2**32))
def test_a_crop_depends_on_its_own_image_and_numbers_alone(images, seed):
    heights, widths, boxes = (list(column) for column in zip(*images, strict=True))
    uniforms = draws(len(images), seed)

    def crops(places):
        picked = [np.array(column)[places] for column in (heights, widths)]
        return draw_object_crops(uniforms[places], *picked, [boxes[place] for place in places], SSD, SHARES).tolist()

    together = crops(list(range(len(images))))
    assert crops(list(range(len(images)))) == together
    assert crops(list(range(len(images)))[::-1]) == together[::-1]
    assert [crops([place])[0] for place in range(len(images))] == together


def test_the_first_attempt_that_shows_the_share_is_taken():
    box = array((300, 150, 120, 90), (20, 30, 40, 200))
    for row in draws(40, seed=3):
        alone = np.empty((ATTEMPTS, OBJECT_CROP_UNIFORMS))  # in each row one attempt, over and over
        alone[:, :2] = row[:2]
        alone[:, 2:] = np.tile(row[2:].reshape(ATTEMPTS, 4), ATTEMPTS)
        found = [crop for crop in alike(alone, 400, 500, box).tolist() if crop != [0, 0, 400, 500]]
        assert alike(row[None], 400, 500, box).tolist() == (found[:1] or [[0, 0, 400, 500]])


def tensorflow_crop(height, width, objects, share, rng):
    """`sample_distorted_bounding_box` of TensorFlow within SSD's bounds, step by step, of boxes in whole pixels."""
    for _ in range(100):
        aspect = rng.uniform(SSD.min_aspect, SSD.max_aspect)
        low = round(math.sqrt(SSD.min_area * height * width / aspect))
        high = round(math.sqrt(SSD.max_area * height * width / aspect))
        if round(high * aspect) > width:
            high = int((width + 0.5 - 1e-7) / aspect)
        high = min(high, height)
        tall = low + rng.randrange(high - low + 1) if low < high else high
        wide = round(tall * aspect)
        if not SSD.min_area * height * width <= tall * wide <= SSD.max_area * height * width or wide > width:
            continue
        top = rng.randrange(height - tall) if tall < height else 0
        left = rng.randrange(width - wide) if wide < width else 0
        for x, y, w, h in objects:
            across = max(0, min(x + w, left + wide) - max(x, left))
            down = max(0, min(y + h, top + tall) - max(y, top))
            if w * h >= 1 and across * down / (w * h) >= share:
                return top, left, tall, wide
    return 0, 0, height, width


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_crops_are_spread_as_tensorflows(share):
    height, width, objects = 480, 640, array((350, 60, 200, 320), (40, 300, 90, 60), (600, 10, 0, 40))
    uniforms = draws(1500, seed=11)
    uniforms[:, 0] = KEEP_WHOLE
    rng = random.Random(5)
    crops = alike(uniforms, height, width, objects, [share])
    theirs = np.array([tensorflow_crop(height, width, objects.tolist(), share, rng) for _ in range(1500)])
    for ours, wanted in zip(crops.T, theirs.T, strict=True):
        assert stats.ks_2samp(ours, wanted).pvalue > 1e-3
    assert stats.ks_2samp(crops[:, 2] * crops[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3


@pytest.mark.parametrize("shares", [(0.0,), (0.0, 1.0), (1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_so_many_images_stay_whole_and_shares_are_drawn_alike(shares):
    # No crop shows all of an object that fills the image, and all show a share of 0.
    crops = alike(draws(4000, seed=7), 300, 400, array((0, 0, 400, 300)), shares)
    expected = 0.15 + 0.85 * shares.count(1.0) / len(shares)
    assert stats.binomtest(int(is_whole(crops, 300, 400).sum()), 4000, expected).pvalue > 1e-3


def test_an_image_without_objects_is_cropped_whatever_the_share():
    crops = alike(draws(4000, seed=8), 300, 400, array(), [1.0])
    assert stats.binomtest(int(is_whole(crops, 300, 400).sum()), 4000, 0.15).pvalue > 1e-3


def test_a_share_of_0_is_met_without_an_object_in_sight():
    top, left, _, _ = alike(draws(200, seed=9), 300, 400, array((0, 0, 10, 10)), [0.0]).T
    assert ((top >= 10) | (left >= 10)).mean() > 0.3


@pytest.mark.parametrize("box", [(30, 20, 50, 0), (30, 20, 0, 0), (30, 20, 0.9, 1.1), (400, 20, 1, 30), (-1, 9, 1, 9)])
def test_objects_of_less_than_a_pixel_of_the_image_meet_no_share(box):
    assert is_whole(alike(draws(50), 300, 400, array(box), [0.0]), 300, 400).all()
    beside = alike(draws(50), 300, 400, array(box, (100, 100, 60, 60)), [1.0])
    alone = alike(draws(50), 300, 400, array((100, 100, 60, 60)), [1.0])
    assert beside.tolist() == alone.tolist()


def test_of_an_object_beyond_the_edge_the_part_within_the_image_counts():
    crops = alike(draws(200), 300, 400, array((-1, 100, 11, 50)), [1.0])
    cropped = crops[~is_whole(crops, 300, 400)]
    assert len(cropped) > 100
    assert (cropped[:, 1] == 0).all()


def test_an_image_of_one_pixel_stays_whole():
    for boxes in (array(), array((0, 0, 1, 1)), array((0, 0, 1, 0))):
        assert is_whole(alike(draws(20), 1, 1, boxes), 1, 1).all()


@settings(max_examples=200, deadline=None)
@given(image_and_crop(), st.lists(st.floats(-0.1, 1.1), min_size=4, max_size=4), st.booleans(), st.booleans())
def test_a_box_is_seen_where_its_pixels_are(view, corners, whole, flipped):
    height, width, crop = view
    (x1, x2), (y1, y2) = sorted(np.multiply(corners[:2], width)), sorted(np.multiply(corners[2:], height))
    if whole:
        x1, y1, x2, y2 = np.rint([x1, y1, x2, y2])
    top, left, tall, wide = crop
    pixels = painted(height, width, (x1, y1, x2 - x1, y2 - y1))[top : top + tall, left : left + wide]
    rows, columns = np.nonzero(pixels[:, ::-1] if flipped else pixels)
    found, _ = seen(array((x1, y1, x2 - x1, y2 - y1)), crop, flipped)
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[:, :2] <= found[:, 2:]).all()
    if len(rows):
        wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(found[0] * [wide, tall, wide, tall] - wanted).max() <= (1e-4 if whole else 0.501)
    else:  # no middle of a pixel is in the box
        assert ((found[0, 2:] - found[0, :2]) * [wide, tall]).min() <= 1.0001


@settings(max_examples=200, deadline=None)
@given(
    view=image_and_crop(),
    box=st.tuples(st.integers(-60, 120), st.integers(-60, 120), st.integers(3, 60), st.integers(3, 60)),
    flipped=st.booleans(),
)
def test_a_box_is_kept_if_its_centre_lies_in_the_crop_or_on_its_edge(view, box, flipped):
    (top, left, tall, wide), (x, y, w, h) = view[2].tolist(), box
    within = left * 2 <= 2 * x + w <= (left + wide) * 2 and top * 2 <= 2 * y + h <= (top + tall) * 2
    # What lies within a pixel of the crop and has three or more has its centre in it.
    assert seen(array(box), view[2], flipped)[1].tolist() == [within]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.booleans(), st.integers(0, 2**32))
def test_the_whole_image_keeps_all_of_its_boxes(height, width, flipped, seed):
    rng, size = np.random.default_rng(seed), np.array([width, height])
    lengths = rng.random((50, 2)) * (size + 2) * rng.choice([0, 0.01, 1], (50, 2))
    starts = rng.choice([0, 0.5, 0.999], (50, 2)) * (size + 2 - lengths) - 1
    boxes = np.concatenate([starts, lengths], axis=1)
    farthest = array((width + 1, height + 1, 0, 0), (width, -1, 1, 1), (-1, height, 1, 1))
    corners, kept = seen(np.concatenate([boxes, farthest]), np.array([0, 0, height, width]), flipped)
    assert kept.all()
    assert ((corners >= 0) & (corners <= 1)).all()


def test_a_box_that_is_cut_and_mirrored_by_hand():
    boxes = array((10, 20, 40, 60), (70, 30, 60, 20), (0, 0, 20, 20), (60, 40, 0, 10))
    crop = np.array([20, 20, 80, 100])  # columns 20..120, rows 20..100
    corners, kept = seen(boxes, crop, False)
    wanted = [[0, 0, 0.3, 0.75], [0.5, 0.125, 1, 0.375], [0, 0, 0, 0], [0.4, 0.25, 0.4, 0.375]]
    np.testing.assert_allclose(corners, wanted, atol=1e-7)
    assert kept.tolist() == [True, True, False, True]
    mirrored, still = seen(boxes, crop, True)
    wanted = [[0.7, 0, 1, 0.75], [0, 0.125, 0.5, 0.375], [1, 0, 1, 0], [0.6, 0.25, 0.6, 0.375]]
    np.testing.assert_allclose(mirrored, wanted, atol=1e-7)
    assert still.tolist() == kept.tolist()


@pytest.mark.parametrize(
    ("box", "keeps"),
    [
        ((110, 50, 20, 9), True),  # centres on the edges
        ((10, 50, 20, 9), True),
        ((50, 90, 9, 20), True),
        ((50, 10, 9, 20), True),
        ((110.1, 50, 20, 9), False),
        ((50, 9.9, 9, 20), False),
        ((120, 50, 1, 9), True),  # up to a pixel beyond them
        ((19, 50, 0, 9), True),
        ((120, 100, 1, 1), True),
        ((120, 50, 1.2, 9), False),
        ((18.9, 50, 0, 9), False),
        ((120, 100.1, 1, 1), False),
    ],
)
def test_which_boxes_are_kept_at_the_edges(box, keeps):
    assert seen(array(box), np.array([20, 20, 80, 100]), False)[1].tolist() == [keeps]


def test_no_boxes_are_seen_of_none():
    corners, kept = seen(array(), np.array([0, 0, 3, 4]), True)
    assert (corners.shape, corners.dtype, kept.shape, kept.dtype) == ((0, 4), np.float32, (0,), np.bool_)


@settings(max_examples=100, deadline=None)
@given(views=st.lists(image_and_crop(max_side=700), min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_what_is_seen_lies_in_pixels_where_it_was(views, seed):
    rng = np.random.default_rng(seed)
    corners, wanted = [], []
    for height, width, crop in views:
        boxes = rng.random((5, 4)) * [width, height, width, height]
        corners.append(seen(boxes, crop, False)[0])
        top, left, tall, wide = crop
        ends = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        wanted.append(ends.clip([left, top] * 2, [left + wide, top + tall] * 2))
    crops = torch.from_numpy(np.stack([crop for _, _, crop in views]))
    found = in_pixels(torch.from_numpy(np.stack(corners)), crops)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), np.stack(wanted), atol=1e-4)
    assert in_pixels(torch.empty(len(views), 0, 4), crops).shape == (len(views), 0, 4)
