"""SSD at 300 px on three nets (Table 13): maps of six sizes, and on each a convolution that scores and shifts anchors.

Liu et al. 2015, arXiv 1512.02325; settings of Huang et al. 2016, arXiv 1611.10012, section 3.6.3, and of TensorFlow's
detection code, `ssd_mobilenet_v1_coco.config` and `ssd_inception_v2_coco.config`; VGG's of the SSD authors' own:
https://github.com/tensorflow/models/tree/master/research/object_detection
https://github.com/weiliu89/caffe/blob/ssd/examples/ssd/ssd_coco.py

    row           maps of the body     added sides   predictors  scores   Mult-Adds  weights    printed
    VGG           conv4_3, fc7         10, 5, 3, 1   3x3         softmax   34.86 B   35.63 M   34.9; 33.1
    Inception V2  Mixed_4c, Mixed_5c    5, 3, 2, 1   1x1         sigmoid    3.78 B   13.77 M    3.8; 13.7
    MobileNet     conv11, conv13        5, 3, 2, 1   1x1         sigmoid    1.24 B    6.79 M    1.2;  6.8

VGG's printed weights seem to leave out the layers behind fc7, 2.46 million. Inception V2's public configuration has
predictors of 3x3, which cost too much for the printed figures.

The scores are a choice: Huang et al. have a softmax in all of them. Divergences: VGG's layers that no classifier has
start from He's initialisation, its predictors from Xavier's, and `settle` scales all behind its body; the two layers
behind fc7 that are without padding take a map below 3x3 for one of 3x3 with zeros around, so that inputs below 257 px
work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.boxes import Suppression, decode, detections
from tasks.multibox import Scores, multibox_losses
from tasks.nets.anchors import Level, anchors_on, caffe_levels, tensorflow_levels
from tasks.nets.inception import PaddedConv
from tasks.nets.inception_v2 import InceptionV2, inception_v2
from tasks.nets.mobilenet import ACTIVATIONS, MobileNet, mobilenet
from tasks.nets.spec import NetSpec, refuse_width
from tasks.nets.unit_variance import scale_to_unit_variance, soft_noise

ADDED_STDDEV = 0.03
ADDED_DEPTHS = (512, 256, 256, 128)
CONV4_3, CONV4_3_SCALE = 23, 20.0  # the first counts VGG's layers up to that map, ReLU included
FC_MAP, FC_STRIDE, FC_EVERY = 7, 3, 4  # see `reduced_fc`
FC_SHAPES: dict[str, tuple[int, ...]] = {
    "classifier.0.weight": (4096, 512 * FC_MAP**2),
    "classifier.0.bias": (4096,),
    "classifier.3.weight": (4096, 4096),
    "classifier.3.bias": (4096,),
}


class Head(NamedTuple):
    """What is predicted from the maps. kernel: the predictors'. levels: the anchors of each map."""

    levels: tuple[Level, ...]
    kernel: int
    scores: Scores


