"""Faster R-CNN on three nets (Table 13): a first stage proposes boxes, and a second looks at each of them.

Ren et al. 2015, arXiv 1506.01497; settings of Huang et al. 2016, arXiv 1611.10012, section 3.6.1, and of TensorFlow's
detection code: https://github.com/tensorflow/models/tree/master/research/object_detection
300 and 600 px are one net. The spec's 300 proposals are all looked at, whatever the image, so that the second stage
sets the price:

    row           map            a box's 14x14 crop goes through   Mult-Adds at 300, 600 px     printed   weights
    VGG           conv5_3        max pool, fc6, fc7 (4096)          64.30 B    149.54 B    64.3  149.6   138.49 M
    Inception V2  Mixed_4e       Mixed_5a to Mixed_5c (1024)       118.22 B    129.57 B   118.2  129.6    13.29 M
    MobileNet     conv11         conv12, conv13 (1024)              25.22 B     30.49 B    25.2   30.5     6.04 M

On the map, of stride 16, a 3x3 convolution to 512 channels, and 12 anchors to a cell. Images are square, as they have
to be for the printed figures. BatchNorm is frozen (Huang et al.: to what ImageNet left), so that Inception V2 and
MobileNet learn little unless they start from an ImageNet net's weights.

Divergences from TensorFlow's code: MobileNet's second stage has conv12 and conv13 of the ImageNet net, with BatchNorm
and an activation between depthwise and pointwise, and their weights; there it starts anew, without these. The factors
and offsets of BatchNorm are frozen too. Anchors stand on the middle of their cells, there on the upper left corner.
See also `tasks.proposals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.boxes import decode, detections
from tasks.nets.anchors import Level, Shape, anchors_on
from tasks.nets.baselines import baseline
from tasks.nets.frozen import freeze_batch_norm
from tasks.nets.inception_v2 import InceptionV2, inception_v2
from tasks.nets.mobilenet import MobileNet, mobilenet
from tasks.nets.spec import NetSpec, refuse_width
from tasks.proposals import ANCHORS, BOXES, draw, propose, stage_losses, take

STRIDE = 16
SCALES, RATIOS = (0.25, 0.5, 1.0, 2.0), (0.5, 1.0, 2.0)  # of anchors: sides over the base, width over height
BASE, BASE_SIDE = 256, 300  # an anchor of scale 1 in pixels, and the smallest image with which it does not shrink
FIRST_STAGE = 12  # layers of slim's nets before the crops: up to conv11 and to Mixed_4e
CROP = 14
RPN_DEPTH, RPN_STDDEV = 512, 0.01


class FasterRCNN(nn.Module):
    """A body in two parts, what the first makes of images and the second of crops of that, and predictors behind both.

    Names below `body` are those of the net that is trained on ImageNet, which has another last layer.
    first: (the body, images (N, 3, S, S)) -> maps (N, depth, S / 16, S / 16). second: (the body, crops (K, depth, 14,
    14)) -> (K, features). Images are in [-1, 1], of any S of which a map is left.
    """

    def __init__(
        self,
        body: nn.Module,
        first: Callable[[Any, Tensor], Tensor],
        second: Callable[[Any, Tensor], Tensor],
        depth: int,
        features: int,
        spec: NetSpec,
    ) -> None:
        super().__init__()
        self.body, self.first, self.second = body, first, second
        self.proposals, self.suppression = spec.proposals, spec.suppression
        self.minibatch = BOXES._replace(size=spec.second_stage_boxes)
        shapes = len(SCALES) * len(RATIOS)
        self.rpn = nn.Sequential(nn.Conv2d(depth, RPN_DEPTH, 3, padding=1), nn.ReLU6())
        self.rpn_logits, self.rpn_offsets = nn.Conv2d(RPN_DEPTH, shapes * 2, 1), nn.Conv2d(RPN_DEPTH, shapes * 4, 1)
        self.logits, self.offsets = (
            nn.Linear(features, spec.num_classes),
            nn.Linear(features, (spec.num_classes - 1) * 4),
        )
        normal = partial(nn.init.trunc_normal_, std=RPN_STDDEV, a=-2 * RPN_STDDEV, b=2 * RPN_STDDEV)
        _initialise([*self.rpn.modules(), self.rpn_logits, self.rpn_offsets], normal)
        _initialise([self.logits, self.offsets], nn.init.xavier_uniform_)

    def forward(self, images: Tensor) -> Tensor:
        """(N, K, 6), see `tasks.boxes.detections`: what is seen, boxes in [0, 1], labels from 1."""
        return self.detect(self.outputs(images))

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Of each image's P proposals: "logits" (N, P, C), class 0 the background, "offsets" (N, P, C - 1, 4), and
        "proposals" (N, P, 4), zeros at the end where there are fewer.

        Boxes are looked at image by image: memory is that of one, whatever the batch. Raises ValueError for images that
        are not square.
        """
        maps, logits, offsets, boxes = self._first_stage(images)
        proposals = propose(logits, offsets, boxes, self.proposals)
        found = [self._second_stage(*image) for image in zip(maps.split(1), proposals.split(1), strict=True)]
        logits, offsets = (torch.cat(part) for part in zip(*found, strict=True))
        return {"logits": logits, "offsets": offsets, "proposals": proposals}

    def losses(self, images: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch in its parts, weighted: "classification" and "localisation" of each stage, those of the
        first with "rpn_" before. Targets as `tasks.multibox.assign` takes them, by name.

        The second stage learns from its minibatch of proposals alone. Both are drawn from torch's default generator.
        """
        maps, logits, offsets, boxes = self._first_stage(images)
        drawn = draw(boxes, targets, ANCHORS)
        drawn = drawn._replace(labels=drawn.labels.clamp(max=1))  # an object, of whatever class
        scores, shifts, starts = (take(values, drawn.places) for values in (logits, offsets[:, :, None], boxes))
        losses = {f"rpn_{name}": loss for name, loss in stage_losses(scores, shifts, starts, drawn).items()}
        proposals = propose(logits, offsets, boxes, self.proposals)
        drawn = draw(proposals, targets, self.minibatch)
        proposals = take(proposals, drawn.places)
        return losses | stage_losses(*self._second_stage(maps, proposals), proposals, drawn)

    @torch.no_grad()
    def detect(self, outputs: dict[str, Tensor]) -> Tensor:
        """What `forward` makes of `outputs`."""
        scores = outputs["logits"].float().softmax(dim=-1)[..., 1:]
        boxes = decode(outputs["offsets"].float(), outputs["proposals"][:, :, None]).clamp(0, 1)
        return detections(boxes, scores, self.suppression)

    def _first_stage(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps, and by anchor logits (N, A, 2), offsets (N, A, 4) and anchors (N, A, 4)."""
        height, width = images.shape[2:]
        if height != width:
            raise ValueError(f"images are {width}x{height}; Faster R-CNN takes square ones")
        maps = self.first(self.body, images)
        read = self.rpn(maps)
        logits, offsets = (
            predictor(read).permute(0, 2, 3, 1).reshape(len(images), -1, values)
            for predictor, values in ((self.rpn_logits, 2), (self.rpn_offsets, 4))
        )
        boxes = anchors_on(images.device, (level(width),), (maps.shape[-1],), width)
        return maps, logits, offsets, boxes.expand(len(images), -1, -1)

    def _second_stage(self, maps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Of boxes (N, K, 4): logits (N, K, C) and offsets (N, K, C - 1, 4)."""
        features = self.second(self.body, crop(maps, boxes))
        shape = boxes.shape[:2]
        return self.logits(features).unflatten(0, shape), self.offsets(features).view(*shape, -1, 4)


def level(input_size: int) -> Level:
    """The anchors of a cell. An anchor of scale 1 has the area of 256x256 px, as in TensorFlow's code.

    In images below 300 px anchors shrink with the image, so that such a net sees what it would see at 300.
    """
    base = BASE / max(input_size, BASE_SIDE)
    sides = ((base * scale, math.sqrt(ratio)) for scale in SCALES for ratio in RATIOS)
    return Level(tuple(Shape(side * root, side / root) for side, root in sides), STRIDE)


def crop(maps: Tensor, boxes: Tensor) -> Tensor:
    """The boxes (N, K, 4) cut out of maps (N, C, H, W): (N * K, C, 14, 14), channels_last.

    TensorFlow's `crop_and_resize`: 14 points from edge to edge of a box, between the four cells around each. An image's
    edges are the middles of the map's outermost cells. Boxes have no gradient.

    Each side is a product of matrices, which takes a third of the time of `grid_sample` on a CPU: that reads and
    writes the default format alone.
    """
    steps = torch.linspace(0, 1, CROP, device=boxes.device)
    start, end = boxes[..., None, :2], boxes[..., None, 2:]
    x, y = (start + steps[:, None] * (end - start)).clamp(0, 1).unbind(dim=-1)  # (N, K, 14)
    height, width = maps.shape[2:]
    cells = maps.permute(0, 2, 3, 1).flatten(2)  # (N, H, W * C)
    rows = (_between(y, height).flatten(1, 2) @ cells).view(*boxes.shape[:2], CROP, width, -1)
    crops = _between(x, width)[:, :, None] @ rows  # (N, K, 14, 14, C)
    return crops.flatten(0, 1).permute(0, 3, 1, 2)


def _between(places: Tensor, cells: int) -> Tensor:
    """How much of each of a side's cells is in each place: (...), in [0, 1] -> (..., cells)."""
    across = torch.arange(cells, device=places.device)
    return (1 - (places[..., None] * (cells - 1) - across).abs()).clamp(min=0)


def faster_rcnn_mobilenet(spec: NetSpec) -> FasterRCNN:
    """Faster R-CNN on MobileNet 1.0, with as many scores as the spec has classes, of which the first is the background.

    It reads the spec's num_classes, padding, activation, epsilon and what is said of boxes. Raises ValueError for a
    width but 1.
    """
    return _on_slim(mobilenet(spec), 512, spec)


def faster_rcnn_inception_v2(spec: NetSpec) -> FasterRCNN:
    """Faster R-CNN on Inception V2, as `faster_rcnn_mobilenet` but that the activation is ReLU."""
    return _on_slim(inception_v2(spec), 576, spec)


def faster_rcnn_vgg(spec: NetSpec) -> FasterRCNN:
    """Faster R-CNN on VGG 16. It reads the spec's num_classes, dropout and what is said of boxes.

    Raises ValueError for a width but 1.
    """
    refuse_width(spec)
    body = baseline(replace(spec, net="vgg16"))
    layers = body.get_submodule("features"), body.get_submodule("classifier")
    for part in layers:
        assert isinstance(part, nn.Sequential)
        del part[-1]  # the last pool and the last layer
    return FasterRCNN(body, _vgg_map, _vgg_features, 512, 4096, spec)


def _on_slim(body: MobileNet | InceptionV2, depth: int, spec: NetSpec) -> FasterRCNN:
    refuse_width(spec)
    del body.pool, body.dropout, body.classifier
    freeze_batch_norm(body)
    return FasterRCNN(body, _slim_map, _slim_features, depth, 1024, spec)


def _slim_map(body: MobileNet | InceptionV2, images: Tensor) -> Tensor:
    return _run(body, slice(FIRST_STAGE), images)


def _slim_features(body: MobileNet | InceptionV2, crops: Tensor) -> Tensor:
    return _run(body, slice(FIRST_STAGE, None), crops).mean(dim=(2, 3))


def _run(body: MobileNet | InceptionV2, layers: slice, maps: Tensor) -> Tensor:
    """Some layers on maps that lie as the images do, which MobileNet's layers may want turned."""
    turned = isinstance(body, MobileNet) and body.turned
    placed = (maps.flip(2, 3) if turned else maps).contiguous(memory_format=torch.channels_last)
    found = body.body[layers](placed)
    return found.flip(2, 3) if turned else found


def _vgg_map(body: nn.Module, images: Tensor) -> Tensor:
    return body.get_submodule("features")(images.contiguous(memory_format=torch.channels_last))


def _vgg_features(body: nn.Module, crops: Tensor) -> Tensor:
    return body.get_submodule("classifier")(F.max_pool2d(crops, 2).flatten(1))


def _initialise(layers: Iterable[nn.Module], start: Callable[[Tensor], Tensor]) -> None:
    """Weights by `start`, biases 0."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            start(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
