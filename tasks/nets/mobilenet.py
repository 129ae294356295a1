"""MobileNet v1 and the two nets the paper holds it against: a table of layers, and one loop that builds a table.

Paper: arXiv 1704.04861, Table 1 and section 3. Design after the authors' own code, slim's `mobilenet_v1.py`:
https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet_v1.py

MobileNet 1.0-224 with 1000 classes; each layer's input side, weights and Mult-Adds (multiplications in convolutions
and the last layer; BatchNorm, biases and activations are not counted):

    layer      input   depthwise 3x3            pointwise 1x1
    conv0        224   (a full 3x3 convolution, 3 to 32, stride 2: 864 weights, 10,838,016 Mult-Adds)
    conv1        112        288    3,612,672        2,048    25,690,112
    conv2        112        576    1,806,336        8,192    25,690,112   stride 2
    conv3         56      1,152    3,612,672       16,384    51,380,224
    conv4         56      1,152      903,168       32,768    25,690,112   stride 2
    conv5         28      2,304    1,806,336       65,536    51,380,224
    conv6         28      2,304      451,584      131,072    25,690,112   stride 2
    conv7-11      14      4,608      903,168      262,144    51,380,224   each of five
    conv12        14      4,608      225,792      524,288    25,690,112   stride 2
    conv13         7      9,216      451,584    1,048,576    51,380,224
    classifier     1   (1024 to 1000: 1,024,000 weights, 1,024,000 Mult-Adds)

    total          4,209,088 weights, 568,740,352 Mult-Adds; without the classifier 3,185,088 and 567,716,352

Table 1 prints stride 2 for the depthwise layer of conv13. Its own sizes, 7x7 before and after, and the published
Mult-Adds say 1, as slim does.

Divergences from slim: the average pool covers the whole map at any input size, where slim's 7x7 window is valid only;
the last layer is linear in place of the same 1x1 convolution; no atrous layers (`output_stride`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.nets.depthwise import DepthwiseConv
from tasks.nets.spec import NetSpec

INIT_STDDEV = 0.09  # slim's mobilenet_v1_arg_scope: every kernel, the depthwise and the last one included
# In place only where that saves something: for ReLU6's gradient torch copies what is overwritten, 3 to 10 % of a step.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "relu6": nn.ReLU6}


class Conv(NamedTuple):
    """A full 3x3 convolution, BatchNorm, activation."""

    stride: int
    depth: int


class DepthSepConv(NamedTuple):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each with BatchNorm and activation."""

    stride: int
    depth: int


Table = tuple[Conv | DepthSepConv, ...]

MOBILENET: Table = (
    Conv(stride=2, depth=32),
    DepthSepConv(stride=1, depth=64),
    DepthSepConv(stride=2, depth=128),
    DepthSepConv(stride=1, depth=128),
    DepthSepConv(stride=2, depth=256),
    DepthSepConv(stride=1, depth=256),
    DepthSepConv(stride=2, depth=512),
    DepthSepConv(stride=1, depth=512),
    DepthSepConv(stride=1, depth=512),
    DepthSepConv(stride=1, depth=512),
    DepthSepConv(stride=1, depth=512),
    DepthSepConv(stride=1, depth=512),
    DepthSepConv(stride=2, depth=1024),
    DepthSepConv(stride=1, depth=1024),
)
# Table 4: "full convolutions" in place of the separable ones.
CONV_MOBILENET: Table = tuple(Conv(*layer) for layer in MOBILENET)
# Table 5: without "the 5 layers of separable filters with feature size 14 x 14 x 512".
SHALLOW_MOBILENET: Table = tuple(layer for layer in MOBILENET if layer != DepthSepConv(stride=1, depth=512))


