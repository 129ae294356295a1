"""The depthwise 3x3 convolution, with a way round the one case that torch runs slowly on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight


class DepthwiseConv(nn.Conv2d):
    """One 3x3 filter for each channel, padded by 1, without bias: (N, C, H, W) -> (N, C, ceil(H / s), ceil(W / s)).

    Results are torch's own. In bfloat16 on a CPU the gradient of the input under stride 2 is computed another way:
    oneDNN leaves that one to its reference code, which takes a third of MobileNet's whole training step.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.stride == (2, 2) and images.dtype == torch.bfloat16 and images.device.type == "cpu":
            output: Tensor = Stride2Depthwise.apply(images, self.weight.to(torch.bfloat16))
            return output
        return super().forward(images)


class Stride2Depthwise(torch.autograd.Function):
    """Depthwise 3x3 convolution with stride 2 and padding 1 of (N, C, H, W) by (C, 1, 3, 3), of one type.

    An output y[i] = sum_k w[k] x[2i + k - 1] hands to x[j] the sum of w[k] g[i] over j = 2i + k - 1. With the output's
    gradient g spread over the even places of a field u of zeros, that is sum_m w[2 - m] u[j + m - 1]: a convolution
    of stride 1 with the filters turned round.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, stride=2, padding=1, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        images, weight = ctx.saved_tensors
        spread = torch.zeros_like(images)
        spread[:, :, ::2, ::2] = gradient
        of_images = F.conv2d(spread, weight.flip(2, 3), padding=1, groups=len(weight))
        of_weight = conv2d_weight(images, weight.shape, gradient, stride=2, padding=1, groups=len(weight))
        return of_images, of_weight
