"""What the look-alikes share: pictures as files, odd ones too, and archives whose bytes depend on their members."""

from __future__ import annotations

import io
import tarfile
import zipfile
from typing import BinaryIO

import simplejpeg
from PIL import Image

from pipelines.samples.drawing import Picture

ODD_KINDS = ("grey", "cmyk", "turned", "png")  # what a few upstream files are, under the name of a plain JPEG
_CODES = {"grey": "L", "cmyk": "CMYK"}


def encode(picture: Picture, kind: str = "jpeg", quality: int = 90, comments: tuple[bytes, ...] = ()) -> bytes:
    """The picture as a file: "jpeg" or one of `ODD_KINDS`; "turned" is shown upright by viewers that obey EXIF.

    comments: become COM segments of their own, right behind the JPEG's first marker.
    """
    if kind == "jpeg":
        data = simplejpeg.encode_jpeg(picture, quality, colorsubsampling="420")
    else:
        data = _by_pillow(picture, kind, quality)
    segments = b"".join(b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text for text in comments)
    return data[:2] + segments + data[2:] if segments else data


def _by_pillow(picture: Picture, kind: str, quality: int) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(picture)
    if kind == "png":
        image.save(file, "PNG")
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # "turn by 90 degrees clockwise to show"
        image.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=quality, exif=exif)
    else:
        image.convert(_CODES[kind]).save(file, "JPEG", quality=quality)
    return file.getvalue()


def open_tar(file: BinaryIO) -> tarfile.TarFile:
    """A tar to be written as upstream's are."""
    return tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT)


def add_to_tar(tar: tarfile.TarFile, name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    """Add a member of time, owner and group 0."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    tar.addfile(info, io.BytesIO(data))


def add_to_zip(archive: zipfile.ZipFile, name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
    """Add a member of the earliest time that a zip can state."""
    info = zipfile.ZipInfo(name)
    info.compress_type, info.external_attr = method, 0o644 << 16
    archive.writestr(info, data)


def check_ranges(sample: str, **values: tuple[int, int, int]) -> None:
    """Pass if each (value, lowest, highest) is in its range. Raises ValueError that names the option."""
    for name, (value, low, high) in values.items():
        if not low <= value <= high:
            raise ValueError(f"sample {sample}: {name} {value} is not in {low}..{high}")
