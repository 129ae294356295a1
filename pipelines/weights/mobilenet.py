"""A published MobileNet, whatever file it comes from, as the state dict of `tasks.nets.mobilenet`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.nets import NetSpec, build
from tasks.nets.mobilenet import MOBILENET

Array = NDArray[np.float32]
EPSILON = NetSpec.batch_norm_epsilon  # slim's and Keras's
MAX_BYTES = 1 << 26  # of a file; the largest published one has 17 MB


class Convolution(NamedTuple):
    """A convolution and its BatchNorm.

    name: what the file calls it. kernel: (out, in, H, W), depthwise (channels, 1, H, W), lying as TensorFlow's do.
    gamma, beta, mean, variance: (out,).
    """

    name: str
    kernel: Array
    gamma: Array
    beta: Array
    mean: Array
    variance: Array


class Classifier(NamedTuple):
    """The last layer. kernel: (classes, channels, 1, 1). bias: (classes,)."""

    name: str
    kernel: Array
    bias: Array


class Published(NamedTuple):
    """What a file holds. convolutions: all 27 in the net's order. size: height and width of the images, if it says."""

    convolutions: list[Convolution]
    classifier: Classifier | None
    size: tuple[int, int] | None
    kind: str

    @property
    def width(self) -> float:
        """Alpha, by the channels of the last convolution."""
        return max(1, self.convolutions[-1].beta.size) / MOBILENET[-1].depth


def state_dict(published: Published) -> dict[str, Tensor]:
    """The weights by the names of `tasks.nets`' MobileNet with padding "same" and activation "relu6".

    Without a classifier in the file there is none here either. Raises ValueError that names the first layer whose shape
    is not MobileNet's at that width, or whose values cannot be.
    """
    classes = 1 if published.classifier is None else published.classifier.bias.size
    with torch.device("meta"):
        net = build(NetSpec("mobilenet", width=published.width, num_classes=max(1, classes)))
    expected = net.state_dict()
    state = {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}
    for name, layer, array in _named(published, net):
        dimensions = (*expected[name].shape, 1, 1) if name == "classifier.weight" else tuple(expected[name].shape)
        if array.shape != dimensions:
            raise ValueError(f"{layer} has shape {array.shape}, not {dimensions} as at width {published.width:g}")
        if not np.isfinite(array).all() or (name.endswith("running_var") and array.min() < 0):
            raise ValueError(f"{layer} has values that are not finite, or a variance below 0")
        # Turned by 180 degrees, as the net sees its images; see `tasks.nets.mobilenet.MobileNet`.
        turned = np.flip(array, (2, 3)) if array.ndim == 4 else array
        state[name] = torch.from_numpy(np.array(turned, np.float32, order="C")).reshape(expected[name].shape)
    wanted = [name for name in expected if published.classifier or not name.startswith("classifier.")]
    assert state.keys() == set(wanted), state.keys() ^ set(wanted)
    return {name: state[name] for name in wanted}


def _named(published: Published, net: nn.Module) -> Iterator[tuple[str, str, Array]]:
    """(name in the state dict, name in the file, values) of all weights."""
    convolutions = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for layer, convolution, norm in zip(published.convolutions, convolutions, norms, strict=True):
        yield f"{convolution}.weight", f"{layer.name}'s kernel", layer.kernel
        yield f"{norm}.weight", f"{layer.name}'s gamma", layer.gamma
        yield f"{norm}.bias", f"{layer.name}'s beta", layer.beta
        yield f"{norm}.running_mean", f"{layer.name}'s mean", layer.mean
        yield f"{norm}.running_var", f"{layer.name}'s variance", layer.variance
    if published.classifier is not None:
        last = published.classifier
        yield "classifier.weight", f"{last.name}'s kernel", last.kernel
        yield "classifier.bias", f"{last.name}'s bias", last.bias
