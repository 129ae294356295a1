"""A TFLite file as plain records: operators in their order, and tensors with their bytes and quantisation.

Schema: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_ITEMS = 10_000  # operators, or tensors; MobileNet has 31 and 89
MAX_RANK, MAX_NAME = 8, 200  # of a tensor: dimensions, characters
_TYPES = {"FLOAT32": "<f4", "UINT8": "u1", "INT8": "i1", "INT32": "<i4"}
_WINDOW = ("Padding", "StrideH", "StrideW", "FusedActivationFunction")
_DILATION = ("DilationHFactor", "DilationWFactor")
# The table of options of an operator, and which of them are read, by the names of the schema.
_OPTIONS = {
    "CONV_2D": ("Conv2DOptions", (*_WINDOW, *_DILATION)),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", (*_WINDOW, *_DILATION)),
    "AVERAGE_POOL_2D": ("Pool2DOptions", (*_WINDOW, "FilterHeight", "FilterWidth")),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("FusedActivationFunction", "WeightsFormat")),
}
_ENUMS = {
    "Padding": "Padding",
    "FusedActivationFunction": "ActivationFunctionType",
    "WeightsFormat": "FullyConnectedOptionsWeightsFormat",
}


class Tensor(NamedTuple):
    """A tensor. type: as the schema names it. data: its bytes; none for what is computed.

    A stored q means scale * (q - zero_point): one of each, or one for each index of dimension `axis`; none: q itself.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    data: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int


class Operator(NamedTuple):
    """An operator. inputs, outputs: its tensors, -1 for one that is left out. options: by the schema's names."""

    name: str
    inputs: list[int]
    outputs: list[int]
    options: dict[str, int | str]


class Graph(NamedTuple):
    """The one graph of a file. inputs, outputs: places among its tensors."""

    tensors: list[Tensor]
    operators: list[Operator]
    inputs: list[int]
    outputs: list[int]


def read(path: Path) -> Graph:
    """The graph of the file at `path`. Raises ValueError for anything but one whole TFLite file with one graph."""
    try:
        import tflite
    except ImportError:
        raise ValueError("a .tflite file needs the package tflite, of the extra `weights`") from None
    try:
        return _graph(tflite.Model.GetRootAs(path.read_bytes(), 0))
    except Exception as error:  # flatbuffers raises nearly anything on broken input
        raise ValueError(f"not a whole TFLite file ({error})") from error


def values(tensor: Tensor) -> NDArray[np.float32]:
    """The values of a stored tensor, dequantised: (*shape) float32. Raises ValueError where it does not hold them."""
    kind = np.dtype(_TYPES.get(tensor.type, "V0"))
    size = math.prod(tensor.shape) * kind.itemsize
    if not size or min(tensor.shape, default=1) < 1 or tensor.data.size != size:
        raise ValueError(f"tensor {tensor.name} of {tensor.data.size} bytes cannot be {tensor.type} {tensor.shape}")
    stored = tensor.data.view(kind).reshape(tensor.shape)
    if kind.kind == "f":
        return stored.astype(np.float32)
    along = [1] * stored.ndim
    if tensor.scale.size != 1 and 0 <= tensor.axis < stored.ndim:
        along[tensor.axis] = stored.shape[tensor.axis]
    if {tensor.scale.size, tensor.zero_point.size} != {math.prod(along)}:
        scales, zeros = tensor.scale.size, tensor.zero_point.size
        raise ValueError(f"tensor {tensor.name} {tensor.shape} has {scales} scales and {zeros} zero points")
    scale = tensor.scale.astype(np.float64).reshape(along)
    return (scale * (stored - tensor.zero_point.reshape(along))).astype(np.float32)


def _graph(model: Any) -> Graph:
    if model.SubgraphsLength() != 1:
        raise ValueError(f"it has {model.SubgraphsLength()} graphs")
    graph = model.Subgraphs(0)
    return Graph(
        [_tensor(model, graph.Tensors(place)) for place in _places(graph.TensorsLength())],
        [_operator(model, graph.Operators(place)) for place in _places(graph.OperatorsLength())],
        _list(graph.InputsAsNumpy()),
        _list(graph.OutputsAsNumpy()),
    )


def _tensor(model: Any, tensor: Any) -> Tensor:
    import tflite

    if tensor.Buffer() >= model.BuffersLength():
        raise ValueError(f"buffer {tensor.Buffer()} of {model.BuffersLength()}")
    data, quantization = model.Buffers(tensor.Buffer()).DataAsNumpy(), tensor.Quantization()
    scale = quantization and quantization.ScaleAsNumpy()
    zero_point = quantization and quantization.ZeroPointAsNumpy()
    return Tensor(
        (tensor.Name() or b"?")[:MAX_NAME].decode(errors="replace"),
        tuple(_list(tensor.ShapeAsNumpy(), MAX_RANK)),
        _member(tflite.TensorType, tensor.Type()),
        data if isinstance(data, np.ndarray) else np.zeros(0, np.uint8),
        scale if isinstance(scale, np.ndarray) else np.zeros(0, np.float32),
        zero_point if isinstance(zero_point, np.ndarray) else np.zeros(0, np.int64),
        quantization.QuantizedDimension() if quantization else 0,
    )


def _operator(model: Any, operator: Any) -> Operator:
    import tflite

    if operator.OpcodeIndex() >= model.OperatorCodesLength():
        raise ValueError(f"operator code {operator.OpcodeIndex()} of {model.OperatorCodesLength()}")
    code = model.OperatorCodes(operator.OpcodeIndex())
    # The newer field where it holds something; files before schema 3a, as the published ones, have the older alone.
    name = _member(tflite.BuiltinOperator, max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
    options: dict[str, int | str] = {}
    if name in _OPTIONS:
        kind, fields = _OPTIONS[name]
        table, union = getattr(tflite, kind)(), operator.BuiltinOptions()
        table.Init(union.Bytes, union.Pos)
        for field in fields:
            value = getattr(table, field)()
            options[field] = _member(getattr(tflite, _ENUMS[field]), value) if field in _ENUMS else value
    return Operator(name, _list(operator.InputsAsNumpy()), _list(operator.OutputsAsNumpy()), options)


def _places(count: int) -> range:
    if count > MAX_ITEMS:
        raise ValueError(f"a list of {count:,}; allowed are {MAX_ITEMS:,}")
    return range(count)


def _list(numbers: Any, most: int = MAX_ITEMS) -> list[int]:
    """A vector of whole numbers; the reader says 0 where there is none."""
    if not isinstance(numbers, np.ndarray):
        return []
    if len(numbers) > most:  # many tensors may share one, which costs a file nothing
        raise ValueError(f"a list of {len(numbers):,}; allowed are {most:,}")
    return numbers.tolist()


def _member(enum: Any, value: int) -> str:
    """The name of one of the schema's numbers."""
    return next((name for name, number in vars(enum).items() if number == value), str(value))
