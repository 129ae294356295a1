"""The nets of the paper's tables: a spec goes in, a module comes out that maps images to logits.

Every net takes images (N, 3, H, W), float, in [-1, 1]. A classifier returns logits (N, num_classes), a detector a dict
of what its losses and its detections are made of.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tasks.nets.baselines import baseline
from tasks.nets.facenet_nn2 import facenet_nn2
from tasks.nets.faster_rcnn import faster_rcnn_inception_v2, faster_rcnn_mobilenet, faster_rcnn_vgg
from tasks.nets.inception_v2 import inception_v2
from tasks.nets.mobilenet import conv_mobilenet, mobilenet, shallow_mobilenet
from tasks.nets.spec import MIN_INPUT_SIZE, NetSpec, check_input_size
from tasks.nets.ssd import ssd300_inception_v2, ssd300_mobilenet, ssd300_vgg

__all__ = ["CLASSIFIERS", "DETECTORS", "MIN_INPUT_SIZE", "NETS", "NetSpec", "build", "check_input_size"]

CLASSIFIERS: dict[str, Callable[[NetSpec], nn.Module]] = {
    "mobilenet": mobilenet,
    "conv_mobilenet": conv_mobilenet,
    "shallow_mobilenet": shallow_mobilenet,
    "googlenet": baseline,
    "vgg16": baseline,
    "squeezenet": baseline,
    "alexnet": baseline,
    "inception_v3": baseline,
    "facenet_nn2": facenet_nn2,
    "inception_v2": inception_v2,
}
DETECTORS: dict[str, Callable[[NetSpec], nn.Module]] = {
    "ssd300_vgg": ssd300_vgg,
    "ssd300_inception_v2": ssd300_inception_v2,
    "ssd300_mobilenet": ssd300_mobilenet,
    "faster_rcnn_vgg": faster_rcnn_vgg,
    "faster_rcnn_inception_v2": faster_rcnn_inception_v2,
    "faster_rcnn_mobilenet": faster_rcnn_mobilenet,
}
NETS = CLASSIFIERS | DETECTORS


def build(spec: NetSpec) -> nn.Module:
    """The net that a spec describes, freshly initialised from torch's global generator, in training mode.

    It is made on torch's default device: under `torch.device("meta")` it costs nothing and can still be counted.
    Raises ValueError for a name that is not in `NETS` and for options that the net does not have.
    """
    if spec.net not in NETS:
        raise ValueError(f"net {spec.net!r} is unknown; there are: {', '.join(sorted(NETS))}")
    return NETS[spec.net](spec)
