"""Inception V2 against arithmetic from slim's table, TensorFlow's padding by F.pad, and on being trainable at all."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.nets import NetSpec, build
from tasks.nets.complexity import count, layer_table
from tasks.nets.inception import PaddedConv
from tasks.nets.inception_v2 import INCEPTION_V2, Mixed, Pool, build_layers, inception_v2

# slim's inception_v2_test.py: side at 224 px and depth of each endpoint.
ENDPOINTS = {
    "Conv2d_1a_7x7": (112, 64),
    "MaxPool_2a_3x3": (56, 64),
    "Conv2d_2b_1x1": (56, 64),
    "Conv2d_2c_3x3": (56, 192),
    "MaxPool_3a_3x3": (28, 192),
    "Mixed_3b": (28, 256),
    "Mixed_3c": (28, 320),
    "Mixed_4a": (14, 576),
    "Mixed_4b": (14, 576),
    "Mixed_4c": (14, 576),
    "Mixed_4d": (14, 576),
    "Mixed_4e": (14, 576),
    "Mixed_5a": (7, 1024),
    "Mixed_5b": (7, 1024),
    "Mixed_5c": (7, 1024),
}
# Depths by branch: 1x1; 1x1 and 3x3; 1x1, 3x3 and 3x3; the projection behind the pool.
BLOCKS = {
    "Mixed_3b": ((64,), (64, 64), (64, 96, 96), 32),
    "Mixed_3c": ((64,), (64, 96), (64, 96, 96), 64),
    "Mixed_4a": ((), (128, 160), (64, 96, 96), 0),
    "Mixed_4b": ((224,), (64, 96), (96, 128, 128), 128),
    "Mixed_4c": ((192,), (96, 128), (96, 128, 128), 128),
    "Mixed_4d": ((160,), (128, 160), (128, 160, 160), 96),
    "Mixed_4e": ((96,), (128, 192), (160, 192, 192), 96),
    "Mixed_5a": ((), (128, 192), (192, 256, 256), 0),
    "Mixed_5b": ((352,), (192, 320), (160, 224, 224), 128),
    "Mixed_5c": ((352,), (192, 320), (192, 224, 224), 128),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Small layers lose more to waiting threads than they gain, above all where other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def meta(**options):
    with torch.device("meta"):
        return inception_v2(NetSpec("inception_v2", **options))


def images(size, count=2, device="meta"):
    return torch.empty(count, 3, size, size, device=device)


def halved(side, times):
    for _ in range(times):
        side = math.ceil(side / 2)
    return side


def arithmetic(size, outputs):
    """Weights and Mult-Adds of every row at an input size, by hand from the table of branches."""
    sides = [halved(size, times) for times in range(6)]
    rows = {
        "Conv2d_1a_7x7": (49 * 24 + 24 * 64, (49 * 24 + 24 * 64) * sides[1] ** 2),
        "Conv2d_2b_1x1": (64 * 64, 64 * 64 * sides[2] ** 2),
        "Conv2d_2c_3x3": (9 * 64 * 192, 9 * 64 * 192 * sides[2] ** 2),
        "classifier": (1024 * outputs, 1024 * outputs),
    }
    depth, stage = 192, 3
    for name, (one, three, double, projection) in BLOCKS.items():
        before, stage = sides[stage], stage + (not one)  # only the two blocks of stride 2 have no 1x1 branch
        after = sides[stage]
        wide = depth * (sum(one) + three[0] + double[0] + projection)  # at the input's side, all being of stride 1
        first = 9 * double[0] * double[1]
        last = 9 * three[0] * three[1] + 9 * double[1] * double[2]
        rows[name] = (wide + first + last, (wide + first) * before**2 + last * after**2)
        depth = sum(one) + three[1] + double[2] + (projection or depth)
    return rows


def counted_rows(net, size):
    """Weights and Mult-Adds as the project counts them, summed over the layers of each row of the table."""
    rows = {}
    for layer in layer_table(net, size):
        if layer.parameters:
            row = layer.name.split(".")[1] if "." in layer.name else layer.name
            weights, mult_adds = rows.get(row, (0, 0))
            rows[row] = (weights + layer.parameters, mult_adds + layer.mult_adds)
    return rows


@pytest.mark.parametrize(("size", "outputs"), [(224, 1000), (300, 91), (600, 17), (75, 12)])
def test_counts_are_the_arithmetic_of_the_table(size, outputs):
    by_hand = arithmetic(size, outputs)
    net = meta(num_classes=outputs)
    assert counted_rows(net, size) == by_hand
    counted = count(net, size)
    assert counted.parameters == sum(row[0] for row in by_hand.values())
    assert counted.mult_adds == sum(row[1] for row in by_hand.values())


def test_counts_at_224():
    counted = count(meta(), 224)
    assert (counted.parameters, counted.mult_adds) == (11_167_384, 1_934_857_216)
    norms = 2 * sum(layer.num_features for layer in meta().modules() if isinstance(layer, nn.BatchNorm2d))
    assert counted.parameters_all == counted.parameters + norms + 1000


def test_agrees_with_torchs_flop_counter_at_an_odd_size():
    net = meta(num_classes=17)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(images(75, count=1))
    assert count(net, 75).mult_adds == counter.get_total_flops() // 2


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [224, 300, 600, 97])
def test_every_layer_has_the_shape_of_slims_endpoint(size, padding):
    maps = meta(padding=padding).features(images(size))
    assert {name: tuple(features.shape) for name, features in maps.items()} == {
        name: (2, depth, *[halved(size, round(math.log2(224 / side)))] * 2) for name, (side, depth) in ENDPOINTS.items()
    }


def test_the_maps_that_detection_reads():
    maps = meta().features(images(300))
    assert [maps[name].shape[1:] for name in ("Mixed_4c", "Mixed_4e", "Mixed_5c")] == [
        (576, 19, 19),
        (576, 19, 19),
        (1024, 10, 10),
    ]
    assert meta().features(images(600))["Mixed_4e"].shape[1:] == (576, 38, 38)
    assert list(meta().features(images(300), ("Mixed_5c", "Mixed_4c"))) == ["Mixed_4c", "Mixed_5c"]


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_any_size_down_to_one_pixel_gives_logits(padding):
    net = build(NetSpec("inception_v2", num_classes=5, padding=padding)).eval()
    with torch.no_grad():
        for height, width in ((1, 1), (2, 1), (3, 4), (33, 18)):
            assert net(torch.rand(2, 3, height, width)).isfinite().all()


def test_logits_are_the_classifier_of_the_mean_of_the_last_map():
    torch.manual_seed(0)
    net = build(NetSpec("inception_v2", num_classes=5)).eval()
    pictures = torch.rand(2, 3, 40, 49) * 2 - 1
    with torch.no_grad():
        expected = net.classifier(net.features(pictures)["Mixed_5c"].mean((2, 3)))
        torch.testing.assert_close(net(pictures), expected)


def tf_same(maps, kernel, stride, value=0.0):
    """TensorFlow's rule: ceil(n / stride) outputs, and of the odd number of pixels needed for them one more behind."""
    pads = []
    for side in (maps.shape[3], maps.shape[2]):
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(maps, pads, value=value)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6), (10, 7), (1, 2)])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_same_convolutions_pad_as_tensorflow_does(size, kernel, stride):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    layer = PaddedConv(3, 6, kernel, stride, groups=3, same=True).double()
    expected = F.conv2d(tf_same(maps, kernel, stride), layer.weight, stride=stride, groups=3)
    torch.testing.assert_close(layer(maps), expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6), (10, 7), (1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_max_pools_pad_as_tensorflow_does(size, stride):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, *size) - 5.0  # all negative: a pad of zeros would win
    expected = F.max_pool2d(tf_same(maps, 3, stride, -math.inf), 3, stride)
    assert torch.equal(Pool("max", stride, same=True)(maps), expected)


