"""Inception V2, GoogLeNet with BatchNorm as slim has it: a table of layers, and one loop that builds a table.

Ioffe and Szegedy 2015, arXiv 1502.03167. Table after the authors' own code, slim's `inception_v2.py`:
https://github.com/tensorflow/models/blob/master/research/slim/nets/inception_v2.py
It is the net of the paper's detectors (Table 13). Their Mult-Adds come out with slim's separable first layer only: SSD
3.78 billion (printed 3.8) where a full 7x7 convolution gives 3.93; Faster R-CNN at 600 129.57 (129.6), not 130.17.

At 224 px with 1000 classes (BatchNorm, biases and pools are not counted):

    layer           output       1x1    3x3           3x3 twice     pool          weights    Mult-Adds
    Conv2d_1a_7x7   112x112x64   (7x7 depthwise to 24, stride 2; 1x1 to 64)         2,712     34,019,328
    MaxPool_2a_3x3    56x56x64   (max of 3x3, stride 2)
    Conv2d_2b_1x1     56x56x64   (1x1)                                              4,096     12,845,056
    Conv2d_2c_3x3     56x56x192  (3x3)                                            110,592    346,816,512
    MaxPool_3a_3x3    28x28x192  (max of 3x3, stride 2)
    Mixed_3b          28x28x256   64     64 to 64      64 to 96     avg to 32     218,112    170,999,808
    Mixed_3c          28x28x320   64     64 to 96      64 to 96     avg to 64     259,072    203,112,448
    Mixed_4a          14x14x576         128 to 160     64 to 96     max           384,000    143,904,768  stride 2
    Mixed_4b          14x14x576  224     64 to 96      96 to 128    avg to 128    608,256    119,218,176
    Mixed_4c          14x14x576  192     96 to 128     96 to 128    avg to 128    663,552    130,056,192
    Mixed_4d          14x14x576  160    128 to 160    128 to 160    avg to 96     893,952    175,214,592
    Mixed_4e          14x14x576   96    128 to 192    160 to 192    avg to 96   1,105,920    216,760,320
    Mixed_5a            7x7x1024        128 to 192    192 to 256    max         1,437,696    162,570,240  stride 2
    Mixed_5b            7x7x1024 352    192 to 320    160 to 224    avg to 128  2,179,072    106,774,528
    Mixed_5c            7x7x1024 352    192 to 320    192 to 224    max to 128  2,276,352    111,541,248
    classifier        1000       (the average of each map, fully connected)     1,024,000      1,024,000

    total           11,167,384 weights, 1,934,857,216 Mult-Adds

Divergences from slim: BatchNorm has a factor beside its offset, as MobileNet's; He's initialisation; the average pool
covers the whole map at any input size; the last layer is linear in place of the same 1x1 convolution.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.nets.inception import Branches, Conv, MaxPool, PaddedConv, chain, initialise
from tasks.nets.spec import NetSpec, refuse_width


class Separable(NamedTuple):
    """A depthwise 7x7 convolution, `multiplier` filters to a channel, and a pointwise one; BatchNorm, ReLU after both.

    Between the two there is nothing: together they are a full convolution of low rank.
    """

    stride: int
    multiplier: int
    depth: int


class Mixed(NamedTuple):
    """Branches side by side, joined by channel: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; a pool of 3x3 and 1x1 (`projection`).

    Numbers are the depths of convolutions, each with BatchNorm and ReLU; 0 for none. `three` is (1x1, 3x3), `double`
    (1x1, each 3x3). The stride is that of the last 3x3 and the pool; at 2 there is no 1x1 branch and no projection.
    """

    stride: int
    one: int
    three: tuple[int, int]
    double: tuple[int, int]
    pool: Literal["max", "avg"]
    projection: int


Layer = Separable | Conv | MaxPool | Mixed

INCEPTION_V2: dict[str, Layer] = {
    "Conv2d_1a_7x7": Separable(stride=2, multiplier=8, depth=64),
    "MaxPool_2a_3x3": MaxPool(stride=2),
    "Conv2d_2b_1x1": Conv(kernel=1, stride=1, depth=64),
    "Conv2d_2c_3x3": Conv(kernel=3, stride=1, depth=192),
    "MaxPool_3a_3x3": MaxPool(stride=2),
    "Mixed_3b": Mixed(1, 64, (64, 64), (64, 96), "avg", 32),
    "Mixed_3c": Mixed(1, 64, (64, 96), (64, 96), "avg", 64),
    "Mixed_4a": Mixed(2, 0, (128, 160), (64, 96), "max", 0),
    "Mixed_4b": Mixed(1, 224, (64, 96), (96, 128), "avg", 128),
    "Mixed_4c": Mixed(1, 192, (96, 128), (96, 128), "avg", 128),
    "Mixed_4d": Mixed(1, 160, (128, 160), (128, 160), "avg", 96),
    "Mixed_4e": Mixed(1, 96, (128, 192), (160, 192), "avg", 96),
    "Mixed_5a": Mixed(2, 0, (128, 192), (192, 256), "max", 0),
    "Mixed_5b": Mixed(1, 352, (192, 320), (160, 224), "avg", 128),
    "Mixed_5c": Mixed(1, 352, (192, 320), (192, 224), "max", 128),
}


class InceptionV2(nn.Module):
    """A table of layers, global average pool, dropout and a linear layer: (N, 3, H, W) -> logits (N, num_classes).

    Layers have the names of the table, which are slim's endpoints. Activations run channels_last, whatever the images
    are. Padding is the spec's, "same" as TensorFlow pads or "symmetric" as torch does; here it is done layer by layer,
    for what has to be padded by a copy is small.
    """

    def __init__(self, table: Mapping[str, Layer], spec: NetSpec) -> None:
        super().__init__()
        self.body, channels = build_layers(table, 3, spec)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(channels, spec.num_classes)
        initialise(self.body, self.classifier)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        return self.classifier(self.dropout(self.pool(maps).flatten(1)))

    def features(self, images: Tensor, names: Container[str] | None = None) -> dict[str, Tensor]:
        """Layers' outputs by slim's endpoint, in order, for heads other than logits: "Mixed_4e" and so on.

        names: of the layers that are asked for, all of them by default.
        A layer that halves its input of side n returns ceil(n / 2).
        """
        maps, current = {}, images.contiguous(memory_format=torch.channels_last)
        for name, layer in self.body.named_children():
            current = layer(current)
            if names is None or name in names:
                maps[name] = current
        return maps


class Pool(nn.Module):
    """The largest or the mean value of 3x3 pixels, those outside the map left out; padding as that of `PaddedConv`."""

    def __init__(self, kind: Literal["max", "avg"], stride: int, *, same: bool) -> None:
        super().__init__()
        self.kind, self.stride, self.same = kind, stride, same and stride == 2

    def forward(self, maps: Tensor) -> Tensor:
        if self.kind == "avg":
            return F.avg_pool2d(maps, 3, self.stride, padding=1, count_include_pad=False)
        if self.same:  # an even side has nothing before it and one pixel behind it, which ceil_mode allows for
            odd = maps.shape[2] % 2, maps.shape[3] % 2
            return F.max_pool2d(maps, 3, self.stride, padding=odd, ceil_mode=True)
        return F.max_pool2d(maps, 3, self.stride, padding=1)


def build_layers(table: Mapping[str, Layer], in_channels: int, spec: NetSpec) -> tuple[nn.Sequential, int]:
    """The layers of a table or of a part of it, named as there, and the depth of the last: not yet initialised."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in table.items():
        layers[name], in_channels = build_layer(layer, in_channels, spec)
    return nn.Sequential(layers), in_channels


