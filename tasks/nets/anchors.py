"""SSD's anchors (its "default boxes"): shapes for each of six maps, laid on the cells of a grid.

Liu et al. 2015, arXiv 1512.02325, section 2.2. Two published sets: TensorFlow's detection code has 1,917 on images of
300 px, for MobileNet and Inception V2, and the authors' own, for VGG, 8,732:
https://github.com/tensorflow/models/blob/master/research/object_detection/anchor_generators/multiple_grid_anchor_generator.py
https://github.com/weiliu89/caffe/blob/ssd/examples/ssd/ssd_coco.py

    map at 300 px       MobileNet, Inception V2                          VGG
              side   shapes  scale        anchors         side   shapes  scale        anchors
    1           19        3  .1 and .2      1,083           38        4  .07            5,776
    2           10        6  .35              600           19        6  .15            2,166
    3            5        6  .5               150           10        6  .33              600
    4            3        6  .65               54            5        6  .51              150
    5            2        6  .8                24            3        4  .69               36
    6            1        6  .95                6            1        4  .87                4

Sizes are in units of the image's side. No anchor is cut at the image's edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Shape(NamedTuple):
    """An anchor's size."""

    width: float
    height: float


class Level(NamedTuple):
    """The anchors of one map. step: pixels of the image from cell to cell; None for the image's side over the map's."""

    shapes: tuple[Shape, ...]
    step: int | None


def tensorflow_levels() -> tuple[Level, ...]:
    """Scales from .2 to .95 in equal steps; every ratio up to 3, and a square of the mean scale with the next map's.

    The first map has three: a square of .1, and .2 in the ratios 2 and 1/2 ("reduce_boxes_in_lowest_layer").
    """
    scales = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
    levels = [Level((_shape(0.1, 1), _shape(0.2, 2), _shape(0.2, 1 / 2)), None)]
    for scale, larger in pairwise(scales[1:]):
        ratios = [_shape(scale, ratio) for ratio in (1, 2, 1 / 2, 3, 1 / 3)]
        levels.append(Level((*ratios, _shape(math.sqrt(scale * larger), 1)), None))
    return tuple(levels)


def caffe_levels() -> tuple[Level, ...]:
    """A square, one of the mean scale with the next map's, and ratios of 2 or of 2 and 3; cells by the net's strides.

    At 300 px a grid of 38 cells of 8 px ends 4 px beyond the image: the strides are the net's, rounded up at its pools.
    """
    scales = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
    steps = (8, 16, 32, 64, None, None)  # the last two maps come of convolutions without padding: 100 and 300 px
    levels = []
    for index, step in enumerate(steps):
        scale, larger = scales[index : index + 2]
        ratios = (2, 1 / 2) if index in (0, 4, 5) else (2, 1 / 2, 3, 1 / 3)
        squares = _shape(scale, 1), _shape(math.sqrt(scale * larger), 1)
        levels.append(Level((*squares, *(_shape(scale, ratio) for ratio in ratios)), step))
    return tuple(levels)


@lru_cache(maxsize=16)
def anchors(levels: tuple[Level, ...], sides: Sequence[int], input_size: int) -> npt.NDArray[np.float32]:
    """Boxes (A, 4) of square images of `input_size` px whose maps have these sides.

    They go map by map, row by row, cell by cell and shape by shape, each around the middle of its cell.
    """
    boxes = []
    for level, side in zip(levels, sides, strict=True):
        step = 1 / side if level.step is None else level.step / input_size
        middles = (np.arange(side) + 0.5) * step
        y, x = np.meshgrid(middles, middles, indexing="ij")
        centres = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
        halves = np.array(level.shapes)[None] / 2
        boxes.append(np.concatenate([centres - halves, centres + halves], axis=-1).reshape(-1, 4))
    together = np.concatenate(boxes).astype(np.float32)
    together.setflags(write=False)
    return together


@torch.compiler.assume_constant_result
def anchors_on(device: torch.device, levels: tuple[Level, ...], sides: tuple[int, ...], input_size: int) -> Tensor:
    """`anchors` on a device, not to be written to: to copy them there at each step would have each step wait for it."""
    return _on(device, levels, sides, input_size)


@lru_cache(maxsize=16)
def _on(device: torch.device, levels: tuple[Level, ...], sides: tuple[int, ...], input_size: int) -> Tensor:
    with torch.inference_mode(False):  # else what evaluation made first could not be trained with
        return torch.tensor(anchors(levels, sides, input_size), device=device)


def _shape(scale: float, ratio: float) -> Shape:
    """Of a scale's area, `ratio` times as wide as high."""
    return Shape(scale * math.sqrt(ratio), scale / math.sqrt(ratio))