def test_average_pools_leave_out_what_is_outside_the_map():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    pooled = Pool("avg", 1, same=True)(maps)
    for y in range(5):
        for x in range(4):
            window = maps[:, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            torch.testing.assert_close(pooled[:, :, y, x], window.mean((2, 3)))


@pytest.mark.parametrize("layer", [PaddedConv(3, 6, 3, 2, same=False), Pool("max", 2, same=False)])
def test_symmetric_layers_pad_one_pixel_on_every_side(layer):
    torch.manual_seed(0)
    maps = torch.rand(1, 3, 8, 6)  # not below 0, so that zeros are no different from nothing to a max pool
    padded = F.pad(maps, (1, 1, 1, 1))
    expected = F.max_pool2d(padded, 3, 2) if isinstance(layer, Pool) else F.conv2d(padded, layer.weight, stride=2)
    torch.testing.assert_close(layer(maps), expected)
    with_same = Pool("max", 2, same=True)(maps)
    assert not isinstance(layer, Pool) or not torch.equal(with_same, expected)


def test_a_part_of_the_table_is_built_alone_with_the_same_names():
    table = {name: layer for name, layer in INCEPTION_V2.items() if name.startswith("Mixed_5")}
    with torch.device("meta"):
        part, depth = build_layers(table, 576, NetSpec("inception_v2"))
    whole = meta().body.state_dict()
    assert depth == 1024
    assert {name: value.shape for name, value in part.state_dict().items()} == {
        name: value.shape for name, value in whole.items() if name.startswith("Mixed_5")
    }
    assert part(torch.empty(2, 576, 14, 14, device="meta")).shape == (2, 1024, 7, 7)


def test_pools_between_and_within_blocks_are_of_slims_kinds():
    kinds = {name: layer.pool for name, layer in INCEPTION_V2.items() if isinstance(layer, Mixed)}
    assert {name for name, kind in kinds.items() if kind == "max"} == {"Mixed_4a", "Mixed_5a", "Mixed_5c"}


def test_batch_norm_and_dropout_are_the_specs():
    net = meta(batch_norm_decay=0.9, batch_norm_epsilon=0.01, dropout=0.3)
    norms = [(module.eps, round(module.momentum, 6)) for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert norms == [(0.01, 0.1)] * (convolutions - 1)  # none between the first layer's depthwise and pointwise part
    assert net.dropout.p == 0.3


def test_a_width_other_than_one_is_refused():
    with pytest.raises(ValueError, match=r"width is 0\.5; inception_v2 has no width multiplier"):
        inception_v2(NetSpec("inception_v2", width=0.5))


@pytest.mark.slow
def test_starts_near_chance_and_learns_noise_by_heart():
    torch.manual_seed(0)
    net = inception_v2(NetSpec("inception_v2", num_classes=4, batch_norm_decay=0.6))
    pictures, labels = torch.rand(12, 3, 33, 33) * 2 - 1, torch.arange(12) % 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(net(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(4), abs=0.3)
    assert losses[-1] < 0.1
    with torch.no_grad():
        assert (net.eval()(pictures).argmax(1) == labels).all()
