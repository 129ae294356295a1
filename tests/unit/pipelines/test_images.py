"""The matrix of good, odd and bad images; Pillow is the oracle for what the odd ones show."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipelines.images import ORIENTATION, BadImage, Checked, check

CAPS = {"max_pixels": 10**6, "max_bytes": 10**6}
GRID = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PICTURE = cv2.resize(GRID, (85, 61), interpolation=cv2.INTER_CUBIC)  # odd sides


def encoded(mode: str = "RGB", format: str = "JPEG", orientation: int | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    if format == "JPEG":
        options = {"quality": 95, **options}
    Image.fromarray(PICTURE).convert(mode).save(file, format, **options)
    return file.getvalue()


def shown(image: bytes) -> np.ndarray:
    """What a viewer shows: an independent path, by Pillow alone."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB")).astype(int)


def assert_same_picture(checked: Checked, image: bytes, tolerance: float = 3.0) -> None:
    pixels = simplejpeg.decode_jpeg(checked.image, "RGB")
    assert pixels.shape == (checked.height, checked.width, 3)
    assert simplejpeg.decode_jpeg_header(checked.image)[2] == "YCbCr"
    assert np.abs(pixels - shown(image)).mean() < tolerance


def cause(image: bytes, **caps: int) -> str:
    with pytest.raises(BadImage) as caught:
        check(image, **{**CAPS, **caps})
    assert str(caught.value) == caught.value.cause
    return caught.value.cause