def build_layer(layer: Layer, in_channels: int, spec: NetSpec) -> tuple[nn.Module, int]:
    """One row of a table and its depth: (N, in_channels, H, W) -> (N, depth, ceil(H / stride), ceil(W / stride))."""
    same = spec.padding == "same"
    convolutions = partial(chain, spec=spec, same=same)
    if isinstance(layer, MaxPool):
        return Pool("max", layer.stride, same=same), in_channels
    if isinstance(layer, Conv):
        return convolutions(in_channels, [layer]), layer.depth
    if isinstance(layer, Separable):
        spread = in_channels * layer.multiplier
        depthwise = PaddedConv(in_channels, spread, 7, layer.stride, groups=in_channels, same=same)
        pointwise = convolutions(spread, [Conv(1, 1, layer.depth)])
        return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise)), layer.depth
    assert layer.stride == 1 or (layer.one == layer.projection == 0 and layer.pool == "max")
    reduce, depth = layer.double
    branches: dict[str, nn.Module] = {}
    if layer.one:
        branches["conv1"] = convolutions(in_channels, [Conv(1, 1, layer.one)])
    branches["conv3"] = convolutions(in_channels, [Conv(1, 1, layer.three[0]), Conv(3, layer.stride, layer.three[1])])
    branches["conv33"] = convolutions(
        in_channels, [Conv(1, 1, reduce), Conv(3, 1, depth), Conv(3, layer.stride, depth)]
    )
    projection = [Conv(1, 1, layer.projection)] if layer.projection else []
    pool = Pool(layer.pool, layer.stride, same=same)
    branches["pool"] = nn.Sequential(pool, *convolutions(in_channels, projection))
    return Branches(branches), layer.one + layer.three[1] + depth + (layer.projection or in_channels)


def inception_v2(spec: NetSpec) -> InceptionV2:
    """Inception V2 with as many outputs as the spec has classes.

    It reads the spec's num_classes, dropout, padding and BatchNorm values; activation and min_depth are MobileNet's.
    Raises ValueError for a width other than 1.
    """
    refuse_width(spec)
    return InceptionV2(INCEPTION_V2, spec)
