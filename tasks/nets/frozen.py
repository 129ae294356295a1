"""BatchNorm for fine-tuning at small batches: it stays what it was when the weights were loaded."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn


class FrozenBatchNorm(nn.BatchNorm2d):
    """BatchNorm by its running mean and variance, in training as in evaluation; its factor and offset do not learn.

    State-dict names are BatchNorm's. The two parameters stay parameters, without a gradient: optimizers see them, and
    change nothing.
    """

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__(channels, epsilon)
        self.requires_grad_(False)
        self.train(False)

    def forward(self, maps: Tensor) -> Tensor:
        """A factor and an offset for each channel; torch's BatchNorm is slower, for gradients that nobody asks for."""
        mean, variance = self.running_mean, self.running_var
        assert mean is not None and variance is not None
        factor = self.weight * (variance + self.eps).rsqrt()
        offset = self.bias - mean * factor
        factor, offset = (values.to(maps.dtype)[:, None, None] for values in (factor, offset))
        return torch.addcmul(offset, maps, factor)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 - it has one mode
        """Stay in evaluation mode."""
        return super().train(False)


def freeze_batch_norm(net: nn.Module) -> None:
    """Put a fresh `FrozenBatchNorm` in the place of every BatchNorm of a net that has just been made."""
    for module in list(net.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(module, name, FrozenBatchNorm(layer.num_features, layer.eps))
