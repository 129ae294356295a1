"""Crops against a scalar port of TensorFlow's sampler, colours against `colorsys` and TensorFlow's kernel."""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.augment import (
    CROP_ATTEMPTS,
    CROP_UNIFORMS,
    DISTORTION_UNIFORMS,
    Bounds,
    central_crops,
    distort,
    draw_crops,
    draw_distortions,
    normalise,
)

SLIM = Bounds(
    min_area=0.05,
    max_area=1.0,
    min_aspect=0.75,
    max_aspect=1.33,
    flip=0.5,
    brightness=32 / 255,
    min_saturation=0.5,
    max_saturation=1.5,
)


def crops(bounds, heights, widths, seed=0):
    uniforms = np.random.default_rng(seed).random((len(heights), CROP_UNIFORMS))
    return draw_crops(uniforms, np.asarray(heights), np.asarray(widths), bounds)


def tensorflow_crop(height, width, aspect, number, bounds):
    """`GenerateRandomCrop` of TensorFlow's sample_distorted_bounding_box_op.cc: the size, or None."""
    least, most = (share * height * width for share in (bounds.min_area, bounds.max_area))
    low, high = round(math.sqrt(least / aspect)), round(math.sqrt(most / aspect))
    if round(high * aspect) > width:
        high = int((width + 0.5 - 1e-7) / aspect)
        high -= round(high * aspect) > width
    high = min(high, height)
    low = min(low, high)
    tall = low + int(number * (high - low + 1))
    wide = round(tall * aspect)
    if tall * wide < least:
        tall += 1
        wide = round(tall * aspect)
    if tall * wide > most:
        tall -= 1
        wide = round(tall * aspect)
    fits = least <= tall * wide <= most and 0 < wide <= width and 0 < tall <= height
    return (tall, wide) if fits else None


def test_crops_have_the_sizes_of_tensorflows_sampler():
    rng = np.random.default_rng(1)
    uniforms = rng.random((4000, CROP_UNIFORMS))
    heights, widths = rng.integers(40, 600, (2, 4000))
    boxes = draw_crops(uniforms, heights, widths, SLIM)
    wanted = []
    for row, height, width in zip(uniforms, heights, widths, strict=True):
        aspects = 0.75 + (1.33 - 0.75) * row[0 : 2 * CROP_ATTEMPTS : 2]
        tries = (
            tensorflow_crop(height, width, aspect, number, SLIM)
            for aspect, number in zip(aspects, row[1 : 2 * CROP_ATTEMPTS : 2], strict=True)
        )
        wanted.append(next((size for size in tries if size), (height, width)))
    equal = (boxes[:, 2:] == np.array(wanted)).all(axis=1)
    # TensorFlow corrects some sizes by a pixel where rounding left the bounds; here they are drawn again.
    assert equal.mean() > 0.99


def test_aspects_and_heights_are_uniform_within_what_fits():
    boxes = crops(replace(SLIM, min_area=0.1, max_area=0.3), np.full(20_000, 3000), np.full(20_000, 4000))
    heights, widths = boxes[:, 2], boxes[:, 3]
    aspects = widths / heights
    assert stats.kstest(aspects, stats.uniform(0.75, 0.58).cdf).pvalue > 1e-3
    low, high = (np.sqrt(share * 12e6 / aspects) for share in (0.1, 0.3))
    assert stats.kstest((heights - low) / (high - low), stats.uniform.cdf).pvalue > 1e-3
    for start, room in ((boxes[:, 0], 3000 - heights), (boxes[:, 1], 4000 - widths)):
        assert stats.kstest(start / room, stats.uniform.cdf).pvalue > 1e-3