class MobileNet(nn.Module):
    """A table of layers, global average pool, dropout and a linear layer: (N, 3, H, W) -> logits (N, num_classes).

    Layers are named by their place in the table, conv0, conv1 and so on. Activations run channels_last, whatever the
    images are: 1.4 times the speed of the default format on a CPU, and what a GPU's matrix units read.

    Padding "same" costs nothing but a copy of the images. TensorFlow pads an even side by 0 before and 1 after under
    stride 2, torch (padding=1, whose last row is never read) by 1 and 0: one is the other's mirror image. So the net
    sees the images turned by 180 degrees, its filters are TensorFlow's turned likewise (`weight.flip(2, 3)`), and
    `features` turns the maps back. Padding before each of the five such layers would cost 3 to 6 % of a step.
    """

    def __init__(self, table: Table, spec: NetSpec) -> None:
        super().__init__()
        self.turned = spec.padding == "same"
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for index, layer in enumerate(table):
            depth = max(int(layer.depth * spec.width), spec.min_depth)
            layers[f"conv{index}"] = build_layer(layer, channels, depth, spec)
            channels = depth
        self.body = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(channels, spec.num_classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.pool(self.body(self._placed(images))).flatten(1)))

    def features(self, images: Tensor, names: Container[str] | None = None) -> dict[str, Tensor]:
        """Layers' outputs by the layer's name, in order and lying as the images do, for heads other than logits.

        names: of the layers that are asked for, all of them by default; to turn a map costs a copy.
        A layer that halves its input of side n returns ceil(n / 2). slim's endpoint `Conv2d_11_pointwise` is "conv11".
        """
        maps, current = {}, self._placed(images)
        for name, layer in self.body.named_children():
            current = layer(current)
            if names is None or name in names:
                maps[name] = current.flip(2, 3) if self.turned else current
        return maps

    def _placed(self, images: Tensor) -> Tensor:
        turned = images.flip(2, 3) if self.turned else images
        return turned.contiguous(memory_format=torch.channels_last)


def build_layer(layer: Conv | DepthSepConv, in_channels: int, depth: int, spec: NetSpec) -> nn.Sequential:
    """One row of a table as a module: (N, in_channels, H, W) -> (N, depth, ceil(H / stride), ceil(W / stride))."""
    norm = partial(nn.BatchNorm2d, eps=spec.batch_norm_epsilon, momentum=1.0 - spec.batch_norm_decay)
    activation = ACTIVATIONS[spec.activation]
    if isinstance(layer, Conv):
        parts: list[tuple[str, nn.Module]] = [
            ("conv", nn.Conv2d(in_channels, depth, 3, stride=layer.stride, padding=1, bias=False)),
            ("norm", norm(depth)),
            ("activation", activation()),
        ]
    else:
        parts = [
            ("depthwise", DepthwiseConv(in_channels, layer.stride)),
            ("depthwise_norm", norm(in_channels)),
            ("depthwise_activation", activation()),
            ("pointwise", nn.Conv2d(in_channels, depth, 1, bias=False)),
            ("pointwise_norm", norm(depth)),
            ("pointwise_activation", activation()),
        ]
    return nn.Sequential(OrderedDict(parts))


def mobilenet(spec: NetSpec) -> MobileNet:
    """MobileNet (Table 1)."""
    return MobileNet(MOBILENET, spec)


def conv_mobilenet(spec: NetSpec) -> MobileNet:
    """MobileNet with full 3x3 convolutions (Table 4). The paper's 4866 million Mult-Adds leave out the last layer."""
    return MobileNet(CONV_MOBILENET, spec)


def shallow_mobilenet(spec: NetSpec) -> MobileNet:
    """MobileNet without its five layers at 14x14x512 (Table 5)."""
    return MobileNet(SHALLOW_MOBILENET, spec)


def _initialise(module: nn.Module) -> None:
    """Kernels from a normal distribution cut at two standard deviations, as TensorFlow cuts it; biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STDDEV, a=-2 * INIT_STDDEV, b=2 * INIT_STDDEV)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
