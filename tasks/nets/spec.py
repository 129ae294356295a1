"""What a net is asked to be: the values of one row of a table, before any module is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tasks.boxes import Suppression

Padding = Literal["same", "symmetric"]
Activation = Literal["relu", "relu6"]

# The smallest square images, in pixels, of which something is left behind a net's last stride; the others take any.
MIN_INPUT_SIZE = {
    "googlenet": 15, "vgg16": 32, "squeezenet": 21, "alexnet": 63, "inception_v3": 75, "facenet_nn2": 17,
    "faster_rcnn_vgg": 16,
}  # fmt: skip


@dataclass(frozen=True)
class NetSpec:
    """A net by name and options. The defaults are those of slim's `mobilenet_v1.py`, with the paper's class count.

    net: a key of `tasks.nets.NETS`.
    width: alpha (paper, section 3.3): every layer's channels times it. The baselines have none: 1.0.
    num_classes: outputs of the last layer. slim has 1001, with an unused class 0 as background; the paper 1000.
    padding: of the 3x3 convolutions under stride 2, where an even side can be padded at one end alone. "same" is
        TensorFlow's (after the last pixel), "symmetric" what torch makes of padding=1 (before the first).
    activation: after every convolution. The paper says ReLU, its authors' code has ReLU6.
    batch_norm_decay: share of the old running statistics in the new: 1 - torch's `momentum`.
    batch_norm_epsilon: added to the variance.
    dropout: share of features zeroed before the last layer.
    min_depth: channels that no layer goes below, whatever the width. 8 on ImageNet; 16 in the authors' detection code.
    proposals, second_stage_boxes: of an image, that Faster R-CNN looks at, and that its second stage learns from.
    score_threshold, nms_iou, max_detections: see `tasks.boxes.Suppression`; they change no weight.

    The baselines read net, num_classes, dropout and, where they have BatchNorm, its two values; detectors alone what is
    said of boxes. Those defaults are of TensorFlow's `ssd_mobilenet_v1_coco.config` and
    `faster_rcnn_inception_v2_coco.config`.
    """

    net: str
    width: float = 1.0
    num_classes: int = 1000
    padding: Padding = "same"
    activation: Activation = "relu6"
    batch_norm_decay: float = 0.9997
    batch_norm_epsilon: float = 0.001
    dropout: float = 0.001
    min_depth: int = 8
    proposals: int = 300
    second_stage_boxes: int = 64
    score_threshold: float = 1e-8
    nms_iou: float = 0.6
    max_detections: int = 100

    @property
    def suppression(self) -> Suppression:
        """Which of a detector's boxes are its detections."""
        return Suppression(self.score_threshold, self.nms_iou, self.max_detections)

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ValueError(f"width is {self.width}; it must be above 0")
        if self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; it must be at least 1")
        for field, value, allowed in (
            ("padding", self.padding, get_args(Padding)),
            ("activation", self.activation, get_args(Activation)),
        ):
            if value not in allowed:
                raise ValueError(f"{field} is {value!r}; it must be one of {', '.join(allowed)}")


def check_input_size(net: str, size: int) -> None:
    """Raise ValueError if square images of that side, in pixels, vanish on their way through the net."""
    smallest = MIN_INPUT_SIZE.get(net, 1)
    if size < smallest:
        raise ValueError(f"input size {size} is too small for {net}; it needs at least {smallest} px")


def refuse_width(spec: NetSpec) -> None:
    """Raise ValueError for a width other than 1, which only MobileNet and the nets beside it in its paper have."""
    if spec.width != 1.0:
        raise ValueError(f"width is {spec.width}; {spec.net} has no width multiplier, only 1.0 is allowed")
