"""What nets of inception modules are made of: convolutions in a row, with BatchNorm and ReLU, and branches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.nets.spec import NetSpec

LAST_LAYER_STDDEV = 0.01


class Conv(NamedTuple):
    """A square convolution, BatchNorm, ReLU."""

    kernel: int
    stride: int
    depth: int


class MaxPool(NamedTuple):
    """A max pool of 3x3."""

    stride: int


class Branches(nn.ModuleDict):
    """Modules that share their input: (N, C, H, W) -> their outputs joined by channel."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.values()], dim=1)


class PaddedConv(nn.Conv2d):
    """A convolution without bias that pads by TensorFlow's "same", or by half its kernel on every side.

    They differ where an even side is halved: "same" then puts one pixel more behind than before.
    """

    def __init__(
        self, in_channels: int, depth: int, kernel: int, stride: int = 1, groups: int = 1, *, same: bool
    ) -> None:
        super().__init__(in_channels, depth, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        assert stride == 1 or (stride == 2 and kernel > 1)
        self.same = same and stride == 2

    def forward(self, maps: Tensor) -> Tensor:
        if not self.same:
            return super().forward(maps)
        half = self.kernel_size[0] // 2
        height, width = maps.shape[2:]
        before = half - (width + 1) % 2, half - (height + 1) % 2
        padded = F.pad(maps, (before[0], half, before[1], half))
        return F.conv2d(padded, self.weight, None, self.stride, groups=self.groups)


def chain(in_channels: int, layers: Sequence[Conv], spec: NetSpec, *, same: bool) -> nn.Sequential:
    """Convolutions one after the other, padded as `PaddedConv` says, each with BatchNorm and ReLU."""
    norm = partial(nn.BatchNorm2d, eps=spec.batch_norm_epsilon, momentum=1.0 - spec.batch_norm_decay)
    parts: list[nn.Module] = []
    for kernel, stride, depth in layers:
        parts += [PaddedConv(in_channels, depth, kernel, stride, same=same), norm(depth), nn.ReLU(inplace=True)]
        in_channels = depth
    return nn.Sequential(*parts)


def initialise(body: nn.Module, classifier: nn.Linear) -> None:
    """He's, from each layer's inputs (arXiv 1502.01852); the last layer's weights near 0, its biases 0."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.normal_(classifier.weight, std=LAST_LAYER_STDDEV)
    nn.init.zeros_(classifier.bias)
