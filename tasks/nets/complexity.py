"""What a net costs, counted as the paper counts: Mult-Adds and parameters, in whole numbers, without computing.

Mult-Adds are the multiplications (each with its addition) in convolutions and fully connected layers on one image.
Parameters are the weights of those layers. Biases, BatchNorm, activations and pools count nothing: only so do the
paper's Tables 2 to 9 come out (two figures apart: conv MobileNet's 4866 million leave out the fully connected layer,
and Table 2's 1.19 % of Mult-Adds in the 3x3 convolution has two digits swapped, 1.91 %).

A net is run on the meta device, where tensors have shapes and no contents. BatchNorm and activations, which leave
shapes as they are, are left out: torch goes through Python for each of their parts there, nine tenths of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tasks.nets import build
from tasks.nets.mobilenet import Conv, DepthSepConv, build_layer
from tasks.nets.spec import NetSpec

IMAGES = 2  # that a net is run on, for BatchNorm in training mode refuses 1x1 of one
SHAPELESS = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Dropout)  # no subclasses, whose shapes nobody knows


class Cost(NamedTuple):
    """Mult-Adds on one image, and weights."""

    mult_adds: int
    parameters: int


@dataclass(frozen=True)
class Complexity:
    """A net's cost at one input size.

    mult_adds, parameters: by the paper's rule. parameters_all: with biases and BatchNorm's gamma and beta.
    by_kind: the first two for each kind of layer, "conv 1x1", "conv dw 3x3", "conv 3x3", "fully connected", ...
    """

    mult_adds: int
    parameters: int
    parameters_all: int
    by_kind: dict[str, Cost]

    def shares(self) -> dict[str, tuple[float, float]]:
        """Each kind's part of Mult-Adds and of parameters, in [0, 1] (Table 2)."""
        return {
            kind: (cost.mult_adds / self.mult_adds, cost.parameters / self.parameters)
            for kind, cost in self.by_kind.items()
        }


class LayerRow(NamedTuple):
    """A layer as a row of Table 1, with what it costs. `name` is the module's in its net.

    type: e.g. "Conv dw / s2". filter: e.g. "3x3x64 dw". input: height x width x channels, e.g. "112x112x64".
    """

    name: str
    kind: str
    type: str
    filter: str
    input: str
    mult_adds: int
    parameters: int


def count(net: nn.Module, input_size: int) -> Complexity:
    """The cost of a net on one square RGB image of side `input_size`, with as many classes as it was built for."""
    rows, _ = _trace(net, (3, input_size, input_size))
    by_kind: dict[str, Cost] = {}
    for row in rows:
        if row.parameters:
            by_kind[row.kind] = _sum([by_kind.get(row.kind, Cost(0, 0)), Cost(row.mult_adds, row.parameters)])
    total = _sum(by_kind.values())
    everything = sum(parameter.numel() for parameter in net.parameters())
    return Complexity(total.mult_adds, total.parameters, everything, by_kind)


def proposals_share(spec: NetSpec, input_size: int) -> float | None:
    """The share of a net's Mult-Adds, in [0, 1], that is spent on its proposals one by one; None where it has none.

    The cost is linear in the number of proposals: twice as many cost as much more as that many cost.
    """
    costs = []
    for proposals in (spec.proposals, 2 * spec.proposals):
        with torch.device("meta"):
            net = build(replace(spec, proposals=proposals))
        costs.append(count(net, input_size).mult_adds)
    once, twice = costs
    return (twice - once) / once if twice > once else None


def layer_table(net: nn.Module, input_size: int) -> list[LayerRow]:
    """The layers of an image classifier in the order they run, as the paper's Table 1 lists MobileNet's.

    Rows are convolutions, fully connected layers and adaptive average pools, then the softmax, which is part of the
    loss and no module of the net. Other pools have no row: Table 1 has none.
    """
    rows, output = _trace(net, (3, input_size, input_size))
    return [*rows, LayerRow("", "softmax", "Softmax / s1", "Classifier", f"1x1x{output.shape[1]}", 0, 0)]


