"""One JPEG -> one square crop of it, written where the batch wants it.

The decoder is strict: a damaged image is an error, never a picture with a grey lower half. Decoding, resizing and
their memory traffic run outside Python's global lock, so that threads scale; libjpeg's scaled decoding is not used:
it saves little (entropy decoding is most of the work) and costs up to 25 dB.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from torch.nn.functional import interpolate

# The reader's threads decode an image each: OpenCV's own would only compete with them.
cv2.setNumThreads(1)


def decode_crop(jpeg: bytes | memoryview, box: Sequence[int], antialias: bool, out: npt.NDArray[np.uint8]) -> None:
    """Decode a JPEG and write the crop `box` of it, resized, into `out` (size, size, 3) as RGB.

    box, antialias: as in `crop_resized`. Raises ValueError for anything but a whole, sound JPEG that contains the box.
    """
    crop_resized(simplejpeg.decode_jpeg(jpeg, "RGB"), box, antialias, out)


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
