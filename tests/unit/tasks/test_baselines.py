"""The baselines against the figures that torchvision publishes with its weights, and on being trainable at all."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torchvision import models

from tasks.nets import MIN_INPUT_SIZE, NetSpec, build, check_input_size
from tasks.nets.complexity import count

WEIGHTS = {
    "googlenet": (models.GoogLeNet_Weights.IMAGENET1K_V1, 224),
    "vgg16": (models.VGG16_Weights.IMAGENET1K_V1, 224),
    "squeezenet": (models.SqueezeNet1_0_Weights.IMAGENET1K_V1, 224),
    "alexnet": (models.AlexNet_Weights.IMAGENET1K_V1, 224),
    "inception_v3": (models.Inception_V3_Weights.IMAGENET1K_V1, 299),
}
INCEPTION_SIDE_HEAD = 27_161_264 - 23_834_568  # torchvision's figure for inception_v3 counts its side head


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small layers lose more to waiting threads than they gain, above all where other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def meta(net: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build(NetSpec(net, **options))


@pytest.mark.parametrize("name", WEIGHTS)
def test_counts_are_those_torchvision_publishes(name: str) -> None:
    weights, size = WEIGHTS[name]
    counted = count(meta(name), size)
    assert round(counted.mult_adds / 1e9, 2) == round(weights.meta["_ops"], 2)
    side_head = INCEPTION_SIDE_HEAD if name == "inception_v3" else 0
    assert counted.parameters_all == weights.meta["num_params"] - side_head


def test_counts_stand_as_stated_beside_the_papers() -> None:
    vgg = count(meta("vgg16"), 224)
    assert round((vgg.mult_adds - vgg.by_kind["fully connected"].mult_adds) / 1e6) == 15_347  # Table 8: 15300
    assert round(count(meta("googlenet"), 224).mult_adds / 1e6) == 1_498  # Table 8: 1550
    assert round(count(meta("squeezenet"), 224).mult_adds / 1e6) == 819  # Table 9: 1700
    assert round(count(meta("squeezenet"), 224).parameters / 1e6, 2) == 1.24  # Table 9: 1.25
    assert round(count(meta("alexnet"), 224).mult_adds / 1e6) == 714  # Table 9: 720
    assert round(count(meta("inception_v3"), 299).mult_adds / 1e6) == 5_713  # Table 10: 5000


@pytest.mark.parametrize(
    "name", sorted(MIN_INPUT_SIZE.keys() - {"facenet_nn2", "faster_rcnn_vgg"})
)  # see their own tests
def test_smallest_input_is_the_smallest_that_works(name: str) -> None:
    """Of classifiers; NN2's and the detector's are in their own tests."""
    net, smallest = meta(name, num_classes=7), MIN_INPUT_SIZE[name]
    assert net(torch.empty(2, 3, smallest, smallest, device="meta")).shape == (2, 7)
    message = f"input size {smallest - 1} is too small for {name}; it needs at least {smallest} px"
    too_small = torch.empty(2, 3, smallest, smallest - 1, device="meta")
    with pytest.raises(ValueError, match=message):
        net(too_small)
    net._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError):  # torch's own, less clear, refusal of the same images
        net(too_small)


def test_input_size_can_be_checked_by_name() -> None:
    check_input_size("mobilenet", 1)
    check_input_size("alexnet", 63)
    with pytest.raises(ValueError, match="input size 56 is too small for alexnet"):
        check_input_size("alexnet", 56)


def test_has_no_width() -> None:
    with pytest.raises(ValueError, match=r"width is 0\.5; squeezenet has no width multiplier"):
        build(NetSpec("squeezenet", width=0.5))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_batch_norm_and_dropout_are_the_specs(name: str) -> None:
    net = meta(name, batch_norm_decay=0.9, batch_norm_epsilon=0.01, dropout=0.3)
    norms = {(module.eps, round(module.momentum, 6)) for module in net.modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms == {(0.01, 0.1)}
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.3]


@pytest.mark.parametrize("name", ["vgg16", "squeezenet", "alexnet"])
def test_dropout_is_the_specs(name: str) -> None:
    dropouts = {module.p for module in meta(name, dropout=0.3).modules() if isinstance(module, nn.Dropout)}
    assert dropouts == {0.3}


def losses_on_colours(name: str, size: int, rate: float, steps: int) -> list[float]:
    """The training loss of each step on 12 noisy images of three colours."""
    torch.manual_seed(0)
    net = build(NetSpec(name, num_classes=3))
    labels = torch.arange(12) % 3
    images = torch.randn(3, 3)[labels][:, :, None, None] + 0.3 * torch.randn(12, 3, size, size)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "size", "rate"), [("squeezenet", 32, 0.003), pytest.param("googlenet", 32, 0.02, marks=pytest.mark.slow)]
)
def test_starts_near_chance_and_learns(name: str, size: int, rate: float) -> None:
    losses = losses_on_colours(name, size, rate, steps=10)
    assert losses[0] == pytest.approx(math.log(3), abs=0.3)
    assert losses[-1] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "rate"), [("alexnet", 63, 0.005), ("vgg16", 32, 0.002), ("inception_v3", 75, 0.02)]
)
def test_large_nets_start_near_chance_and_learn(name: str, size: int, rate: float) -> None:
    losses = losses_on_colours(name, size, rate, steps=10)
    assert losses[0] == pytest.approx(math.log(3), abs=0.3)
    assert losses[-1] < 0.5


def test_squeezenets_classes_all_start_with_a_gradient() -> None:
    torch.manual_seed(0)
    net = build(NetSpec("squeezenet", num_classes=12))
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    assert (net.classifier[1].bias.grad > 0).all()  # its last ReLU passes every class
