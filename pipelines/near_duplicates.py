"""Copies of an image in other sizes and qualities, found by a perceptual hash."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

CHUNK = 512  # hashes that are compared with all others at once

Hashes = npt.NDArray[np.uint64]


def phash(image: bytes) -> np.uint64:
    """The perceptual hash of an upright JPEG: 64 bits, of which copies in other sizes and qualities share nearly all.

    The DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), and
    pHash.org: grey, 32 x 32 pixels, DCT; which of the 8 x 8 lowest frequencies but the constants exceed their median.
    Without pHash's blur: shrinking by area does as much.
    """
    grey = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    assert grey is not None
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[1:9, 1:9].ravel()
    return np.packbits(low > np.median(low)).view(np.uint64)[0]


def near(hashes: Hashes, others: Hashes, bits: int) -> npt.NDArray[np.bool_]:
    """Which of `hashes` differ from any of `others` in at most so many bits. Memory: CHUNK rows of all pairs."""
    is_near = np.zeros(len(hashes), dtype=np.bool_)
    for start in range(0, len(hashes), CHUNK):
        rows = slice(start, start + CHUNK)
        is_near[rows] = (np.bitwise_count(hashes[rows, None] ^ others[None]) <= bits).any(axis=1)
    return is_near