@pytest.mark.parametrize(
    "image",
    [
        encoded(),
        encoded("L"),
        encoded(progressive=True),
        encoded(subsampling="4:2:0", optimize=True),
        encoded(orientation=1),
        encoded(orientation=0),
        encoded(orientation=9),
        encoded(exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        encoded(comment=b"a comment"),
        encoded() + b"\0" * 7,
    ],
    ids=["rgb", "grey", "progressive", "420", "exif 1", "exif 0", "exif 9", "broken exif", "comment", "padded"],
)  # fmt: skip
def test_good_jpegs_keep_their_bytes(image: bytes) -> None:
    assert check(image, **CAPS) == Checked(image, 85, 61, None)


@pytest.mark.parametrize(
    ("image", "change", "tolerance"),
    [
        (encoded("CMYK"), "cmyk", 3),
        (encoded(keep_rgb=True), "rgb", 3),
        (encoded(format="PNG"), "png", 3),
        (encoded("RGBA", "PNG"), "png", 3),
        (encoded("P", "PNG"), "png", 4),
        (encoded("1", "PNG"), "png", 3),
        (encoded("P", "GIF"), "gif", 4),
        (encoded(format="BMP"), "bmp", 3),
    ],
)
def test_other_colours_and_formats_become_rgb_jpegs(image: bytes, change: str, tolerance: float) -> None:
    checked = check(image, **CAPS)
    assert checked.change == change
    assert_same_picture(checked, image, tolerance)
    assert check(checked.image, **CAPS).change is None


@pytest.mark.parametrize("colours", ["adobe", "ycck", "plain"])
def test_inks_become_the_colours_that_pillow_shows(colours: str) -> None:
    """Pillow writes CMYK as Adobe does; patched, its marker says YCCK, or is gone."""
    image = encoded("CMYK")
    marker = image.index(b"\xff\xee\x00\x0eAdobe")
    if colours == "ycck":
        image = image[: marker + 15] + b"\x02" + image[marker + 16 :]
    if colours == "plain":
        image = image[:marker] + image[marker + 16 :]
    checked = check(image, **CAPS)
    assert checked.change == ("ycck" if colours == "ycck" else "cmyk")
    assert_same_picture(checked, image)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_exif_turns_are_applied(orientation: int, mode: str) -> None:
    image = encoded(mode, orientation=orientation)
    checked = check(image, **CAPS)
    assert checked.change == ("cmyk, turned" if mode == "CMYK" else "turned")
    assert (checked.width, checked.height) == ((61, 85) if orientation > 4 else (85, 61))
    assert_same_picture(checked, image)
    assert ORIENTATION not in Image.open(io.BytesIO(checked.image)).getexif()


def test_an_exif_turn_of_a_png_is_applied() -> None:
    image = encoded(format="PNG", orientation=6)
    checked = check(image, **CAPS)
    assert checked.change == "png, turned"
    assert_same_picture(checked, image)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    grey = PICTURE[:, :, 0].astype(np.uint16) * 257
    checked = check(cv2.imencode(".png", grey)[1].tobytes(), **CAPS)
    pixels = simplejpeg.decode_jpeg(checked.image, "GRAY")[:, :, 0]
    assert np.abs(pixels.astype(int) - PICTURE[:, :, 0]).mean() < 3


@pytest.mark.parametrize(("side", "size"), [(30, (42, 30)), (60, (84, 60)), (61, None), (200, None)])
def test_larger_images_are_shrunk_to_the_stored_side(side: int, size: tuple[int, int] | None) -> None:
    image = encoded()
    checked = check(image, **CAPS, stored_short_side=side)
    if size is None:
        assert checked == Checked(image, 85, 61, None)
        return
    assert (checked.width, checked.height, checked.change) == (*size, "shrunk")
    expected = np.asarray(Image.open(io.BytesIO(image)).resize(size, Image.Resampling.BOX)).astype(int)
    assert np.abs(simplejpeg.decode_jpeg(checked.image, "RGB") - expected).mean() < 8
    turned = check(encoded("CMYK", orientation=6), **CAPS, stored_short_side=side)
    assert (turned.width, turned.height, turned.change) == (*reversed(size), "cmyk, turned, shrunk")


def png_bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that claims side x side pixels and has them all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = side.to_bytes(4, "big")
    deflate = zlib.compressobj(9)
    row = bytes(1 + -(-side // 8))
    data = b"".join([*(deflate.compress(row) for _ in range(side)), deflate.flush()])
    head = chunk(b"IHDR", size + size + bytes([1, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    """A small JPEG whose header claims 65,500 x 65,500 pixels."""
    image = bytearray(encoded())
    frame = image.index(b"\xff\xc0")
    image[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    return bytes(image)


def test_caps_hold_at_their_exact_values() -> None:
    for image in (encoded(), encoded(format="PNG"), encoded("P", "GIF")):
        check(image, max_pixels=85 * 61, max_bytes=len(image))
        assert cause(image, max_pixels=85 * 61 - 1) == "too many pixels"
        assert cause(image, max_bytes=len(image) - 1) == "too many bytes"


def test_bombs_are_refused_without_allocating() -> None:
    """In a process of its own: the peak of resident memory never goes down."""
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from pipelines.images import BadImage, check
from tests.memory import peak_kib
def cause(image):
    try: check(image, 64_000_000, 10**8)
    except BadImage as error: return error.cause
check(bytes.fromhex({encoded().hex()!r}), 10**6, 10**6)
before = peak_kib()
print([cause(bytes.fromhex(image)) for image in {[png_bomb(9000).hex(), png_bomb(20000).hex(), jpeg_bomb().hex()]!r}])
print(peak_kib() - before < 20_000, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["too many pixels"] * 3)
    assert done.stderr.strip() == "True"


def test_what_is_no_image_is_refused() -> None:
    assert cause(b"") == "empty"
    for junk in (b"<html><body>Quota exceeded</body></html>", b"\0" * 5000, b"\xff\xd8", b"%PDF-1.4", b"GIF8"):
        assert cause(junk) == "not an image"
    assert cause(b"\xff\xd8\xff" + b"\0" * 5000) == "broken header"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}])
def test_every_cut_of_a_jpeg_is_refused(options: dict) -> None:
    image = encoded(**options)
    causes = {cause(image[:length]) for length in range(1, len(image), 17)}
    assert causes <= {"not an image", "broken header", "truncated", "corrupt"}
    assert cause(image[: len(image) // 2]) == cause(image[:-2]) == "truncated"


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP"])
def test_cuts_of_other_formats_are_refused(format: str) -> None:
    image = encoded("P", format)
    for length in range(1, len(image) * 9 // 10, 13):
        assert cause(image[:length]) in {"not an image", "truncated", "corrupt"}


def test_flipped_bits_that_derail_the_decoder_are_refused() -> None:
    """Pillow shows such images without a word. Where a single flip leaves a valid stream, nobody can tell."""
    image = encoded()
    rng = np.random.default_rng(0)
    scan = image.index(b"\xff\xda") + 20
    refused = silent = 0
    for _ in range(100):
        damaged = bytearray(image)
        for position in rng.integers(scan, len(image) - 2, size=20):
            damaged[position] ^= 1 << int(rng.integers(8))
        try:
            check(bytes(damaged), **CAPS)
        except BadImage:
            refused += 1
            with suppress(OSError, SyntaxError):
                shown(bytes(damaged))
                silent += 1
    assert refused >= 80
    assert silent >= 40


def with_stray_bytes(image: bytes, count: int) -> bytes:
    return image[:-2] + bytes(range(1, count + 1)) + image[-2:]


TABLES = encoded().index(b"\xff\xdb")  # where the header's second half begins


@pytest.mark.parametrize(
    "image",
    [
        with_stray_bytes(encoded(), 3),
        encoded()[:TABLES] + b"ab" + encoded()[TABLES:],
        encoded().replace(b"JFIF\0\1", b"JFIF\0\2", 1),
    ],
    ids=["before the end", "between headers", "version"],
)
def test_a_whole_picture_that_a_strict_decoder_complains_of_is_repaired(image: bytes) -> None:
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(image, "RGB")
    checked = check(image, **CAPS)
    assert checked.change == "repaired"
    assert_same_picture(checked, encoded())
    assert cause(image, max_pixels=60 * 80) == "too many pixels"


def test_many_stray_bytes_are_damage() -> None:
    assert cause(with_stray_bytes(encoded(), 40)) == "corrupt"


def test_a_crop_is_of_the_picture_as_it_is_stored() -> None:
    box = (10, 20, 30, 40)  # top, left, height, width
    checked = check(encoded(), **CAPS, crop=box)
    assert (checked.height, checked.width, checked.change) == (30, 40, "cropped")
    pixels = simplejpeg.decode_jpeg(checked.image, "RGB").astype(int)
    assert np.abs(pixels - shown(encoded())[10:40, 20:60]).mean() < 2
    turned = check(encoded(orientation=6), **CAPS, crop=box)
    assert (turned.height, turned.width, turned.change) == (40, 30, "cropped, turned")
    assert np.abs(np.rot90(pixels, -1) - simplejpeg.decode_jpeg(turned.image, "RGB")).mean() < 2
    beyond = check(encoded(), **CAPS, crop=(-5, 60, 200, 100))
    assert (beyond.height, beyond.width) == (61, 25)
    assert cause(encoded(), crop=(0, 90, 10, 10)) == "empty crop"


def test_a_turn_that_is_not_to_be_obeyed_leaves_the_bytes() -> None:
    image = encoded(orientation=6)
    assert check(image, **CAPS, upright=False) == Checked(image, 85, 61, None)


WORDS = (b"Jane Doe", b"2011:03:04 05:06:07", b"at home", b"35.6 N")


def with_words(**options: object) -> bytes:
    """A JPEG with EXIF, XMP, IPTC, two comments, and something behind its end."""
    exif = Image.Exif()
    exif[0x013B], exif[0x0132] = "Jane Doe", "2011:03:04 05:06:07"
    image = encoded(exif=exif, icc_profile=b"profile" * 9, **options)
    segments = b"".join(
        b"\xff" + bytes([marker]) + (len(text) + 2).to_bytes(2, "big") + text
        for marker, text in ((0xFE, b"at home"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0at home"),
                             (0xED, b"Photoshop 3.0\0at home"), (0xE2, b"MPF\0at home"))
    )  # fmt: skip
    end = image.rindex(b"\xff\xda")
    return image[:2] + segments + image[2:end] + b"\xff" * 3 + b"\xfe\0\x0835.6 N" + image[end:] + b"35.6 N, Jane Doe"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restart_marker_blocks", [0, 2])
def test_bared_images_keep_their_pixels_and_lose_all_words(progressive: bool, restart_marker_blocks: int) -> None:
    image = with_words(progressive=progressive, restart_marker_blocks=restart_marker_blocks)
    assert all(word in image for word in WORDS)
    checked = check(image, **CAPS, bare=True)
    assert checked.change == "bared"
    assert not any(word in checked.image for word in WORDS)
    assert (simplejpeg.decode_jpeg(checked.image) == simplejpeg.decode_jpeg(image)).all()
    assert Image.open(io.BytesIO(checked.image)).info["icc_profile"] == b"profile" * 9
    assert check(checked.image, **CAPS, bare=True).change is None
    assert check(image, **CAPS).image == image


def test_a_picture_that_no_jpeg_can_hold_is_a_bad_image() -> None:
    file = io.BytesIO()
    Image.new("RGB", (65_501, 2)).save(file, "PNG")
    assert cause(file.getvalue()) == "too long a side"


def test_a_damaged_png_is_refused() -> None:
    image = bytearray(encoded(format="PNG"))
    image[image.index(b"IDAT") + 40] ^= 1
    assert cause(bytes(image)) == "corrupt"


SEEDS = [encoded(), encoded("CMYK", orientation=3), encoded(orientation=6), encoded("P", "PNG"), encoded("P", "GIF")]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=6)), min_size=1, max_size=6),
)
def test_any_damage_ends_in_a_jpeg_or_a_bad_image(seed: bytes, edits: list[tuple[int, bytes]]) -> None:
    image = bytearray(seed)
    for position, data in edits:
        image[position : position + len(data)] = data
    try:
        checked = check(bytes(image), **CAPS)
    except BadImage:
        return
    assert simplejpeg.decode_jpeg(checked.image, "RGB").shape == (checked.height, checked.width, 3)
