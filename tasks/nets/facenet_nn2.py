"""FaceNet's NN2, the teacher of the paper's face embeddings (Table 14): a table of layers, and one loop that builds it.

Schroff et al. 2015, arXiv 1503.03832, Table 2: GoogLeNet with L2 pools, and strides where it has two pools between
blocks. At 224 px with 128 outputs (biases, BatchNorm and pools are not counted; the published rows count biases):

    layer   output          1x1    3x3           5x5          pool         weights    Mult-Adds
    conv1   112x112x64      (7x7 of stride 2)                                9,408    118,013,952
    pool1     56x56x64      (max of 3x3, stride 2)
    conv2     56x56x192     (1x1 to 64)   (3x3 to 192)                     114,688    359,661,568
    pool2     28x28x192     (max of 3x3, stride 2)
    3a        28x28x256      64     96 to 128    16 to 32     max to 32    163,328    128,049,152
    3b        28x28x320      64     96 to 128    32 to 64     L2 to 64     227,328    178,225,152
    3c        14x14x640            128 to 256    32 to 64     max          397,312    107,978,752   stride 2
    4a        14x14x640     256     96 to 192    32 to 64     L2 to 128    544,768    106,774,528
    4b        14x14x640     224    112 to 224    32 to 64     L2 to 128    594,432    116,508,672
    4c        14x14x640     192    128 to 256    32 to 64     L2 to 128    653,312    128,049,152
    4d        14x14x640     160    144 to 288    32 to 64     L2 to 128    721,408    141,395,968
    4e          7x7x1024           160 to 256    64 to 128    max          716,800     56,197,120   stride 2
    5a          7x7x1024    384    192 to 384    48 to 128    L2 to 128  1,587,200     77,772,800
    5b          7x7x1024    384    192 to 384    48 to 128    max to 128 1,587,200     77,772,800
    last              128   (the average of each map, fully connected)     131,072        131,072

    total     7,448,256 weights, 1,596,530,688 Mult-Adds: the paper's 7.5 million and 1.6 billion

Divergences from the published net:
- BatchNorm after every convolution, as in openface's NN2, and no bias in it: to train from scratch in few steps.
  https://github.com/cmusatyalab/openface/blob/master/models/openface/nn2.def.lua
- No local response normalisation ("norm" beside the first two pools). After BatchNorm it does next to nothing: with
  GoogLeNet's values it takes 0.06 % at most off what it is given in a fresh net. Its two layers would cost a quarter
  of a training step (348 ms in place of 275 ms for 32 images of 56 px on one CPU core).
- An L2 pool is the root of the mean square, a third of the published norm; the BatchNorm that follows undoes a factor.
- The average covers the whole map at any input size, as 7x7 does at 224. Dropout is the spec's; published is none.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tasks.nets.inception import Branches, Conv, MaxPool, chain, initialise
from tasks.nets.spec import NetSpec, check_input_size, refuse_width

L2_POOL_EPSILON = 1e-6


class Inception(NamedTuple):
    """Branches side by side, joined by channel: 1x1; 1x1 and 3x3; 1x1 and 5x5; a pool of 3x3 and 1x1 (`projection`).

    Numbers are the depths of convolutions, each with BatchNorm and ReLU; 0 for none. The stride is that of the 3x3 and
    5x5 layers; at 2 there can be neither a 1x1 branch nor an L2 pool.
    """

    stride: int
    conv1: int
    reduce3: int
    conv3: int
    reduce5: int
    conv5: int
    pool: Literal["max", "l2"]
    projection: int


Layer = Conv | MaxPool | Inception

NN2: dict[str, Layer] = {
    "conv1": Conv(kernel=7, stride=2, depth=64),
    "pool1": MaxPool(stride=2),
    "conv2_reduce": Conv(kernel=1, stride=1, depth=64),
    "conv2": Conv(kernel=3, stride=1, depth=192),
    "pool2": MaxPool(stride=2),
    "inception3a": Inception(1, 64, 96, 128, 16, 32, "max", 32),
    "inception3b": Inception(1, 64, 96, 128, 32, 64, "l2", 64),
    "inception3c": Inception(2, 0, 128, 256, 32, 64, "max", 0),
    "inception4a": Inception(1, 256, 96, 192, 32, 64, "l2", 128),
    "inception4b": Inception(1, 224, 112, 224, 32, 64, "l2", 128),
    "inception4c": Inception(1, 192, 128, 256, 32, 64, "l2", 128),
    "inception4d": Inception(1, 160, 144, 288, 32, 64, "l2", 128),
    "inception4e": Inception(2, 0, 160, 256, 64, 128, "max", 0),
    "inception5a": Inception(1, 384, 192, 384, 48, 128, "l2", 128),
    "inception5b": Inception(1, 384, 192, 384, 48, 128, "max", 128),
}


class FaceNet(nn.Module):
    """A table of layers, global average pool, dropout and a linear layer: (N, 3, H, W) -> (N, num_classes).

    Images are in [-1, 1]. Outputs are raw: to L2-normalise an embedding is the task's part. Activations run
    channels_last, whatever the images are: 1.25 times the speed of the default format on a CPU.
    Raises ValueError for images under `MIN_INPUT_SIZE`.
    """

    def __init__(self, table: dict[str, Layer], spec: NetSpec) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for name, layer in table.items():
            layers[name], channels = build_layer(layer, channels, spec)
        self.body = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(channels, spec.num_classes)
        initialise(self.body, self.classifier)

    def forward(self, images: Tensor) -> Tensor:
        check_input_size("facenet_nn2", min(images.shape[2:]))
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        return self.classifier(self.dropout(self.pool(maps).flatten(1)))


class L2Pool(nn.Module):
    """The root of the mean square of the 3x3 pixels around each pixel, those outside the map left out.

    `L2_POOL_EPSILON` keeps its gradient finite where all of them are 0, as after a ReLU they often are.
    """

    def forward(self, maps: Tensor) -> Tensor:
        mean_square = nn.functional.avg_pool2d(maps.square(), 3, stride=1, padding=1, count_include_pad=False)
        return (mean_square + L2_POOL_EPSILON).sqrt()


def build_layer(layer: Layer, in_channels: int, spec: NetSpec) -> tuple[nn.Module, int]:
    """One row of a table and its depth: (N, in_channels, H, W) -> (N, depth, ceil(H / stride), ceil(W / stride))."""
    convolutions = partial(chain, spec=spec, same=False)
    if isinstance(layer, MaxPool):
        return nn.MaxPool2d(3, stride=layer.stride, padding=1), in_channels
    if isinstance(layer, Conv):
        return convolutions(in_channels, [layer]), layer.depth
    assert layer.stride == 1 or (layer.conv1 == 0 and layer.pool == "max")
    branches: dict[str, nn.Module] = {}
    if layer.conv1:
        branches["conv1"] = convolutions(in_channels, [Conv(1, 1, layer.conv1)])
    branches["conv3"] = convolutions(in_channels, [Conv(1, 1, layer.reduce3), Conv(3, layer.stride, layer.conv3)])
    branches["conv5"] = convolutions(in_channels, [Conv(1, 1, layer.reduce5), Conv(5, layer.stride, layer.conv5)])
    pool = L2Pool() if layer.pool == "l2" else nn.MaxPool2d(3, stride=layer.stride, padding=1)
    projection = [Conv(1, 1, layer.projection)] if layer.projection else []
    branches["pool"] = nn.Sequential(pool, *convolutions(in_channels, projection))
    return Branches(branches), layer.conv1 + layer.conv3 + layer.conv5 + (layer.projection or in_channels)


def facenet_nn2(spec: NetSpec) -> FaceNet:
    """NN2 with as many outputs as the spec has classes: 128 for an embedding, 40 for attributes.

    It reads the spec's num_classes, dropout and BatchNorm values; padding, activation and min_depth are MobileNet's.
    Raises ValueError for a width other than 1.
    """
    refuse_width(spec)
    return FaceNet(NN2, spec)
