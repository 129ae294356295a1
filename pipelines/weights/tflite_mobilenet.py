"""MobileNet in TFLite files, of floats or quantised, such as the authors' mobilenet_v1_1.0_224_quant.tflite.

BatchNorm is folded into the convolutions there. What is read has one that adds the bias and changes nothing else: exact
in evaluation, but a poor start for training, where statistics of batches would take the place of those that are lost.

Quantised weights become floats. The rounding of activations is not taken over, nor that of the images, whose pixels are
1/128 apart there and 2/255 here, as they were when the authors trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.weights import tflite_graph
from pipelines.weights.mobilenet import EPSILON, MAX_BYTES, Array, Classifier, Convolution, Published
from pipelines.weights.tflite_graph import Graph, Operator, Tensor, values
from tasks.nets.mobilenet import MOBILENET, Conv

BACKGROUND = 1001  # classes of slim's nets: ImageNet's 1000 behind a class 0 to which nothing belongs
TOLERANCE = 0.02  # of ranges: the authors' files have images from -1 to 127/128, and activations up to 5.9998
_STORED = {"UINT8": (0, 255), "INT8": (-128, 127)}


class _Step(NamedTuple):
    """An operator that is due: one of `names`, behind any number of `passed`, which change no weight."""

    names: tuple[str, ...]
    passed: tuple[str, ...] = ()


_RESHAPED = ("RESHAPE", "SQUEEZE")
_ORDER = (
    _Step(("CONV_2D",), passed=("QUANTIZE",)),
    *(_Step((name,)) for _ in MOBILENET[1:] for name in ("DEPTHWISE_CONV_2D", "CONV_2D")),
    _Step(("AVERAGE_POOL_2D", "MEAN")),
    _Step(("CONV_2D", "FULLY_CONNECTED"), passed=_RESHAPED),
)
_AFTER = (*_RESHAPED, "SOFTMAX", "DEQUANTIZE", "QUANTIZE")
_STRIDES = [step for layer in MOBILENET for step in ([layer.stride] if isinstance(layer, Conv) else [layer.stride, 1])]


def read(path: Path) -> Published:
    """What the file at `path` holds; of 1001 classes the last 1000.

    Raises ValueError for a file that is not whole, and for a net that is not MobileNet with padding SAME and ReLU6.
    """
    graph = tflite_graph.read(path)
    claimed = sum(tensor.data.size for tensor in graph.tensors)  # a buffer can be the data of many
    if claimed > MAX_BYTES:
        raise ValueError(f"its tensors claim to have {claimed:,} bytes; allowed are {MAX_BYTES:,}")
    *layers, pool, last = _in_order(graph)
    shape = _tensor(graph, graph.inputs, 0).shape
    if len(shape) != 4:
        raise ValueError(f"not a MobileNet: its images have shape {shape}")
    images = _range(_tensor(graph, layers[0].inputs, 0))
    if images and not _near(images, (-1, 1)):  # of floats the file does not say
        raise ValueError(f"its images go from {images[0]:.3g} to {images[1]:.3g}, not from -1 to 1")
    convolutions = [_convolution(graph, *layer) for layer in zip(layers, _STRIDES, strict=True)]
    _check_pool(graph, pool)
    kind = f"TFLite with {_tensor(graph, last.inputs, 1).type} weights, BatchNorm folded in"
    return Published(convolutions, _classifier(graph, last), (shape[1], shape[2]), kind)


def _in_order(graph: Graph) -> list[Operator]:
    """The convolutions, the pool and the last layer of a graph that is a chain of these."""
    operators, found = list(graph.operators), []
    for step in _ORDER:
        while operators and operators[0].name in step.passed:
            operators.pop(0)
        name = operators[0].name if operators else "missing"
        if name not in step.names:
            number = len(graph.operators) - len(operators)
            raise ValueError(f"not a MobileNet: operator {number} is {name}, not {' or '.join(step.names)}")
        found.append(operators.pop(0))
    if other := [operator.name for operator in operators if operator.name not in _AFTER]:
        raise ValueError(f"not a MobileNet: {other[0]} stands behind the last layer")
    written = [graph.inputs, *(operator.outputs for operator in graph.operators)]
    read = [*(operator.inputs[:1] for operator in graph.operators), graph.outputs]
    if written != read:
        raise ValueError("not a MobileNet: an operator takes something else than the one before it makes")
    return found


def _convolution(graph: Graph, operator: Operator, stride: int) -> Convolution:
    """A convolution with its bias, and a BatchNorm that adds the bias: its variance and epsilon make one."""
    weights = _tensor(graph, operator.inputs, 1)
    _check_options(operator, weights.name, {"Padding": "SAME", "StrideH": stride, "StrideW": stride})
    _check_options(operator, weights.name, {"DilationHFactor": 1, "DilationWFactor": 1})
    # The authors' quantised files name no activation: values end at 0 and 6 by being stored in a byte.
    activations = _range(_tensor(graph, operator.outputs, 0))
    bounded = activations is not None and _near(activations, (0, 6))
    if not (bounded and operator.options["FusedActivationFunction"] == "NONE"):
        _check_options(operator, weights.name, {"FusedActivationFunction": "RELU6"})
    bias = values(_tensor(graph, operator.inputs, 2))
    one, zero = np.ones_like(bias), np.zeros_like(bias)
    return Convolution(weights.name, _kernel(operator, weights), one, bias, zero, one - np.float32(EPSILON))


def _classifier(graph: Graph, operator: Operator) -> Classifier:
    weights = _tensor(graph, operator.inputs, 1)
    _check_options(operator, weights.name, {"FusedActivationFunction": "NONE"})
    if operator.name == "FULLY_CONNECTED":
        _check_options(operator, weights.name, {"WeightsFormat": "DEFAULT"})
    kernel, bias = _kernel(operator, weights), values(_tensor(graph, operator.inputs, 2))
    first = 1 if len(kernel) == bias.size == BACKGROUND else 0
    return Classifier(weights.name, kernel[first:], bias[first:])


def _kernel(operator: Operator, weights: Tensor) -> Array:
    """(out, H, W, in) as (out, in, H, W); depthwise (1, H, W, channels) as (channels, 1, H, W)."""
    kernel = values(weights)
    if operator.name == "FULLY_CONNECTED":  # (out, in)
        return kernel.reshape(*kernel.shape, 1, 1)
    if kernel.ndim != 4:
        raise ValueError(f"{weights.name} has shape {kernel.shape}, not four dimensions")
    return kernel.transpose((3, 0, 1, 2) if operator.name == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2))


def _check_pool(graph: Graph, pool: Operator) -> None:
    """Whether it leaves one number of each channel."""
    before, after = _tensor(graph, pool.inputs, 0).shape, _tensor(graph, pool.outputs, 0).shape
    if len(before) != 4 or math.prod(after) != before[-1]:
        raise ValueError(f"not a MobileNet: {pool.name} makes {after} of {before}")
    if pool.name == "AVERAGE_POOL_2D":
        _check_options(pool, "the pool", {"FilterHeight": before[1], "FilterWidth": before[2]})
        _check_options(pool, "the pool", {"FusedActivationFunction": "NONE"})


def _range(tensor: Tensor) -> tuple[float, float] | None:
    """The least and the greatest value that a quantised tensor can have; of floats none."""
    if tensor.type not in _STORED or not tensor.scale.size == tensor.zero_point.size == 1:
        return None
    low, high = (float(tensor.scale[0]) * (end - int(tensor.zero_point[0])) for end in _STORED[tensor.type])
    return low, high


def _near(range_: tuple[float, float], wanted: tuple[float, float]) -> bool:
    return max(abs(end - ideal) for end, ideal in zip(range_, wanted, strict=True)) <= TOLERANCE


def _check_options(operator: Operator, layer: str, wanted: Mapping[str, int | str]) -> None:
    for name, value in wanted.items():
        if operator.options[name] != value:
            raise ValueError(f"not a MobileNet: {name} of {layer} is {operator.options[name]}, not {value}")


def _tensor(graph: Graph, places: list[int], number: int) -> Tensor:
    place = places[number] if number < len(places) else -1
    if not 0 <= place < len(graph.tensors):
        raise ValueError(f"not a MobileNet: an operator lacks its {('input', 'weights', 'bias')[number]}")
    return graph.tensors[place]
