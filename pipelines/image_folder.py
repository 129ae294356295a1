"""A folder of images of any origin: which there are, what numbers they go by, and their pixels."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipelines.images import JPEG_MAGIC, MAX_SIDE, PILLOW_ERRORS, BadImage, Pixels, check

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
OTHER_FORMATS = ("PNG", "BMP", "WEBP")
MAX_PIXELS, MAX_BYTES = 100_000_000, 2**30
MAX_NUMBER = 2**63 - 1


class Picture(NamedTuple):
    """An image file. name: its path in the folder. drawn: that of a JPEG of it, in another folder."""

    path: Path
    number: int
    name: str
    drawn: str


def find_pictures(folder: Path) -> list[Picture]:
    """The images in a folder at any depth, by their paths in it, but for what is hidden: names that begin with a dot.

    Raises ValueError where there are none, or two that would be drawn as the same.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    paths = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    seen = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    names = sorted(path.as_posix() for path in seen if path.suffix.lower() in SUFFIXES)
    if not names:
        raise ValueError(f"{folder} holds no image: no file in it ends in {', '.join(SUFFIXES)}")
    short = [Path(name).with_suffix(".jpg").as_posix() for name in names]
    uses = Counter(short)
    drawn = [f"{long}.jpg" if uses[name] > 1 else name for long, name in zip(names, short, strict=True)]  # a.jpg, a.png
    name, count = Counter(drawn).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{folder}: {count} images would be drawn as {name}; rename one of them")
    rows = zip(names, numbers(names), drawn, strict=True)
    return [Picture(folder / name, number, name, jpeg) for name, number, jpeg in rows]


def numbers(names: Sequence[str]) -> list[int]:
    """The number that each name ends with before its suffix, as COCO's do, if all do and differ; else 1, 2, ..."""
    ends = [re.search("[0-9]+$", Path(name).stem) for name in names]
    found = [int(end[0]) for end in ends if end]
    its_own = len(set(found)) == len(names) and max(found) <= MAX_NUMBER
    return found if its_own else [*range(1, len(names) + 1)]


def read_pixels(path: Path) -> Pixels:
    """An image file as (height, width, 3) uint8 RGB. Raises ValueError that names it where it is no whole image.

    JPEGs are checked and decoded as those of the shards, see `pipelines.images.check`, but for their EXIF orientation,
    which is not obeyed. In other formats white is what shows through; of several frames the first counts.
    """
    content = path.read_bytes()
    try:
        if content.startswith(JPEG_MAGIC):
            jpeg = check(content, MAX_PIXELS, MAX_BYTES, upright=False).image
            pixels: Pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
            return pixels
        return _pixels(content)
    except BadImage as error:
        raise ValueError(f"{path}: {error.cause}") from None


def _pixels(content: bytes) -> Pixels:
    _ask(len(content) > 0, "empty")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=OTHER_FORMATS) as image:
            _ask(image.width * image.height <= MAX_PIXELS, "too many pixels")
            _ask(max(image.size) <= MAX_SIDE, "too long a side")  # for the JPEG that is drawn of it
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
                return np.stack([(np.asarray(image) >> 8).astype(np.uint8)] * 3, axis=-1)
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                return np.array(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
            return np.array(image.convert("RGB"))
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except PILLOW_ERRORS as error:
        raise BadImage("truncated" if "truncated" in str(error).lower() else "corrupt") from None


def _ask(fit: bool, cause: str) -> None:
    if not fit:
        raise BadImage(cause)