def one_layer_example() -> dict[str, Cost]:
    """Table 3: one layer, 512 channels at 14x14, as a full convolution, made separable, thinner and then smaller."""
    rows: dict[str, tuple[Conv | DepthSepConv, int]] = {
        "convolution": (Conv(stride=1, depth=512), 14),
        "depthwise separable": (DepthSepConv(stride=1, depth=512), 14),
        "alpha 0.75": (DepthSepConv(stride=1, depth=384), 14),
        "rho 0.714": (DepthSepConv(stride=1, depth=384), 10),
    }
    costs = {}
    for name, (layer, size) in rows.items():
        with torch.device("meta"):
            net = build_layer(layer, layer.depth, layer.depth, NetSpec("mobilenet"))
        traced, _ = _trace(net, (layer.depth, size, size))
        costs[name] = _sum(Cost(row.mult_adds, row.parameters) for row in traced)
    return costs


def _sum(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    return Cost(sum(cost.mult_adds for cost in costs), sum(cost.parameters for cost in costs))


def _trace(net: nn.Module, input_shape: tuple[int, int, int]) -> tuple[list[LayerRow], Any]:
    """The layers that run on one input (channels, height, width), and the net's output. The net stays as it was."""
    rows: dict[str, LayerRow] = {}
    images = torch.empty(IMAGES, *input_shape, device="meta")
    with ExitStack() as undo, torch.no_grad():
        _leave_out(net, undo)
        for name, module in net.named_modules():
            if any(isinstance(module, kind) for kind in _DESCRIBED):
                undo.callback(module.register_forward_hook(partial(_add_row, rows, name)).remove)
        state = {name: value.to("meta") for name, value in chain(net.named_parameters(), net.named_buffers())}
        output = functional_call(net, state, (images,))
    return [row._replace(mult_adds=row.mult_adds // IMAGES) for row in rows.values()], output


def _leave_out(net: nn.Module, undo: ExitStack) -> None:
    """Put what leaves shapes as they are out of a net, until `undo` closes."""
    for parent in [*net.modules()]:
        for name, child in parent.named_children():
            if type(child) in SHAPELESS:
                setattr(parent, name, nn.Identity())
                undo.callback(setattr, parent, name, child)


def _add_row(rows: dict[str, LayerRow], name: str, module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    """A layer that runs on many parts of an image, or once for each image, has one row."""
    describe = next(function for kind, function in _DESCRIBED.items() if isinstance(module, kind))
    row = describe(name, module, inputs[0].shape, output.shape)
    before = rows[name].mult_adds if name in rows else 0
    rows[name] = row._replace(mult_adds=before + row.mult_adds)


def _convolution(name: str, layer: nn.Conv2d, before: torch.Size, after: torch.Size) -> LayerRow:
    channels, height, width = before[1:]
    kernel = "x".join(str(side) for side in layer.kernel_size)
    depthwise = layer.groups == channels > 1
    return LayerRow(
        name=name,
        kind=f"conv dw {kernel}" if depthwise else f"conv {kernel}",
        type=f"Conv{' dw' if depthwise else ''} / s{layer.stride[0]}",
        filter=f"{kernel}x{channels} dw" if depthwise else f"{kernel}x{channels // layer.groups}x{after[1]}",
        input=f"{height}x{width}x{channels}",
        mult_adds=layer.weight.numel() * after[0] * math.prod(after[2:]),
        parameters=layer.weight.numel(),
    )


def _fully_connected(name: str, layer: nn.Linear, before: torch.Size, after: torch.Size) -> LayerRow:
    weights = layer.weight.numel()
    shape = f"{before[-1]}x{after[-1]}"
    return LayerRow(name, "fully connected", "FC / s1", shape, f"1x1x{before[-1]}", weights * after[0], weights)


def _average_pool(name: str, _: nn.Module, before: torch.Size, after: torch.Size) -> LayerRow:
    channels, height, width = before[1:]
    window = f"Pool {height // after[2]}x{width // after[3]}"
    return LayerRow(name, "pool", "Avg Pool / s1", window, f"{height}x{width}x{channels}", 0, 0)


_DESCRIBED: dict[type[nn.Module], Callable[..., LayerRow]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _fully_connected,
    nn.AdaptiveAvgPool2d: _average_pool,
}
