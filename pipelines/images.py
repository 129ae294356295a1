"""Images as they come -> JPEGs that any strict decoder reads: checked once, while sharding, never again.

What is already an upright RGB or grey JPEG keeps its bytes. The rest is decoded and encoded anew, and said to be.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

JPEG_MAGIC = b"\xff\xd8\xff"
KEPT_COLOURS = ("YCbCr", "Gray")  # what every decoder turns into RGB alike
OTHER_FORMATS = ("PNG", "GIF", "BMP")
ORIENTATION = 0x0112
MAX_SIDE = 65_500  # pixels that libjpeg writes: JPEG_MAX_DIMENSION
PICTURE_SEGMENTS = (b"JFIF\0", b"Adobe", b"ICC_PROFILE\0")  # how the picture is to be shown
_COM, _EOI, _APPLICATIONS = 0xFE, 0xD9, range(0xE0, 0xF0)  # ITU-T T.81, table B.1
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # not those within a scan: stuffed bytes, restarts
TURN_MARKS = (b"Exif\0\0", b"tiff:Orientation")  # one of which stands in a JPEG that says how it lies (EXIF, XMP)
# Warnings of libjpeg that leave the picture whole: up to 16 bytes too many between two markers (more of them are what
# damage to the picture itself looks like), and a number of the format's version that it does not know.
HARMLESS = re.compile(r"^Corrupt JPEG data: (\d|1[0-6]) extraneous bytes before marker|^Warning: unknown JFIF revision")
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error)

Pixels = npt.NDArray[np.uint8]  # (height, width, 3) RGB

# EXIF orientation -> what shows the picture upright (CIPA DC-008, tag 0x0112). 1 and unknown values: as it is.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


class BadImage(ValueError):  # noqa: N818
    """Bytes that are no usable image. `cause` is one of the few phrases below, for counting."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Checked(NamedTuple):
    """A JPEG fit for a shard, its size in pixels, and why its bytes are not the upstream ones (None: they are)."""

    image: bytes
    width: int
    height: int
    change: str | None


def check(
    image: bytes,
    max_pixels: int,
    max_bytes: int,
    stored_short_side: int | None = None,
    crop: tuple[int, int, int, int] | None = None,
    upright: bool = True,
    bare: bool = False,
) -> Checked:
    """A JPEG that decodes without a warning, upright, in YCbCr or grey.

    Anything else is decoded and encoded as RGB JPEG of quality 95: other formats (transparency is dropped, the first
    frame counts), CMYK and RGB JPEGs, those whose picture is whole though a strict decoder complains ("repaired"), and
    pictures that an EXIF tag turns (the turn is applied, the tag is gone; without `upright` it is not obeyed). With
    `stored_short_side`, larger pictures are shrunk to that shorter side and encoded at quality 90. With `crop` (top,
    left, height, width, in pixels as they are stored), only that part is kept; what of it lies outside is left out.
    With `bare`, a JPEG whose picture is kept as it came loses what is written beside it ("bared").

    Raises BadImage: "empty", "too many bytes", "not an image", "broken header", "too many pixels" (from the header
    alone, before anything is allocated), "truncated", "corrupt", "empty crop", and "too long a side" for what cannot be
    a JPEG. Damage that still decodes without a complaint, as many single flipped bits do, cannot be seen here: the
    archives' checksums are for that.
    """
    if not image:
        raise BadImage("empty")
    if len(image) > max_bytes:
        raise BadImage("too many bytes")
    pixels, change = (_jpeg if image.startswith(JPEG_MAGIC) else _pillow)(image, max_pixels)
    changes = [change] if change else []
    if crop is not None:
        top, left, height, width = crop
        pixels = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
        if not pixels.size:
            raise BadImage("empty crop")
        changes.append("cropped")
    turn = UPRIGHT.get(_orientation(image) or 1) if upright else None
    if turn:
        pixels = turn(pixels)
        changes.append("turned")
    height, width = pixels.shape[:2]
    quality, chroma = 95, "444"
    if stored_short_side is not None and min(height, width) > stored_short_side:
        quality, chroma = 90, "420"
        scale = stored_short_side / min(height, width)
        height, width = round(height * scale), round(width * scale)
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        changes.append("shrunk")
    if not changes:
        kept = bared(image) if bare else image
        return Checked(kept, width, height, None if kept == image else "bared")
    if max(height, width) > MAX_SIDE:
        raise BadImage("too long a side")
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling=chroma)
    return Checked(jpeg, width, height, ", ".join(changes))


