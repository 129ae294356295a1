"""The nets that the paper compares MobileNet with (Tables 8 to 10), as torchvision builds them, untrained.

How they differ from the nets that the paper cites, and their published dropout, which `NetSpec.dropout` has to state:

    googlenet     Szegedy et al. 2014. No side heads. torchvision's has BatchNorm, and 3x3 filters in the branch that
                  should have 5x5 (https://github.com/pytorch/vision/issues/906): 1.50 billion Mult-Adds and 6.6 million
                  parameters, the paper's 1.55 and 6.8. Dropout 0.4.
    vgg16         Simonyan and Zisserman 2014, configuration D, without BatchNorm. The paper's 15.3 billion Mult-Adds
                  leave out the fully connected layers: 15.35, with them 15.47. Dropout 0.5.
    squeezenet    Iandola et al. 2016, version 1.0. 819 million Mult-Adds; the paper's 1700 million are about
                  additions and multiplications counted apart. Dropout 0.5.
    alexnet       Krizhevsky 2014 (arXiv 1404.5997), one tower: 714 million Mult-Adds, 61.1 million parameters. The
                  paper's 720 and 60 are of the net of 2012, whose two towers halve some layers. No local response
                  normalisation. Dropout 0.5.
    inception_v3  Szegedy et al. 2015, without its side head. Dropout 0.2 in the authors' code, 0.5 in torchvision's.

Initialisation is He's for all of them (arXiv 1502.01852), from each layer's inputs, so that the nets without
BatchNorm train from scratch too; torchvision's own differs from net to net. The last layer's weights start near 0 and
its biases at 1: SqueezeNet ends in a ReLU, under which half the classes would start without a gradient, and with few
classes all of them can. A softmax does not see what is added to every class.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from tasks.nets.spec import NetSpec, check_input_size, refuse_width

_NO_SIDE_HEADS = {"aux_logits": False, "init_weights": False}
_TORCHVISION: dict[str, tuple[str, dict[str, Any]]] = {
    "googlenet": ("googlenet", _NO_SIDE_HEADS),
    "vgg16": ("vgg16", {"init_weights": False}),
    "squeezenet": ("squeezenet1_0", {}),
    "alexnet": ("alexnet", {}),
    "inception_v3": ("inception_v3", _NO_SIDE_HEADS),
}
LAST_LAYER_STDDEV = 0.01


def baseline(spec: NetSpec) -> nn.Module:
    """The torchvision net of a spec's name: (N, 3, H, W) -> logits (N, num_classes), also in training mode.

    It reads the spec's class count, dropout and BatchNorm values; padding, activation and min_depth are MobileNet's.
    Raises ValueError for a width other than 1, and, when it is called, for images under `MIN_INPUT_SIZE`.
    """
    from torchvision.models import get_model  # here, because it takes seconds and MobileNet does without

    refuse_width(spec)
    name, options = _TORCHVISION[spec.net]
    net: nn.Module = get_model(name, weights=None, num_classes=spec.num_classes, dropout=spec.dropout, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0 - spec.batch_norm_decay
            module.eps = spec.batch_norm_epsilon
    _initialise(net)
    net.register_forward_pre_hook(partial(_refuse_small_images, spec.net))
    return net


def _refuse_small_images(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
    check_input_size(name, min(inputs[0].shape[2:]))


def _initialise(net: nn.Module) -> None:
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    last = layers[-1]
    assert last.bias is not None
    nn.init.normal_(last.weight, std=LAST_LAYER_STDDEV)
    nn.init.ones_(last.bias)
