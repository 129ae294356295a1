"""A float graph -> one whose convolutions multiply 8-bit integers, by ONNX Runtime's static quantisation.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html: weights are int8 with a scale for each
output channel (depthwise filters differ much in size), activations uint8 with ranges that training images have shown;
scales stand beside float nodes (QDQ), and a runtime makes integer kernels of both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipelines.export.graph import INPUT, without_traces
from pipelines.training.reader import SplitReader
from pipelines.training.run import Run

CALIBRATION_IMAGES = 256
BATCH_SIZE = 16
# What surrounds them stays float: the normalisation, and the squares and roots of FaceNet's L2 pools.
QUANTISED = ("Conv", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool", "Concat")


class _Calibration(CalibrationDataReader):
    def __init__(self, batches: Iterator[npt.NDArray[np.uint8]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def calibration_batches(run: Run, reader: SplitReader) -> Iterator[npt.NDArray[np.uint8]]:
    """Some training images from all over a split, seen as in evaluation: batches (N, S, S, 3)."""
    total = sum(reader.shard_sizes)
    places = np.unique(np.linspace(0, total - 1, min(CALIBRATION_IMAGES, total)).astype(np.int64))
    for start in range(0, len(places), BATCH_SIZE):
        some = places[start : start + BATCH_SIZE]
        images, _ = reader.decode_central(some, run.input_size, run.augment.central_fraction, run.augment.antialias)
        yield images.numpy()


def quantise(model: onnx.ModelProto, batches: Iterator[npt.NDArray[np.uint8]]) -> onnx.ModelProto:
    """The graph in int8, with the same input and output as the float one."""
    with tempfile.TemporaryDirectory() as scratch:
        prepared, quantised = Path(scratch) / "prepared.onnx", Path(scratch) / "int8.onnx"
        # The exporter has fused what can be; here every tensor gets its shape.
        quant_pre_process(model, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _Calibration(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return without_traces(onnx.load(quantised))
