"""The random crops that SSD trains with, and boxes as they are seen through a crop.

Crops are drawn as by `ssd_random_crop` in the code behind the paper's detectors, boxes stay by the rule of the SSD
paper, Liu et al. 2015, arXiv 1512.02325, section 2.2:
https://github.com/tensorflow/models/blob/master/research/object_detection/core/preprocessor.py

A crop is (top, left, height, width) in pixels of the stored image, a box (x, y, width, height) in the same pixels,
corners are (x1, y1, x2, y2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.augment import Bounds, Floats, Ints, draw_crops

KEEP_WHOLE = 0.15  # of the images; `random_coef`
ATTEMPTS = 100  # `max_attempts` of `_strict_random_crop_image`
OBJECT_CROP_UNIFORMS = 4 * ATTEMPTS + 2
MIN_AREA = 1.0  # square pixels of an object that counts; `kMinArea` of sample_distorted_bounding_box_op.cc
OVERHANG = 1.0  # pixels that a box may lie beyond its image, as some of COCO's do


def draw_object_crops(
    uniforms: Floats,
    heights: Ints,
    widths: Ints,
    boxes: Sequence[npt.NDArray[np.float64]],
    bounds: Bounds,
    min_shares: Sequence[float],
) -> Ints:
    """(N, 4) int64 crops, each within its image.

    uniforms: (N, OBJECT_CROP_UNIFORMS) in [0, 1). heights, widths: (N,) in pixels. boxes: of each image (M, 4), sides
    at least 0, M any number. bounds: of areas and aspects. min_shares: one or more in [0, 1]. TensorFlow has 0, .1,
    .3, .5, .7, .9 and 1, within areas of .1 to 1 and aspects of .5 to 2.

    An image stays whole with probability KEEP_WHOLE. Else one of `min_shares` is drawn, and of ATTEMPTS crops, each of
    a size and at a place of its own, the first is taken that has at least this share of an object's area inside; the
    image is taken whole if none has. As in TensorFlow, an object's area is that within the image, a share of 0 is met
    by any crop, also one that shows no object, and so is any share in an image without boxes; one that has boxes, but
    all of less than MIN_AREA, stays whole.

    Divergences: TensorFlow rounds the corners of boxes down to whole pixels first, and see `draw_crops`. The SSD paper
    demands a share of the union of crop and object, not of the object.
    """
    keep, choice, attempts = uniforms[:, 0], uniforms[:, 1], uniforms[:, 2:].reshape(-1, 4)
    crops = draw_crops(attempts, heights.repeat(ATTEMPTS), widths.repeat(ATTEMPTS), bounds).reshape(-1, ATTEMPTS, 4)
    whole = np.stack([np.zeros_like(heights), np.zeros_like(widths), heights, widths], axis=1)
    # The whole image is what an attempt without a crop within the bounds gives; to draw just its sides is as good as
    # impossible, unless it has few pixels.
    allowed = (crops != whole[:, None]).any(axis=2) & (keep >= KEEP_WHOLE)[:, None]
    demanded = np.asarray(min_shares, np.float64)[(choice * len(min_shares)).astype(np.int64)]
    for image, objects in enumerate(boxes):
        if len(objects):
            allowed[image] &= _show_an_object(crops[image], objects, whole[image, 2:], demanded[image])
    first, found = allowed.argmax(axis=1), allowed.any(axis=1)
    return np.where(found[:, None], crops[np.arange(len(crops)), first], whole)


def _show_an_object(crops: Ints, boxes: npt.NDArray[np.float64], size: Ints, share: float) -> npt.NDArray[np.bool_]:
    """(A,) of crops (A, 4): whether one of boxes (M, 4) has that share of its area inside. size: height and width."""
    low = boxes[:, :2].clip(0, size[::-1])
    high = (boxes[:, :2] + boxes[:, 2:]).clip(0, size[::-1])
    areas = (high - low).prod(axis=1)
    start = crops[:, None, [1, 0]]
    end = start + crops[:, None, [3, 2]]
    inside = (np.minimum(high, end) - np.maximum(low, start)).clip(min=0).prod(axis=2)
    return ((inside >= share * areas) & (areas >= MIN_AREA)).any(axis=1)


def seen(
    boxes: npt.NDArray[np.float64], crop: Ints, flipped: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Boxes (M, 4) through a crop (4,): corners (M, 4) in [0, 1] of the crop, and which boxes are kept, (M,).

    Corners are cut at the crop's edges, and mirrored if the crop is then turned left to right. A box is kept if its
    centre lies in the crop or on its edge, along each axis; or if, along it, no more of the box than OVERHANG lies
    beyond either edge. So the whole image keeps all boxes, those of one pixel just beyond its edge too; elsewhere the
    second rule speaks of boxes of less than two pixels alone. Kept boxes may have no area.

    Divergence: TensorFlow keeps the boxes that have at least the share of their area inside that was drawn for the
    crop, wherever their centres are.
    """
    start, size = crop[[1, 0]], crop[[3, 2]]
    low = boxes[:, :2] - start
    high = boxes[:, :2] + boxes[:, 2:] - start
    centre = (low + high) / 2
    central = (centre >= 0) & (centre <= size)
    along_x, along_y = (central | ((low >= -OVERHANG) & (high <= size + OVERHANG))).T
    corners = np.concatenate([low / size, high / size], axis=1).clip(0, 1)
    if flipped:
        corners[:, [0, 2]] = 1 - corners[:, [2, 0]]
    return corners.astype(np.float32), along_x & along_y


def in_pixels(corners: Tensor, crops: Tensor) -> Tensor:
    """Where corners (N, K, 4) in [0, 1] of crops (N, 4), unflipped, lie in the stored images: float64, in pixels."""
    crops = crops.to(corners.device, torch.float64)[:, None]
    return corners * crops[..., [3, 2, 3, 2]] + crops[..., [1, 0, 1, 0]]