class SSD(nn.Module):
    """A body whose maps `read` takes, a neck for each of them, layers that go on from the last, and predictors.

    Names below `body` are those of the net that is trained on ImageNet, which has a classifier beside them.
    Images are (N, 3, S, S) in [-1, 1], of any S; in training two at least, for BatchNorm has no variance of one pixel.
    """

    def __init__(
        self,
        body: nn.Module,
        read: Callable[[Any, Tensor], list[Tensor]],
        necks: Sequence[nn.Module],
        added: Sequence[nn.Module],
        depths: Sequence[int],
        head: Head,
        num_classes: int,
        suppression: Suppression,
        derive: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.derive = derive  # from a classifier's weights, those that the net has of it outside its body
        self.body, self.read, self.head, self.suppression = body, read, head, suppression
        self.necks, self.added = nn.ModuleList(necks), nn.ModuleList(added)
        convolution = partial(nn.Conv2d, kernel_size=head.kernel, padding=head.kernel // 2)
        shapes = [len(level.shapes) for level in head.levels]
        self.logits = nn.ModuleList(convolution(d, k * num_classes) for d, k in zip(depths, shapes, strict=True))
        self.offsets = nn.ModuleList(convolution(d, k * 4) for d, k in zip(depths, shapes, strict=True))
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        """(N, K, 6), see `tasks.boxes.detections`: what is seen, boxes in [0, 1], labels from 1."""
        return self.detect(self.outputs(images))

    def settle(self, size: int) -> None:
        """Scale the layers behind the body, where they are without BatchNorm, for the start of training at `size` px.

        Else the smallest maps, where most of a kernel is outside, would give the predictors of large objects no signal.
        """
        if any(isinstance(layer, nn.BatchNorm2d) for layer in self.added.modules()):
            return
        with torch.no_grad():
            maps = self.read(self.body, soft_noise(size))[-1]
        scale_to_unit_variance([layer for part in (self.necks[-1], *self.added) for layer in part.children()], maps)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """By anchor: "logits" (N, A, C), class 0 the background, "offsets" (N, A, 4), and "anchors" (N, A, 4).

        Raises ValueError for images that are not square.
        """
        height, width = images.shape[2:]
        if height != width:
            raise ValueError(f"images are {width}x{height}; SSD takes square ones")
        maps = [neck(found) for neck, found in zip(self.necks, self.read(self.body, images), strict=True)]
        for layer in self.added:
            maps.append(layer(maps[-1]))
        boxes = anchors_on(images.device, self.head.levels, tuple(found.shape[-1] for found in maps), width)
        return {
            "logits": _by_anchor(self.logits, maps, self.num_classes),
            "offsets": _by_anchor(self.offsets, maps, 4),
            "anchors": boxes.expand(len(images), -1, -1),
        }

    def losses(self, images: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch in its parts, "classification" and "localisation".

        Targets as `tasks.multibox.assign` takes them, by name.
        """
        outputs = self.outputs(images)
        return multibox_losses(outputs["offsets"], outputs["logits"], outputs["anchors"], targets, self.head.scores)

    @torch.no_grad()
    def detect(self, outputs: dict[str, Tensor]) -> Tensor:
        """What `forward` makes of `outputs`."""
        logits = outputs["logits"].float()
        scores = logits.sigmoid() if self.head.scores == "sigmoid" else logits.softmax(dim=-1)
        boxes = decode(outputs["offsets"].float(), outputs["anchors"]).clamp(0, 1)
        return detections(boxes, scores[..., 1:], self.suppression)


class L2Norm(nn.Module):
    """Each pixel's channels to length 1, times a learnt scale for each channel (arXiv 1506.04579, section 3.3)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, maps: Tensor) -> Tensor:
        return F.normalize(maps, dim=1) * self.scale[:, None, None]


class ValidConv(nn.Conv2d):
    """A 3x3 convolution without padding, but for as much as a side below 3 lacks."""

    def forward(self, maps: Tensor) -> Tensor:
        across, down = (max(3 - side, 0) for side in (maps.shape[3], maps.shape[2]))
        return super().forward(F.pad(maps, (across // 2, across - across // 2, down // 2, down - down // 2)))


def ssd300_mobilenet(spec: NetSpec) -> SSD:
    """SSD on MobileNet 1.0, with as many scores as the spec has classes, of which the first is the background.

    It reads the spec's num_classes, padding, activation, BatchNorm values and which boxes to keep. Raises ValueError
    for a width but 1.
    """
    return _on_slim(mobilenet(spec), ("conv11", "conv13"), (512, 1024), spec)


def ssd300_inception_v2(spec: NetSpec) -> SSD:
    """SSD on Inception V2, as `ssd300_mobilenet` but that the spec's activation is that of the added layers only."""
    return _on_slim(inception_v2(spec), ("Mixed_4c", "Mixed_5c"), (576, 1024), spec)


def ssd300_vgg(spec: NetSpec) -> SSD:
    """SSD on VGG 16 whose fully connected layers are convolutions, "deeplab"'s (arXiv 1412.7062): fc6 is 3x3, dilated.

    It reads the spec's num_classes and which boxes to keep; there is no BatchNorm. Raises ValueError for a width but
    1.
    """
    from torchvision.models.vgg import cfgs, make_layers  # here, because it takes seconds and MobileNet does without

    refuse_width(spec)
    features = make_layers(cfgs["D"], batch_norm=False)[:-1]  # up to conv5_3
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # as in Caffe: 75 pixels become 38
    fc = nn.Sequential(
        nn.MaxPool2d(3, stride=1, padding=1),
        *_with_relu(nn.Conv2d(512, 1024, 3, padding=6, dilation=6)),
        *_with_relu(nn.Conv2d(1024, 1024, 1)),
    )
    added = [
        nn.Sequential(*_with_relu(nn.Conv2d(1024, 256, 1)), *_with_relu(nn.Conv2d(256, 512, 3, stride=2, padding=1))),
        nn.Sequential(*_with_relu(nn.Conv2d(512, 128, 1)), *_with_relu(nn.Conv2d(128, 256, 3, stride=2, padding=1))),
        nn.Sequential(*_with_relu(nn.Conv2d(256, 128, 1)), *_with_relu(ValidConv(128, 256, 3))),
        nn.Sequential(*_with_relu(nn.Conv2d(256, 128, 1)), *_with_relu(ValidConv(128, 256, 3))),
    ]
    necks = (L2Norm(512, CONV4_3_SCALE), fc)
    body = nn.ModuleDict({"features": features})
    head = Head(caffe_levels(), kernel=3, scores="softmax")
    depths = (512, 1024, 512, 256, 256, 256)
    net = SSD(body, _read_vgg, necks, added, depths, head, spec.num_classes, spec.suppression, reduced_fc)
    _initialise([net.body, net.necks, net.added], partial(nn.init.kaiming_normal_, nonlinearity="relu"))
    _initialise([net.logits, net.offsets], nn.init.xavier_uniform_)
    return net


def reduced_fc(classifier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VGG 16's first two fully connected layers, as torchvision names them, made `ssd300_vgg`'s fc6 and fc7, by name.

    Every 4th output, and of the 7x7 places every 3rd in each direction, which lie 6 apart on a map that is not pooled:
    the SSD authors' VGG_ILSVRC_16_layers_fc_reduced. Empty for weights without a classifier. Raises ValueError for
    layers that are missing or of other shapes.
    """
    if not any(name.startswith("classifier.") for name in classifier):
        return {}
    for name, shape in FC_SHAPES.items():
        found = tuple(classifier[name].shape) if name in classifier else None
        if found != shape:
            raise ValueError(f"{name!r} is {found or 'absent'}, it must be {shape}")
    fc6 = classifier["classifier.0.weight"].unflatten(1, (-1, FC_MAP, FC_MAP))
    return {
        "necks.1.1.weight": fc6[::FC_EVERY, :, ::FC_STRIDE, ::FC_STRIDE],
        "necks.1.1.bias": classifier["classifier.0.bias"][::FC_EVERY],
        "necks.1.3.weight": classifier["classifier.3.weight"][::FC_EVERY, ::FC_EVERY, None, None],
        "necks.1.3.bias": classifier["classifier.3.bias"][::FC_EVERY],
    }


def _on_slim(body: MobileNet | InceptionV2, names: tuple[str, str], depths: tuple[int, int], spec: NetSpec) -> SSD:
    refuse_width(spec)
    del body.pool, body.dropout, body.classifier
    added, before = [], depths[-1]
    for depth in ADDED_DEPTHS:
        added.append(_added_layer(before, depth, spec))
        before = depth
    necks = (nn.Identity(), nn.Identity())
    head = Head(tensorflow_levels(), kernel=1, scores="sigmoid")
    read, all_depths = partial(_read_slim, names), (*depths, *ADDED_DEPTHS)
    net = SSD(body, read, necks, added, all_depths, head, spec.num_classes, spec.suppression)
    bound = 2 * ADDED_STDDEV  # where TensorFlow cuts the distribution
    start = partial(nn.init.trunc_normal_, std=ADDED_STDDEV, a=-bound, b=bound)
    _initialise([net.added, net.logits, net.offsets], start)
    return net


def _added_layer(in_channels: int, depth: int, spec: NetSpec) -> nn.Sequential:
    """(N, in_channels, S, S) -> (N, depth, ceil(S / 2), ceil(S / 2))."""
    norm = partial(nn.BatchNorm2d, eps=spec.batch_norm_epsilon, momentum=1.0 - spec.batch_norm_decay)
    parts: list[nn.Module] = []
    for before, after, kernel, stride in ((in_channels, depth // 2, 1, 1), (depth // 2, depth, 3, 2)):
        parts += [PaddedConv(before, after, kernel, stride, same=spec.padding == "same"), norm(after)]
        parts.append(ACTIVATIONS[spec.activation]())
    return nn.Sequential(*parts)


def _read_slim(names: Sequence[str], body: MobileNet | InceptionV2, images: Tensor) -> list[Tensor]:
    maps = body.features(images, names)
    return [maps[name] for name in names]


def _read_vgg(body: nn.Module, images: Tensor) -> list[Tensor]:
    layers = body.get_submodule("features")
    assert isinstance(layers, nn.Sequential)
    conv4_3 = layers[:CONV4_3](images.contiguous(memory_format=torch.channels_last))
    return [conv4_3, layers[CONV4_3:](conv4_3)]


def _with_relu(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    return layer, nn.ReLU(inplace=True)


def _initialise(parts: Sequence[nn.Module], start: Callable[[Tensor], Tensor]) -> None:
    """Kernels by `start`, biases 0."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                start(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def _by_anchor(predictors: nn.ModuleList, maps: list[Tensor], values: int) -> Tensor:
    """(N, K * values, S, S) of each map -> (N, A, values), in the order of `tasks.nets.anchors`."""
    parts = [predictor(found).permute(0, 2, 3, 1) for predictor, found in zip(predictors, maps, strict=True)]
    return torch.cat([part.reshape(len(part), -1, values) for part in parts], dim=1)