@settings(max_examples=100, deadline=None)
@given(
    heights=st.lists(st.integers(1, 700), min_size=1, max_size=20),
    areas=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    aspects=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    seed=st.integers(0, 2**32),
)
def test_a_crop_keeps_its_bounds_or_is_the_whole_image(heights, areas, aspects, seed):
    bounds = replace(SLIM, min_area=areas[0], max_area=areas[1], min_aspect=aspects[0], max_aspect=aspects[1])
    widths = np.random.default_rng(seed).integers(1, 700, len(heights))
    for box, height, width in zip(crops(bounds, heights, widths, seed).tolist(), heights, widths, strict=True):
        top, left, tall, wide = box
        assert 0 <= top < top + tall <= height
        assert 0 <= left < left + wide <= width
        if (tall, wide) != (height, width):
            assert areas[0] <= tall * wide / (height * width) <= areas[1]
            assert aspects[0] * tall - 0.5001 <= wide <= aspects[1] * tall + 0.5001


def test_an_image_that_no_allowed_crop_fits_is_taken_whole():
    long = replace(SLIM, min_area=0.5, min_aspect=1.0, max_aspect=1.0)
    assert crops(long, [10, 10], [1000, 10]).tolist()[0] == [0, 0, 10, 1000]
    whole = replace(SLIM, min_area=1.0)
    assert crops(whole, [375], [500]).tolist() == [[0, 0, 375, 500]]


def test_crops_reach_all_four_edges():
    boxes = crops(replace(SLIM, max_area=0.5), np.full(20_000, 20), np.full(20_000, 24))
    top, left, tall, wide = boxes.T
    for room, start in ((20 - tall, top), (24 - wide, left)):
        assert (start == 0).any()
        assert ((start == room) & (room > 0)).any()


@pytest.mark.parametrize(
    ("height", "width", "fraction", "box"),
    [
        (375, 500, 0.875, [23, 31, 329, 438]),  # int((375 - 328.125) / 2) = 23; int((500 - 437.5) / 2) = 31
        (8, 16, 0.875, [0, 1, 8, 14]),
        (1, 1, 0.875, [0, 0, 1, 1]),
        (333, 250, 1.0, [0, 0, 333, 250]),
        (100, 40, 0.5, [25, 10, 50, 20]),
    ],
)
def test_central_crops_follow_tensorflows_formula(height, width, fraction, box):
    assert central_crops(np.array([height]), np.array([width]), fraction).tolist() == [box]


def test_distortions_are_drawn_within_their_bounds():
    drawn = draw_distortions(np.random.default_rng(2).random((20_000, DISTORTION_UNIFORMS)), replace(SLIM, flip=0.3))
    assert drawn.dtype == np.float32
    flip, shift, factor, shift_first = drawn.T
    assert stats.binomtest(int(flip.sum()), len(flip), 0.3).pvalue > 1e-3
    assert stats.binomtest(int(shift_first.sum()), len(flip), 0.5).pvalue > 1e-3
    assert stats.kstest(shift, stats.uniform(-32 / 255, 64 / 255).cdf).pvalue > 1e-3
    assert stats.kstest(factor, stats.uniform(0.5, 1.0).cdf).pvalue > 1e-3
    assert set(np.unique(flip)) == set(np.unique(shift_first)) == {0, 1}


def test_no_flip_and_no_colour_can_be_asked_for():
    still = replace(SLIM, flip=0.0, brightness=0.0, min_saturation=1.0, max_saturation=1.0)
    drawn = draw_distortions(np.random.default_rng(3).random((100, DISTORTION_UNIFORMS)), still)
    assert (drawn[:, :3] == [0, 0, 1]).all()


def test_normalise_maps_bytes_to_the_ends_of_its_range_exactly():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    pixels = normalise(images.contiguous())
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.dtype == torch.float32
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert torch.allclose(pixels[0, 1].flatten(), torch.linspace(-1, 1, 256), atol=1e-6)


def test_images_come_out_channels_last():
    images = torch.zeros(2, 5, 7, 3, dtype=torch.uint8)
    neutral = torch.tensor([[0.0, 0, 1, 0]] * 2)
    for pixels in (normalise(images), distort(images, neutral)):
        assert pixels.shape == (2, 3, 5, 7)
        assert pixels.is_contiguous(memory_format=torch.channels_last)


