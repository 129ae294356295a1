"""How fast a training step could be if moving bytes, or multiplying, were all that counts, whichever takes longer.

Bytes are a model of the traffic while caches keep nothing, in passes over a layer's output:

    convolution  forward reads and writes (2); backward reads the gradient and its input for the weights (2), and reads
                 the gradient and writes its own for the input (2)
    BatchNorm    forward reads twice, for its statistics and to normalise, and writes (3); backward reads input and
                 gradient twice, and writes (5)
    ReLU         forward reads and writes (2); backward reads the gradient and its output, and writes (3)

A compiler joins a ReLU to the BatchNorm before it: normalising and ReLU are one pass there and back, and the ReLU costs
nothing. Behind a convolution with BatchNorm and ReLU these are 19 passes, and 14 compiled. Weights, the optimizer and
all that is no such layer are left out, as are a frozen layer's savings: a few per mille of a MobileNet at batch 256.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PASSES: dict[type[nn.Module], int] = {nn.Conv2d: 6, nn.BatchNorm2d: 8, nn.ReLU: 5, nn.ReLU6: 5}
BYTES = 2  # bfloat16
PRODUCTS = 3  # of each layer in a step: its output, and the gradients of its input and of its weights


class Work(NamedTuple):
    """What a training step asks for. bytes: as torch runs it; compiled_bytes; operations: additions count too."""

    bytes: int
    compiled_bytes: int
    operations: int


class Device(NamedTuple):
    """What a device can do in a second. bytes: read and written; operations: in bfloat16."""

    bytes: float
    operations: float


def work(step: Callable[[], object], net: nn.Module) -> Work:
    """That of a step of `net`, which is made once."""
    moved = compiled = operations = 0
    normalised: Tensor | None = None
    within = {part for norm in net.modules() if isinstance(norm, nn.BatchNorm2d) for part in norm.children()}  # timm's

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal moved, compiled, operations, normalised
        passes = next((count for kind, count in PASSES.items() if isinstance(layer, kind)), 0)
        if passes:
            moved += passes * BYTES * output.numel()
            joined = isinstance(layer, nn.ReLU | nn.ReLU6) and (inputs[0] is normalised or layer in within)
            compiled += 0 if joined else passes * BYTES * output.numel()
        if isinstance(layer, nn.BatchNorm2d):
            normalised = output
        if isinstance(layer, nn.Conv2d | nn.Linear):
            operations += PRODUCTS * 2 * output.numel() * math.prod(layer.weight.shape[1:])

    hooks = [layer.register_forward_hook(count) for layer in net.modules()]
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return Work(moved, compiled, operations)


def measured(device: torch.device, size: int = 1 << 30, side: int = 8192) -> Device:
    """By copies of so many bytes, and by products of square bfloat16 matrices."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    factor = torch.ones(side, side, dtype=torch.bfloat16, device=device)
    copies, products = _a_second(lambda: target.copy_(source)), _a_second(lambda: factor @ factor)
    return Device(2 * size * copies, 2 * side**3 * products)


def least_seconds(asked: Work, device: Device, compiled: bool) -> float:
    """The bound on a step."""
    moved = asked.compiled_bytes if compiled else asked.bytes
    return max(moved / device.bytes, asked.operations / device.operations)


def finish() -> None:
    """Wait until a GPU, where there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _a_second(call: Callable[[], object], repeats: int = 10) -> float:
    """How often."""
    call()
    finish()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    finish()
    return repeats / (time.perf_counter() - began)
