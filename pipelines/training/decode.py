"""One JPEG -> one square crop of it, written where the batch wants it.

The decoder is strict: damage that it meets is an error, never a picture with a grey lower half. It stops below the
crop. (What is above and beside it has to be read to get there; what shards hold was decoded whole on its way into them,
and they have digests.) libjpeg's scaled decoding is not used: it saves little, since entropy decoding is most of the
work, and costs up to 25 dB. Decoding, resizing and their memory traffic run outside Python's global lock, so that
threads scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from torch.nn.functional import interpolate

# The reader's threads decode an image each: OpenCV's own would only compete with them.
cv2.setNumThreads(1)

MCU_ROWS = 16  # of pixels that are coded together, at most, with the subsamplings in use: ITU-T T.81, A.2
_SEQUENTIAL = (0xC0, 0xC1)  # SOF0 and SOF1: the header of a picture whose rows come from top to bottom
_UNSUITED = (0xC2, 0xDA, 0xDD)  # SOF2, a progressive one's; SOS, after which there is none; DRI, for markers in between
# What libjpeg says at the end of a file whose picture is said to be shorter than it is, if all went well before.
_REST = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")


def decode_crop(jpeg: bytes | memoryview, box: Sequence[int], antialias: bool, out: npt.NDArray[np.uint8]) -> None:
    """Decode a JPEG and write the crop `box` of it, resized, into `out` (size, size, 3) as RGB.

    box, antialias: as in `crop_resized`. Raises ValueError for anything but a whole JPEG that contains the box and is
    sound as far as the box goes.
    """
    image = _upper_rows(jpeg, box)
    crop_resized(simplejpeg.decode_jpeg(jpeg, "RGB") if image is None else image, box, antialias, out)


def _upper_rows(jpeg: bytes | memoryview, box: Sequence[int]) -> npt.NDArray[np.uint8] | None:
    """A picture down to the box's lower edge or further, as it is in the whole; None where it has to be decoded whole.

    That is where little would be saved, where the box is not in it, and where it is damaged or coded in another way.
    """
    place = _frame(jpeg)
    if place is None:
        return None
    rows, columns = (int.from_bytes(jpeg[at : at + 2], "big") for at in (place, place + 2))
    top, left, height, width = box
    needed = -(-(top + height + 2) // MCU_ROWS) * MCU_ROWS  # a row of colour below it takes part in its last ones
    if not (0 <= top < top + height and needed <= rows - MCU_ROWS and 0 <= left < left + width <= columns):
        return None
    shorter = bytearray(jpeg)
    shorter[place : place + 2] = needed.to_bytes(2, "big")
    pixels = np.empty((needed, columns, 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(shorter, "RGB", buffer=pixels)
    except ValueError as error:
        return pixels if _REST.fullmatch(str(error)) else None
    return pixels


def _frame(jpeg: bytes | memoryview) -> int | None:
    """Where a sequential JPEG without restart markers says its height, and then its width, in two bytes each."""
    position = 2
    while position + 9 <= len(jpeg) and jpeg[position] == 0xFF and jpeg[position + 1] not in _UNSUITED:
        if jpeg[position + 1] in _SEQUENTIAL:
            return position + 5
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return None


def crop_resized(image: npt.NDArray[np.uint8], box: Sequence[int], antialias: bool, out: npt.NDArray[np.uint8]) -> None:
    """Write the crop `box` of an image (H, W, 3), resized, into `out` (size, size, 3): what a net sees of a picture.

    box: (top, left, height, width) in pixels. Its aspect is not kept. The resize is bilinear with half-pixel centres:
    without antialias it reads four pixels whatever the scale, as the authors' TensorFlow code did (whose grid was
    aligned at the pixels' corners instead, up to half a pixel away); with it, the filter grows with the scale, as in
    PIL. Raises ValueError for a box that is not within the image.
    """
    assert out.flags.c_contiguous, "OpenCV would write into a copy"
    top, left, height, width = box
    rows, columns = image.shape[:2]
    if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
        raise ValueError(f"the crop {tuple(box)} is not within the image of {rows} x {columns} pixels")
    crop = image[top : top + height, left : left + width]
    size = len(out)
    if antialias and max(height, width) > size:
        pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]
        resized = interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        out[...] = resized[0].permute(1, 2, 0).numpy()
    else:  # nothing is lost between the pixels of a crop that does not shrink
        cv2.resize(crop, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)