def adjust_saturation(red, green, blue, factor):
    """TensorFlow's kernel (adjust_saturation_op.cc), a pixel at a time; `colorsys` where that is defined."""
    value, least = max(red, green, blue), min(red, green, blue)
    if least >= 0:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb(hue, min(1.0, max(0.0, saturation * factor)), value)
    spread = value - least
    saturation = spread / value if value > 0 else 0.0
    saturation = min(1.0, max(0.0, saturation * factor))
    hue = 0.0
    if spread > 0:
        if red == value:
            hue = (green - blue) / (6 * spread)
        elif green == value:
            hue = (blue - red) / (6 * spread) + 2 / 6
        else:
            hue = (red - green) / (6 * spread) + 4 / 6
    chroma = saturation * value
    sector = (hue % 1.0) * 6
    second = chroma * (1 - abs(sector % 2 - 1))
    order = [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0), (1, 2, 0), (0, 2, 1)][int(sector) % 6]
    levels = (chroma, second, 0.0)
    return tuple(levels[place] + value - chroma for place in order)


def distorted_by_pixel(images, distortions):
    wanted = np.empty((len(images), 3, *images.shape[1:3]))
    for n, (flip, shift, factor, shift_first) in enumerate(distortions.tolist()):
        image = images[n].numpy()[:, ::-1] if flip else images[n].numpy()
        for y, x in np.ndindex(image.shape[:2]):
            pixel = [float(level) / 255 for level in image[y, x]]
            if shift_first:
                pixel = [level + shift for level in pixel]
            pixel = adjust_saturation(*pixel, factor)
            if not shift_first:
                pixel = [level + shift for level in pixel]
            wanted[n, :, y, x] = [2 * min(1.0, max(0.0, level)) - 1 for level in pixel]
    return wanted


@pytest.mark.parametrize("seed", range(3))
def test_distort_equals_the_hsv_rule_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (24, 5, 6, 3), dtype=np.uint8))
    images[:, 0] //= 16  # dark pixels, which a shift takes below 0
    images[:, 1, :, 1:] = images[:, 1, :, :1]  # greys
    images[:, 2, 0] = 0
    images[:, 2, 1] = 255
    wild = replace(SLIM, brightness=0.6, min_saturation=0.0, max_saturation=4.0)
    distortions = torch.from_numpy(draw_distortions(rng.random((24, DISTORTION_UNIFORMS)), wild))
    assert {0.0, 1.0} == set(distortions[:, 0].tolist()) == set(distortions[:, 3].tolist())
    result = distort(images, distortions)
    np.testing.assert_allclose(result.numpy(), distorted_by_pixel(images, distortions), atol=2e-6)


def test_neutral_distortions_change_nothing_and_flips_only_mirror():
    images = torch.randint(0, 256, (8, 9, 11, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    for shift_first in (0.0, 1.0):
        same = distort(images, torch.tensor([[0.0, 0, 1, shift_first]] * 8))
        torch.testing.assert_close(same, normalise(images), atol=1e-6, rtol=0)
        mirrored = distort(images, torch.tensor([[1.0, 0, 1, shift_first]] * 8))
        torch.testing.assert_close(mirrored, normalise(images.flip(2)), atol=1e-6, rtol=0)
    assert torch.equal(images, before)


def test_the_order_of_the_colours_matters_where_saturation_reaches_its_end():
    image = torch.tensor([200, 100, 50], dtype=torch.uint8).expand(1, 2, 2, 3)

    def both_orders(factor):
        return [distort(image, torch.tensor([[0.0, 0.1, factor, first]])) for first in (0.0, 1.0)]

    torch.testing.assert_close(*both_orders(0.5), atol=1e-6, rtol=0)
    late, early = both_orders(1.5)  # 0.75 * 1.5 ends at 1, so blue at 0, then 0.1; early, 0.64 * 1.5 stays below 1
    torch.testing.assert_close(late[0, 2], torch.full((2, 2), 2 * 0.1 - 1))
    torch.testing.assert_close(early[0, 2], torch.full((2, 2), 2 * (200 - 1.5 * 150) / 255 + 0.2 - 1))
