"""Decoded crops against a bilinear filter written out, and against PIL; damaged files; the global lock."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.training.decode import crop_resized, decode_crop


def photo(height, width, seed=0):
    """Smooth gradients and edges, as (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    for _ in range(10):
        top, left = rng.integers(0, height), rng.integers(0, width)
        pixels[top : top + height // 6, left : left + width // 6] = rng.integers(0, 256, 3)
    return pixels


def encoded(pixels, file_format="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


JPEG = encoded(photo(90, 120), quality=92)
DECODED = np.array(Image.open(io.BytesIO(JPEG)).convert("RGB"))


def crop_of(jpeg, box, size, antialias=False):
    out = np.empty((size, size, 3), dtype=np.uint8)
    decode_crop(jpeg, box, antialias, out)
    return out


def bilinear(pixels, size):
    """Four-tap bilinear with half-pixel centres and repeated edges, in float64."""

    def taps(length):
        centre = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0, length - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, length - 1), centre - low

    y0, y1, v = taps(pixels.shape[0])
    x0, x1, u = taps(pixels.shape[1])
    u, v, pixels = u[None, :, None], v[:, None, None], pixels.astype(float)
    above = pixels[y0][:, x0] * (1 - u) + pixels[y0][:, x1] * u
    below = pixels[y1][:, x0] * (1 - u) + pixels[y1][:, x1] * u
    return above * (1 - v) + below * v


boxes = st.tuples(st.integers(1, 90), st.integers(1, 120)).flatmap(
    lambda sides: st.tuples(
        st.integers(0, 90 - sides[0]), st.integers(0, 120 - sides[1]), st.just(sides[0]), st.just(sides[1])
    )
)


@settings(max_examples=60, deadline=None)
@given(box=boxes, size=st.integers(1, 64))
def test_plain_crops_are_four_tap_bilinear(box, size):
    top, left, height, width = box
    wanted = bilinear(DECODED[top : top + height, left : left + width], size)
    assert np.abs(crop_of(JPEG, box, size) - wanted).max() <= 1.0


@settings(max_examples=60, deadline=None)
@given(box=boxes, size=st.integers(1, 64))
def test_antialiased_crops_are_pils_within_rounding(box, size):
    top, left, height, width = box
    pil = Image.fromarray(DECODED[top : top + height, left : left + width])
    wanted = np.asarray(pil.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(crop_of(JPEG, box, size, antialias=True) - wanted).max() <= 2


def test_a_crop_of_the_output_size_is_the_decoded_pixels():
    for antialias in (False, True):
        np.testing.assert_array_equal(crop_of(JPEG, (7, 11, 64, 64), 64, antialias), DECODED[7:71, 11:75])


def test_antialiasing_matters_for_large_shrinking_only():
    fine = encoded(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    shrunk = [crop_of(fine, (0, 0, 90, 120), 9, antialias).astype(int) for antialias in (False, True)]
    assert shrunk[1].std() < 0.5 * shrunk[0].std()
    grown = [crop_of(fine, (3, 4, 20, 20), 60, antialias) for antialias in (False, True)]
    np.testing.assert_array_equal(*grown)


def test_only_its_own_part_of_the_batch_is_written():
    for antialias in (False, True):
        batch = np.full((3, 16, 16, 3), 7, dtype=np.uint8)
        decode_crop(JPEG, (0, 0, 90, 120), antialias, batch[1])
        assert (batch[[0, 2]] == 7).all()
        np.testing.assert_array_equal(batch[1], crop_of(JPEG, (0, 0, 90, 120), 16, antialias))


def test_a_view_of_a_larger_buffer_decodes_in_place():
    buffer = b"\0" * 100 + JPEG + b"\0" * 100
    view = memoryview(buffer)[100 : 100 + len(JPEG)]
    np.testing.assert_array_equal(crop_of(view, (0, 0, 90, 120), 32), crop_of(JPEG, (0, 0, 90, 120), 32))


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 2, "optimize": True}])
def test_every_kind_of_colour_jpeg_is_read(options):
    jpeg = encoded(photo(33, 47), quality=90, **options)
    wanted = np.array(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)
    result = crop_of(jpeg, (0, 0, 33, 33), 33)
    assert np.abs(result - wanted[:, :33]).max() <= 1


def test_a_grey_jpeg_gives_three_equal_channels():
    jpeg = encoded(photo(30, 40)[..., 0])
    result = crop_of(jpeg, (0, 0, 30, 40), 20)
    assert result.std() > 0
    assert (result == result[..., :1]).all()


TALL = photo(200, 90, seed=1)
KINDS = {
    **{name: simplejpeg.encode_jpeg(TALL, 92, colorsubsampling=name) for name in ("444", "422", "420", "440", "411")},
    "grey": simplejpeg.encode_jpeg(np.ascontiguousarray(TALL[..., :1]), 92, colorspace="GRAY", colorsubsampling="Gray"),
    "progressive": encoded(TALL, progressive=True),
    "restarts": encoded(TALL, restart_marker_rows=1),
}
tall_boxes = st.tuples(st.integers(1, 200), st.integers(1, 90)).flatmap(
    lambda sides: st.tuples(
        st.integers(0, 200 - sides[0]), st.integers(0, 90 - sides[1]), st.just(sides[0]), st.just(sides[1])
    )
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(box=tall_boxes, size=st.integers(1, 48), antialias=st.booleans())
def test_crops_are_those_of_the_whole_picture_however_it_is_coded(kind, box, size, antialias):
    wanted = np.empty((size, size, 3), dtype=np.uint8)
    crop_resized(simplejpeg.decode_jpeg(KINDS[kind], "RGB"), box, antialias, wanted)
    np.testing.assert_array_equal(crop_of(KINDS[kind], box, size, antialias), wanted)


@pytest.mark.parametrize("kind", ["444", "422", "420", "440", "411", "grey"])
def test_what_is_below_the_crop_is_not_decoded(kind, monkeypatch):
    rows = []
    decode = simplejpeg.decode_jpeg

    def counting(jpeg, *arguments, **options):
        rows.append(simplejpeg.decode_jpeg_header(jpeg)[0])
        return decode(jpeg, *arguments, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counting)
    for bottom in (40, 62, 63, 182, 183, 200):
        crop_of(KINDS[kind], (10, 0, bottom - 10, 90), 32)
    assert rows == [48, 64, 80, 200, 200, 200]


def test_damage_is_met_down_to_the_crops_lower_edge():
    jpeg = KINDS["420"]
    start = jpeg.index(b"\xff\xda") + 14
    wrong = jpeg[: start + 30] + b"\xff\xd9" + jpeg[start + 32 :]  # the picture ends in its first rows
    with pytest.raises(ValueError):
        crop_of(wrong, (0, 0, 40, 40), 8)
    for share in (0.2, 0.6, 0.99):  # and where the file does not end it is refused whatever is asked for
        with pytest.raises(ValueError):
            crop_of(jpeg[: int(share * len(jpeg))], (0, 0, 8, 8), 8)


def flipped(data, place, mask=0xFF):
    damaged = bytearray(data)
    damaged[place] ^= mask
    return bytes(damaged)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        JPEG[: len(JPEG) // 2],
        JPEG[:20],
        flipped(JPEG, 0),
        encoded(photo(30, 40), "PNG"),
        encoded(photo(30, 40), "WEBP"),
        JPEG[:-2] + b"\xff\xda\xff\xda",
    ],
    ids=["empty", "text", "half", "header", "magic", "png", "webp", "no end"],
)
def test_what_is_not_a_whole_jpeg_is_refused(data):
    with pytest.raises(ValueError):
        crop_of(data, (0, 0, 8, 8), 8)


def test_markers_inside_the_scan_are_refused():
    start = JPEG.index(b"\xff\xda") + 14  # past the header of the scan
    damaged = JPEG[: start + 200] + b"\xff\xd9" + JPEG[start + 202 :]
    with pytest.raises(ValueError):
        crop_of(damaged, (0, 0, 8, 8), 8)


@pytest.mark.parametrize("box", [(0, 0, 91, 10), (0, 0, 10, 121), (-1, 0, 5, 5), (0, 116, 5, 5), (3, 3, 0, 5)])
def test_a_crop_beyond_the_image_is_refused(box):
    with pytest.raises(ValueError, match="not within the image of 90 x 120 pixels"):
        crop_of(JPEG, box, 8)


@pytest.mark.parametrize("antialias", [False, True])
def test_decoding_leaves_other_threads_running(antialias):
    """A thread that only counts gets processor time while one image is decoded: the global lock is free."""
    jpeg = encoded(np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8), quality=95)
    spent, stop = [], threading.Event()

    def count():
        while not stop.is_set():
            spent.append(time.thread_time())

    counter = threading.Thread(target=count)
    counter.start()
    while not spent:
        time.sleep(0.001)
    before, busy = spent[-1], time.thread_time()
    crop_of(jpeg, (0, 0, 1500, 2000), 1000, antialias)
    after, busy = spent[-1], time.thread_time() - busy
    stop.set()
    counter.join()
    assert after - before > 0.2 * busy  # a held lock would leave it the few milliseconds of a switch
