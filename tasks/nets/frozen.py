"""What stays in fine-tuning as it was when the weights were loaded: BatchNorm at small batches, and layers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

SHOWN = 8  # names, where one is not found


class FrozenBatchNorm(nn.BatchNorm2d):
    """BatchNorm by its running mean and variance, in training as in evaluation; its factor and offset do not learn.

    State-dict names are BatchNorm's. The two parameters stay parameters, without a gradient.
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


def freeze(net: nn.Module, prefixes: Sequence[str]) -> None:
    """Take out of training the parameters whose names begin with one of `prefixes`.

    BatchNorm's running statistics there go on. Raises ValueError where a prefix begins no name, and where nothing is
    left to train.
    """
    names = [name for name, _ in net.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            shown = ", ".join(names[:SHOWN]) + (f" and {more} more" if (more := len(names) - SHOWN) > 0 else "")
            raise ValueError(f"frozen: no parameter's name begins with {prefix!r}; they are: {shown}")
    for name, parameter in net.named_parameters():
        if name.startswith(tuple(prefixes)):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError(f"frozen: {', '.join(prefixes)} leave nothing to train")


def freeze_batch_norm(net: nn.Module) -> None:
    """Put a fresh `FrozenBatchNorm` in the place of every BatchNorm of a net that has just been made."""
    for module in list(net.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(module, name, FrozenBatchNorm(layer.num_features, layer.eps))
