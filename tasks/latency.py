"""How long a net takes for one image, on the machine and device where it is."""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor, nn

from tasks.augment import normalise

PASSES, SECONDS = 20, 0.5  # at most, whichever comes first; one more goes before, to warm up


@torch.inference_mode()
def latency_ms(net: nn.Module, images: Tensor) -> float:
    """Median milliseconds of a forward pass, suppression of a detector's boxes included, the net in evaluation mode.

    images: (1, S, S, 3) uint8, which are normalised and moved to the net's device before.
    """
    device = next(net.parameters()).device
    pixels = normalise(images.to(device))
    net.eval()
    _timed(net, pixels)
    taken: list[float] = []
    while len(taken) < PASSES and sum(taken) < SECONDS:
        taken.append(_timed(net, pixels))
    return 1e3 * median(taken)


def _timed(net: nn.Module, pixels: Tensor) -> float:
    began = time.perf_counter()
    net(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