def bared(jpeg: bytes) -> bytes:
    """A sound JPEG without what is written in it beside its picture: who took it, when, where, and with what words.

    That is, EXIF, XMP, IPTC and all other application segments but JFIF's, Adobe's and colour profiles, comments, and
    what follows the picture. No pixel changes.
    """
    kept, position = [jpeg[:2]], 2
    while match := _MARKER.search(jpeg, position):
        kept.append(jpeg[position : match.start()])  # of the picture itself, between two of its scans
        marker = jpeg[match.end() - 1]
        if marker == _EOI:
            break
        end = match.end() + int.from_bytes(jpeg[match.end() : match.end() + 2], "big")
        body = jpeg[match.end() : end]
        is_words = marker == _COM or (marker in _APPLICATIONS and not body[2:].startswith(PICTURE_SEGMENTS))
        kept.append(b"" if is_words else b"\xff" + bytes([marker]) + body)
        position = end
    return b"".join(kept) + b"\xff\xd9"


def _jpeg(image: bytes, max_pixels: int) -> tuple[Pixels, str | None]:
    """Pixels and, if the bytes are not kept as they are, why not. The decoder is strict: warnings are errors."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError as error:
        if HARMLESS.search(str(error)):
            return _pillow(image, max_pixels, ("JPEG",))[0], "repaired"
        raise BadImage("broken header") from None
    _cap(height * width, max_pixels)
    try:
        pixels = simplejpeg.decode_jpeg(image, "RGB")
    except ValueError as error:
        if HARMLESS.search(str(error)):
            return _pillow(image, max_pixels, ("JPEG",))[0], "repaired"
        raise BadImage("truncated" if "Premature end of JPEG" in str(error) else "corrupt") from None
    return pixels, None if colours in KEPT_COLOURS else colours.lower()


def _pillow(image: bytes, max_pixels: int, formats: tuple[str, ...] = OTHER_FORMATS) -> tuple[Pixels, str]:
    """Pixels and the name of the format. Pillow's own bound, 179 million pixels, holds beside `max_pixels`."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(image), formats=formats) as opened:
            _cap(opened.width * opened.height, max_pixels)
            if opened.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
                grey = (np.asarray(opened) >> 8).astype(np.uint8)
                return np.stack([grey] * 3, axis=-1), str(opened.format).lower()
            return np.asarray(opened.convert("RGB")), str(opened.format).lower()
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        raise BadImage("too many pixels" if bomb else "not an image") from None
    except BadImage:
        raise
    except PILLOW_ERRORS as error:
        raise BadImage("truncated" if "truncated" in str(error).lower() else "corrupt") from None


def _orientation(image: bytes) -> int | None:
    """The EXIF tag, or None. Where it cannot be read there is no turn to apply: viewers do the same."""
    if image.startswith(JPEG_MAGIC) and not any(mark in image for mark in TURN_MARKS):
        return None  # most images: a search costs a fraction of parsing all segments
    try:
        formats = ("JPEG", *OTHER_FORMATS)
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(image), formats=formats) as opened:
            orientation = opened.getexif().get(ORIENTATION)
            return orientation if isinstance(orientation, int) else None
    except (*PILLOW_ERRORS, Image.DecompressionBombError):
        return None


def _cap(pixels: int, max_pixels: int) -> None:
    if pixels > max_pixels:
        raise BadImage("too many pixels")
