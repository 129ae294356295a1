"""How fast a training step could be if memory were all that counts: bytes of a model of its traffic over bandwidth.

In passes over the outputs of all convolutions, each of which BatchNorm and a ReLU follow, while caches keep nothing:

    forward    convolution reads and writes (2); BatchNorm reads twice, for its statistics and to normalise, and writes
               (3); ReLU reads and writes (2)
    backward   ReLU reads the gradient and its output, and writes (3); BatchNorm reads input and gradient twice, and
               writes (5); the convolution reads the gradient and its input for the weights (2), and reads the gradient
               and writes its own for the input (2)

As torch runs a net these are 19; where a compiler joins BatchNorm and ReLU, 14: normalising and ReLU are one pass there
and back (5 forward, 5 and 4 backward). Weights and the optimizer are left out: a few per mille at batch 256.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

PASSES = {"eager": 19, "compiled": 14}
BYTES = 2  # bfloat16


def convolution_bytes(make: Callable[[], nn.Module], resolution: int) -> int:
    """Bytes of all convolutions' outputs for one image of that side, in bfloat16."""
    counted = 0

    def count(_: nn.Module, __: object, output: Tensor) -> None:
        nonlocal counted
        counted += BYTES * output.numel()

    with torch.device("meta"):
        net = make()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        net(torch.empty(1, 3, resolution, resolution))
    return counted


def copy_bandwidth(device: torch.device, size: int = 1 << 30, repeats: int = 10) -> float:
    """Bytes read and written in a second, by copies of so many bytes on the device."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = finished()
    for _ in range(repeats):
        target.copy_(source)
    return 2 * size * repeats / (finished() - began)


def images_per_second(make: Callable[[], nn.Module], resolution: int, kind: str, bandwidth: float) -> float:
    """The bound on training of kind "eager" or "compiled", for a bandwidth in bytes per second."""
    return bandwidth / (PASSES[kind] * convolution_bytes(make, resolution))
