"""MobileNet against slim's list of endpoints, a convolution written from TensorFlow's rule, and timm's net."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from tasks.nets import NETS, NetSpec, build
from tasks.nets.depthwise import DepthwiseConv, Stride2Depthwise
from tasks.nets.mobilenet import CONV_MOBILENET, MOBILENET, SHALLOW_MOBILENET, MobileNet

# slim's mobilenet_v1_test.py: sides at 224 px and depths of Conv2d_0, then Conv2d_1_pointwise to Conv2d_13_pointwise.
SIDES = [112, 112, 56, 56, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7]
DEPTHS = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
SIZES = [(8, 8), (7, 9), (5, 6), (10, 7), (16, 12)]  # even, odd and mixed sides, at every stage


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small layers lose more to waiting threads than they gain, above all where other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tf_same_convolution(image: np.ndarray, weight: np.ndarray, stride: int, same: bool) -> np.ndarray:
    """(C, H, W) by (O, C or 1, 3, 3): tap by tap, with TensorFlow's padding or with one pixel on every side."""
    sides = image.shape[1:]
    if same:
        totals = [max((-(-n // stride) - 1) * stride + 3 - n, 0) for n in sides]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(1, 1), (1, 1)]
    padded = np.pad(image, [(0, 0), *pads])
    height, width = (-(-n // stride) for n in sides)
    output = np.zeros((len(weight), height, width))
    for row in range(height):
        for column in range(width):
            window = padded[:, row * stride : row * stride + 3, column * stride : column * stride + 3]
            if weight.shape[1] == 1:
                output[:, row, column] = (window * weight[:, 0]).sum(axis=(1, 2))
            else:
                output[:, row, column] = np.tensordot(weight, window, axes=3)
    return output


def expected_features(net: MobileNet, image: np.ndarray, same: bool) -> dict[str, np.ndarray]:
    """The layers of a net with untouched BatchNorm statistics, one by one; filters are stored turned in "same" mode."""

    def finish(values: np.ndarray) -> np.ndarray:
        return np.clip(values / np.sqrt(1.0 + 0.001), 0.0, 6.0)

    maps = {}
    for name, layer in net.body.named_children():
        first = layer[0]
        weight = first.weight.detach().numpy()
        image = finish(tf_same_convolution(image, weight[:, :, ::-1, ::-1] if same else weight, first.stride[0], same))
        if isinstance(first, DepthwiseConv):
            image = finish(np.tensordot(layer.pointwise.weight.detach().numpy()[:, :, 0, 0], image, axes=1))
        maps[name] = image
    return maps


@pytest.mark.parametrize(
    "width", [1.0, pytest.param(0.75, marks=pytest.mark.slow), pytest.param(0.5, marks=pytest.mark.slow), 0.25]
)
def test_every_layer_has_the_shape_of_slims_endpoint(width: float) -> None:
    with torch.device("meta"):
        net = build(NetSpec("mobilenet", width=width, num_classes=120))
        for resolution in (224, 192, 160, 128):
            maps = net.features(torch.empty(2, 3, resolution, resolution))
            shapes = {name: tuple(features.shape) for name, features in maps.items()}
            sides = [side * resolution // 224 for side in SIDES]
            assert shapes == {
                f"conv{i}": (2, int(depth * width), side, side)
                for i, (depth, side) in enumerate(zip(DEPTHS, sides, strict=True))
            }
            assert net(torch.empty(2, 3, resolution, resolution)).shape == (2, 120)


def test_the_maps_that_detection_reads() -> None:
    with torch.device("meta"):
        maps = build(NetSpec("mobilenet")).features(torch.empty(1, 3, 300, 300))
    assert maps["conv11"].shape == (1, 512, 19, 19)
    assert maps["conv13"].shape == (1, 1024, 10, 10)


@pytest.mark.parametrize("table", [MOBILENET[:5], CONV_MOBILENET[:3]], ids=["separable", "full"])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", SIZES)
def test_layers_equal_a_convolution_written_from_the_rule(table, padding: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = MobileNet(table, NetSpec("mobilenet", width=0.25, padding=padding)).double().eval()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    maps = net.features(image)
    expected = expected_features(net, image[0].numpy(), padding == "same")
    assert list(maps) == list(expected)
    for name, features in maps.items():
        np.testing.assert_allclose(features[0].detach().numpy(), expected[name], atol=1e-12)
        assert expected[name].max() > 0.0


def test_features_are_those_that_are_asked_for() -> None:
    net = MobileNet(MOBILENET[:4], NetSpec("mobilenet", width=0.25)).eval()
    images = torch.randn(1, 3, 17, 16)
    every = net.features(images)
    some = net.features(images, ("conv3", "conv1"))
    assert list(some) == ["conv1", "conv3"]
    assert all(torch.equal(features, every[name]) for name, features in some.items())


def test_padding_matters_where_a_side_is_even() -> None:
    image, weight = np.random.default_rng(0).normal(size=(3, 8, 8)), np.ones((2, 3, 3, 3))
    same, symmetric = (tf_same_convolution(image, weight, 2, same) for same in (True, False))
    assert same.shape == symmetric.shape
    assert not np.allclose(same, symmetric)


def test_logits_are_the_classifier_of_the_pooled_last_map() -> None:
    net = build(NetSpec("mobilenet", width=0.25, num_classes=7)).eval()
    images = torch.randn(3, 3, 40, 33)
    pooled = net.features(images)["conv13"].mean(dim=(2, 3))
    torch.testing.assert_close(net(images), net.classifier(pooled))
    torch.testing.assert_close(net(images), net(images.contiguous(memory_format=torch.channels_last)))
    assert net(images[:, :, :1, :1]).shape == (3, 7)


def test_equals_timms_net() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = build(NetSpec("mobilenet", num_classes=10, padding="symmetric", dropout=0.0)).double()
    theirs = timm.create_model("mobilenetv1_100", num_classes=10, bn_eps=0.001, bn_momentum=0.0003).double()
    values = [value.clone() for value in ours.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for net in (ours, theirs):
        net(images).square().mean().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-7, atol=1e-10), name
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(
    ("width", "min_depth", "depths"),
    [(0.25, 8, (8, 16)), (0.25, 16, (16, 16)), (0.33, 8, (10, 21)), (0.1, 8, (8, 8)), (1.5, 8, (48, 96))],
)
def test_depths_are_cut_to_whole_numbers_and_held_up(width: float, min_depth: int, depths: tuple[int, int]) -> None:
    with torch.device("meta"):
        net = build(NetSpec("mobilenet", width=width, min_depth=min_depth))
    assert (net.body.conv0.conv.out_channels, net.body.conv1.pointwise.out_channels) == depths


def test_variants_are_derived_from_the_table() -> None:
    assert [tuple(layer) for layer in CONV_MOBILENET] == [tuple(layer) for layer in MOBILENET]
    assert not any(isinstance(module, DepthwiseConv) for module in MobileNet(CONV_MOBILENET[:4], NetSpec("")).modules())
    assert [layer.depth for layer in SHALLOW_MOBILENET] == [32, 64, 128, 128, 256, 256, 512, 1024, 1024]
    assert [layer.stride for layer in SHALLOW_MOBILENET] == [2, 1, 2, 1, 2, 1, 2, 2, 1]


def test_weights_start_as_slims_do() -> None:
    torch.manual_seed(0)
    net = build(NetSpec("mobilenet"))
    kernels = [m.weight.detach() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(kernels) == 28
    for kernel in kernels:
        assert kernel.abs().max() <= 0.18
        # A normal distribution cut at two standard deviations has 0.8796 of its deviation.
        assert kernel.std().item() == pytest.approx(0.09 * 0.8796, rel=4.0 / kernel.numel() ** 0.5)
    assert net.classifier.bias.abs().max() == 0.0


def test_options_reach_the_modules() -> None:
    options = {"batch_norm_decay": 0.9, "batch_norm_epsilon": 0.01, "dropout": 0.25, "activation": "relu"}
    net = build(NetSpec("mobilenet", width=0.25, **options))
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, round(norm.momentum, 6)) for norm in norms} == {(0.01, 0.1)}
    assert len(norms) == 27
    assert net.dropout.p == 0.25
    assert sum(isinstance(m, nn.ReLU) for m in net.modules()) == 27
    assert not any(isinstance(m, nn.ReLU6) for m in net.modules())


def test_parameter_names_are_stable() -> None:
    with torch.device("meta"):
        names = [name for name, _ in build(NetSpec("mobilenet")).named_parameters()]
    assert names[:9] == [
        "body.conv0.conv.weight",
        "body.conv0.norm.weight",
        "body.conv0.norm.bias",
        "body.conv1.depthwise.weight",
        "body.conv1.depthwise_norm.weight",
        "body.conv1.depthwise_norm.bias",
        "body.conv1.pointwise.weight",
        "body.conv1.pointwise_norm.weight",
        "body.conv1.pointwise_norm.bias",
    ]
    assert names[-2:] == ["classifier.weight", "classifier.bias"]
    assert len(names) == 83


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width is 0.0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"padding": "valid"}, "padding is 'valid'; it must be one of same, symmetric"),
        ({"activation": "gelu"}, "activation is 'gelu'; it must be one of relu, relu6"),
    ],
)
def test_refuses_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetSpec("mobilenet", **options)


def test_refuses_an_unknown_net_and_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'mobilenet_v9' is unknown; there are: alexnet, ") as refused:
        build(NetSpec("mobilenet_v9"))
    assert str(refused.value).endswith(", ".join(sorted(NETS)))


@pytest.mark.parametrize("size", [(4, 6), (5, 4), (7, 3)])
def test_stride_2_depthwise_gradients_are_exact(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(Stride2Depthwise.apply, (images, weight))
    output = Stride2Depthwise.apply(images, weight)
    stock = nn.functional.conv2d(images, weight, stride=2, padding=1, groups=3)
    seed = torch.randn_like(stock)
    ours, theirs = (torch.autograd.grad(y, (images, weight), seed) for y in (output, stock))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("size", [(14, 14), (15, 28)])
def test_bfloat16_on_a_cpu_takes_the_fast_gradient_and_rounds_no_worse(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv(16, stride=2)
    images = torch.randn(4, 16, *size).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    assert output.grad_fn.name() == "Stride2DepthwiseBackward"
    seed = torch.randn_like(output)
    ours = torch.autograd.grad(output, (images, layer.weight), seed)
    rounded = images.detach(), layer.weight.detach().bfloat16()
    stock, exact = (
        torch.autograd.grad(nn.functional.conv2d(*inputs, stride=2, padding=1, groups=16), inputs, seed.to(kind))
        for kind in (torch.bfloat16, torch.float64)
        for inputs in [[tensor.to(kind).requires_grad_() for tensor in rounded]]
    )
    assert ours[1].dtype == torch.float32
    for mine, torchs, other in zip(ours, stock, exact, strict=True):
        # One result rounded to 8 bits; or what torch's own gradient is off by, which sums up in bfloat16 where the CPU
        # does not multiply it.
        allowed = torch.maximum(2**-7 * (1 + other.abs()), (torchs - other).abs())
        assert ((mine - other).abs() <= allowed).all()


def test_float32_takes_torchs_own_gradient() -> None:
    assert DepthwiseConv(4, stride=2)(torch.randn(1, 4, 8, 8)).grad_fn.name() == "ConvolutionBackward0"


def test_learns_colours() -> None:
    torch.manual_seed(0)
    net = build(NetSpec("mobilenet", width=0.25, num_classes=4, batch_norm_decay=0.8))
    labels = torch.arange(16) % 4
    images = torch.randn(4, 3)[labels][:, :, None, None] + 0.3 * torch.randn(16, 3, 64, 64)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert losses[-1] < 0.05
    assert (net.eval()(images).argmax(dim=1) == labels).float().mean() > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_trains_on_a_gpu_as_on_a_cpu() -> None:
    torch.manual_seed(0)
    net = build(NetSpec("mobilenet", width=0.5, num_classes=10, dropout=0.0))
    images = torch.randn(8, 3, 64, 64)
    expected = net(images)
    outputs = net.cuda().to(memory_format=torch.channels_last)(images.cuda())
    outputs.square().mean().backward()
    torch.testing.assert_close(outputs.cpu(), expected, atol=0.05, rtol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
