"""Random crop, flip and colour of training images: what is drawn, and what it does to the pixels.

Drawing is NumPy on the host, a batch at a time, from uniform numbers that the reader derives from each sample's place
in the stream. Crops are cut while decoding; flip, colour and normalisation are batched tensor operations that run
where the net runs, so that pixels travel as uint8.

The rules are those of the authors' code, slim's `inception_preprocessing` in its default fast mode:
https://github.com/tensorflow/models/blob/master/research/slim/preprocessing/inception_preprocessing.py
The paper (section 3.2) has "less aggressive" small crops but gives no bound: `Bounds.min_area` is a choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

CROP_ATTEMPTS = 10
CROP_UNIFORMS = 2 * CROP_ATTEMPTS + 2
DISTORTION_UNIFORMS = 4
FLIP = 0  # which of an image's distortions says whether it is flipped


@dataclass(frozen=True)
class Bounds:
    """Within which crops and colours are drawn. Areas are shares of the image, aspects width / height."""

    min_area: float
    max_area: float
    min_aspect: float
    max_aspect: float
    flip: float  # probability
    brightness: float  # largest shift either way, of pixels in [0, 1]
    min_saturation: float
    max_saturation: float
    # Of an object's area, that a crop has to show; one is drawn for each image. None: crops are drawn without a look at
    # what is there. See `tasks.box_crops`.
    min_object_shares: tuple[float, ...] | None = None


def draw_crops(uniforms: Floats, heights: Ints, widths: Ints, bounds: Bounds) -> Ints:
    """(N, 4) int64 boxes (top, left, height, width) in pixels, each within its image.

    uniforms: (N, CROP_UNIFORMS) in [0, 1), or (N, 2 * attempts + 2) for other numbers of attempts. heights, widths:
    (N,) in pixels.

    As TensorFlow's `sample_distorted_bounding_box`: the aspect is uniform in its bounds, then the height is uniform
    between those of the smallest and the largest crop of that aspect that is allowed and fits. An image for which
    none of CROP_ATTEMPTS draws gives a crop within the bounds is taken whole. Since the height is drawn among those
    that fit, a draw fails only where the image is far longer than the aspects allow, or by rounding: 10 attempts are
    as good as TensorFlow's 100. Divergences: slim also asks that a tenth of the object is in the crop, which, with
    the whole image as the object, makes its `min_area` of 0.05 one of 0.1; TensorFlow never draws the last row and
    column of the places that a crop can have.
    """
    tall, wide = heights[:, None], widths[:, None]
    pixels = tall * wide
    aspects = bounds.min_aspect + (bounds.max_aspect - bounds.min_aspect) * uniforms[:, 0:-2:2]
    lowest = np.rint(np.sqrt(bounds.min_area * pixels / aspects)).clip(min=1)
    highest = np.rint(np.sqrt(bounds.max_area * pixels / aspects))
    highest = np.minimum(np.minimum(highest, np.floor((wide + 0.5) / aspects)), tall)
    crop_heights = lowest + np.floor(uniforms[:, 1:-2:2] * (highest - lowest + 1))
    crop_widths = np.rint(crop_heights * aspects)
    areas = crop_heights * crop_widths
    allowed = (bounds.min_area * pixels <= areas) & (areas <= bounds.max_area * pixels)
    allowed &= (lowest <= highest) & (crop_widths >= 1) & (crop_widths <= wide)

    samples = np.arange(len(uniforms))
    first, found = allowed.argmax(axis=1), allowed.any(axis=1)
    crop_height = np.where(found, crop_heights[samples, first], heights)
    crop_width = np.where(found, crop_widths[samples, first], widths)
    top = np.floor(uniforms[:, -2] * (heights - crop_height + 1))
    left = np.floor(uniforms[:, -1] * (widths - crop_width + 1))
    return np.stack([top, left, crop_height, crop_width], axis=1).astype(np.int64)


def central_crops(heights: Ints, widths: Ints, fraction: float) -> Ints:
    """(N, 4) int64 boxes (top, left, height, width): the central part of each side, as `tf.image.central_crop`."""
    tops = ((heights - heights * fraction) / 2).astype(np.int64)
    lefts = ((widths - widths * fraction) / 2).astype(np.int64)
    return np.stack([tops, lefts, heights - 2 * tops, widths - 2 * lefts], axis=1)


def draw_distortions(uniforms: Floats, bounds: Bounds) -> npt.NDArray[np.float32]:
    """(N, 4) float32: flip (0 or 1), brightness shift, saturation factor, brightness before saturation (0 or 1).

    uniforms: (N, DISTORTION_UNIFORMS) in [0, 1). Divergence: the order of the two colour distortions is drawn, as in
    the Inception code that slim's comes from; slim's own fast mode always has brightness first.
    """
    flip, shift, factor, order = uniforms.T
    saturations = bounds.max_saturation - bounds.min_saturation
    columns = (
        flip < bounds.flip,
        bounds.brightness * (2 * shift - 1),
        bounds.min_saturation + saturations * factor,
        order < 0.5,
    )
    return np.stack(columns, axis=1).astype(np.float32)


def normalise(images: Tensor) -> Tensor:
    """(N, 3, H, W) float32 in [-1, 1], channels last in memory. images: (N, H, W, 3) uint8."""
    return (images.permute(0, 3, 1, 2) / 127.5).sub_(1)


def distort(images: Tensor, distortions: Tensor) -> Tensor:
    """What `normalise` gives, after flip, brightness and saturation of each image.

    images: (N, H, W, 3) uint8. distortions: (N, 4), see `draw_distortions`. The shift is added to pixels in [0, 1];
    saturation is that of HSV, scaled and clipped as by `tf.image.adjust_saturation`; the result is clipped to [0, 1],
    once, and mapped to [-1, 1]. The same operations run whatever was drawn: nothing waits for the device.
    """
    flip, shift, factor, shift_first = distortions[:, :, None, None, None].unbind(1)
    images = torch.where(flip > 0, images.flip(2), images)
    early = shift * shift_first
    pixels = (images.permute(0, 3, 1, 2) / 255).add_(early)
    red, green, blue = pixels.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # At fixed hue and value, saturation = chroma / value scales each channel's distance to the value. It ends at 1,
    # that is at chroma = value. A value below 0, which an early shift may give, ends at most at 0: black.
    smallest = torch.finfo(chroma.dtype).tiny
    gain = torch.minimum(factor, value / chroma.clamp_(min=smallest))
    pixels.sub_(value).mul_(gain).add_(value + (shift - early))
    return pixels.clamp_(0, 1).mul_(2).sub_(1)
