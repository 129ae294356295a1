"""Layers without BatchNorm, scaled until each makes as much of its maps as it is given.

Layer-sequential unit variance: Mishkin and Matas 2015, arXiv 1511.06422. Their start is orthogonal, and they scale each
layer several times; here it is what the layers have, once.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGES, GRID = 8, 8


@torch.no_grad()
def scale_to_unit_variance(layers: Iterable[nn.Module], maps: Tensor) -> None:
    """Scale each convolution among layers that follow one another: what it makes of `maps`, and of what those before it
    have made of them, has variance 1. One that makes the same of all stays as it is.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and (deviation := layer(maps).std()) > 0:
            for values in (layer.weight, layer.bias):
                if values is not None:
                    values.div_(deviation)
        maps = layer(maps)


def soft_noise(size: int) -> Tensor:
    """(8, 3, size, size) in [-1, 1], the same in every process: random grids of 8x8 colours, stretched."""
    grids = torch.rand(IMAGES, 3, GRID, GRID, generator=torch.Generator().manual_seed(0))
    return F.interpolate(grids * 2 - 1, size=size, mode="bilinear")
