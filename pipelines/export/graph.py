"""A trained net -> an ONNX graph that takes images as they are decoded, and the proof that both say the same."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from pipelines.export.runtime import outputs_of
from tasks.augment import normalise

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUT = "images"
OPSET = 18  # of 2022: what runs on phones reads it
TOLERANCE = 1e-4


class _Decoded(nn.Module):
    """A net behind its normalisation: images (N, S, S, 3) uint8, RGB -> the net's outputs (N, C)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.net(normalise(images))
        return outputs


class _Mean(nn.Module):
    """nn.AdaptiveAvgPool2d(1) as one node. Of maps in channels_last, torch makes nine, which gather by strides."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3), keepdim=True)


def _with_plain_pools(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, _Mean())
    return net


def to_onnx(net: nn.Module, size: int, output: str) -> onnx.ModelProto:
    """The graph of a classifier or an embedding in evaluation mode, normalisation included, BatchNorm folded away.

    In: "images" (batch, size, size, 3) uint8, RGB. Out: `output` (batch, C) float32. The batch may be of any size.
    """
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # of one image, torch would take the batch for constant
    logging.getLogger("onnxscript").setLevel(logging.WARNING)  # else it tells of every constant that it folds
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of what torch deprecates
        program = torch.onnx.export(
            _Decoded(_with_plain_pools(net)).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.checker.check_model(model)
    return without_traces(model)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's notes: lines of source code, and the folders that they lie in."""
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output, graph, model):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


@torch.inference_mode()
def difference(net: nn.Module, session: InferenceSession, images: npt.NDArray[np.uint8]) -> float:
    """The largest difference between the outputs of net and graph, for a batch and for its first image alone.

    images: (N, S, S, 3) uint8. Of outputs beyond 1 it is relative to the largest: their last digits are noise.
    """
    found = []
    for batch in (images, images[:1]):
        expected = net(normalise(torch.from_numpy(batch))).numpy()
        outputs = outputs_of(session, batch)
        assert outputs.shape == expected.shape, f"{outputs.shape} outputs, the net has {expected.shape}"
        found.append(np.abs(outputs - expected).max() / np.maximum(1, np.abs(expected).max()))
    return float(np.max(found))  # NumPy's maximum, which keeps what is no number


def check_equal(name: str, net: nn.Module, session: InferenceSession, images: npt.NDArray[np.uint8]) -> float:
    """What `difference` finds. Raises ValueError where it is above TOLERANCE, or no number."""
    found = difference(net, session, images)
    if not found <= TOLERANCE:
        raise ValueError(f"{name}: ONNX outputs differ from the net's by {found:.2g}; {TOLERANCE:g} is allowed")
    return found
