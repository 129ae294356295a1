"""FaceNet NN2 against the published table's figures, brute force for its pools, and on being trainable at all."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.nets.complexity import count, layer_table
from tasks.nets.facenet_nn2 import L2Pool, facenet_nn2
from tasks.nets.spec import MIN_INPUT_SIZE, NetSpec

# arXiv 1503.03832, Table 2. Side and depth of the output; depths of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, projection.
BLOCKS = {
    "3a": (28, 256, 64, 96, 128, 16, 32, 32),
    "3b": (28, 320, 64, 96, 128, 32, 64, 64),
    "3c": (14, 640, 0, 128, 256, 32, 64, 0),
    "4a": (14, 640, 256, 96, 192, 32, 64, 128),
    "4b": (14, 640, 224, 112, 224, 32, 64, 128),
    "4c": (14, 640, 192, 128, 256, 32, 64, 128),
    "4d": (14, 640, 160, 144, 288, 32, 64, 128),
    "4e": (7, 1024, 0, 160, 256, 64, 128, 0),
    "5a": (7, 1024, 384, 192, 384, 48, 128, 128),
    "5b": (7, 1024, 384, 192, 384, 48, 128, 128),
}
# The same table's thousands of parameters and millions of Mult-Adds. They are with the convolutions' biases.
PUBLISHED = {
    "conv1": (9, 119),
    "conv2": (115, 360),
    "3a": (164, 128),
    "3b": (228, 179),
    "3c": (398, 108),
    "4a": (545, 107),
    "4b": (595, 117),
    "4c": (654, 128),
    "4d": (722, 142),
    "4e": (717, 56),
    "5a": (1600, 78),
    "5b": (1600, 78),
    "classifier": (131, 0.1),
}
# The same without biases, which is how the MobileNet paper counts.
WITHOUT_BIASES = {
    **PUBLISHED,
    "conv1": (9, 118),
    "3a": (163, 128),
    "3b": (227, 178),
    "3c": (397, 108),
    "4b": (594, 117),
    "4c": (653, 128),
    "4d": (721, 141),
    "5a": (1587, 78),
    "5b": (1587, 78),
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
        return facenet_nn2(NetSpec("facenet_nn2", **options))


def images(size, count=2, device="meta"):
    return torch.empty(count, 3, size, size, device=device)


def arithmetic(outputs):
    """Each row's weights, biases, and Mult-Adds of weights and of biases at 224 px, by hand from the table."""
    rows = {
        "conv1": (49 * 3 * 64, 64, 49 * 3 * 64 * 112**2, 64 * 112**2),
        "conv2": (64 * 64 + 9 * 64 * 192, 64 + 192, (64 * 64 + 9 * 64 * 192) * 56**2, (64 + 192) * 56**2),
        "classifier": (1024 * outputs, outputs, 1024 * outputs, outputs),
    }
    depth, side_before = 192, 28
    for name, (side, after, one, reduce3, three, reduce5, five, projection) in BLOCKS.items():
        before = depth * (reduce3 + reduce5)  # at the block's input side; the rest at its output side
        behind = depth * (one + projection) + 9 * reduce3 * three + 25 * reduce5 * five
        early, late = reduce3 + reduce5, one + three + five + projection
        mult_adds = before * side_before**2 + behind * side**2
        rows[name] = (before + behind, early + late, mult_adds, early * side_before**2 + late * side**2)
        assert one + three + five + (projection or depth) == after
        depth, side_before = after, side
    return rows


def counted_rows(net, size):
    """Weights and Mult-Adds as the project counts them, summed over the layers of each row of the published table."""
    rows = {}
    for layer in layer_table(net, size):
        if layer.parameters:
            part = layer.name.split(".")[1] if "." in layer.name else layer.name
            row = part.removesuffix("_reduce").removeprefix("inception")
            weights, mult_adds = rows.get(row, (0, 0))
            rows[row] = (weights + layer.parameters, mult_adds + layer.mult_adds)
    return rows


@pytest.mark.parametrize(
    ("outputs", "parameters", "mult_adds"), [(128, 7_448_256, 1_596_530_688), (40, 7_358_144, 1_596_440_576)]
)
def test_counts_are_the_arithmetic_of_the_published_table(outputs, parameters, mult_adds):
    by_hand = arithmetic(outputs)
    net = meta(num_classes=outputs)
    assert counted_rows(net, 224) == {name: (weights, cost) for name, (weights, _, cost, _) in by_hand.items()}
    counted = count(net, 224)
    assert (counted.parameters, counted.mult_adds) == (parameters, mult_adds)
    assert parameters == sum(row[0] for row in by_hand.values())
    assert mult_adds == sum(row[2] for row in by_hand.values())
    norms = 2 * sum(row[1] for name, row in by_hand.items() if name != "classifier")  # gamma and beta
    assert counted.parameters_all == parameters + norms + outputs


def test_rows_round_to_the_published_figures():
    for name, (weights, biases, mult_adds, bias_adds) in arithmetic(128).items():
        unit = 100 if name in {"5a", "5b"} else 1
        thousands, millions = PUBLISHED[name]
        assert abs((weights + biases) / 1e3 - thousands) < 0.54 * unit, name  # 4a: 545.54, printed 545
        assert round((mult_adds + bias_adds) / 1e6, 1 if millions < 1 else None) == millions, name
        rounded = (round(weights / 1e3), round(mult_adds / 1e6, 1 if millions < 1 else None))
        assert rounded == WITHOUT_BIASES[name], name


def test_agrees_with_torchs_flop_counter_at_an_odd_size():
    net = meta(num_classes=17)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(images(75, count=1))
    assert count(net, 75).mult_adds == counter.get_total_flops() // 2


def test_output_sides_at_224_are_the_published_ones():
    net, sides = meta(), {}
    for name, layer in net.body.named_children():
        layer.register_forward_hook(lambda _, __, output, name=name: sides.update({name: output.shape[1:]}))
    net(images(224))
    assert sides["conv1"] == (64, 112, 112)
    assert sides["pool1"] == (64, 56, 56)
    assert sides["conv2"] == (192, 56, 56)
    assert sides["pool2"] == (192, 28, 28)
    for name, (side, depth, *_) in BLOCKS.items():
        assert sides[f"inception{name}"] == (depth, side, side)


def test_pools_are_of_the_published_kinds():
    pools = {name: layer["pool"][0] for name, layer in meta().body.named_children() if name.startswith("inception")}
    assert [name[-2:] for name, pool in pools.items() if isinstance(pool, L2Pool)] == [
        "3b",
        "4a",
        "4b",
        "4c",
        "4d",
        "5a",
    ]
    assert all(isinstance(pool, L2Pool | nn.MaxPool2d) for pool in pools.values())


@pytest.mark.parametrize("outputs", [128, pytest.param(40, marks=pytest.mark.slow)])
def test_output_shape_at_any_input_size(outputs):
    net = meta(num_classes=outputs)
    for size in (224, 96, 75, 56, 40, MIN_INPUT_SIZE["facenet_nn2"]):
        assert net(images(size)).shape == (2, outputs)
    assert net(torch.empty(2, 3, 40, 49, device="meta")).shape == (2, outputs)


def test_from_the_smallest_input_on_every_stride_has_pixels_to_halve():
    sides = []
    net = meta()
    for module in net.body.modules():
        if getattr(module, "stride", None) in (2, (2, 2)):
            module.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    net(images(MIN_INPUT_SIZE["facenet_nn2"]))
    assert sorted(set(sides)) == [2, 3, 5, 9, 17]
    with pytest.raises(ValueError, match="input size 16 is too small for facenet_nn2; it needs at least 17 px"):
        net(torch.empty(2, 3, 99, MIN_INPUT_SIZE["facenet_nn2"] - 1, device="meta"))


def test_a_width_other_than_one_is_refused():
    with pytest.raises(ValueError, match=r"width is 0\.5; facenet_nn2 has no width multiplier"):
        facenet_nn2(NetSpec("facenet_nn2", width=0.5))


def test_batch_norm_and_dropout_are_the_specs():
    net = meta(batch_norm_decay=0.9, batch_norm_epsilon=0.01, dropout=0.3)
    norms = [(module.eps, round(module.momentum, 6)) for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == [(0.01, 0.1)] * sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.3]


def test_l2_pool_equals_brute_force():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 5, 4)
    pooled = L2Pool()(maps)
    for y in range(5):
        for x in range(4):
            window = maps[:, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].double().flatten(2)
            torch.testing.assert_close(pooled[:, :, y, x].double(), window.pow(2).mean(2).sqrt(), rtol=0, atol=1e-4)


def test_l2_pools_gradient_is_exact_and_finite_at_zero():
    zeros = torch.zeros(1, 1, 4, 4, requires_grad=True)
    L2Pool()(zeros).sum().backward()
    assert torch.equal(zeros.grad, torch.zeros(1, 1, 4, 4))
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 4, 4, dtype=torch.float64).relu().requires_grad_()  # half of it zeros
    assert torch.autograd.gradcheck(L2Pool(), (maps,))


def test_black_images_and_dead_maps_give_finite_gradients():
    torch.manual_seed(0)
    net = facenet_nn2(NetSpec("facenet_nn2", num_classes=8))
    nn.init.constant_(net.body.inception3a["conv3"][1].bias, -100.0)  # its ReLU passes nothing on to 3b's L2 pool
    net(torch.zeros(2, 3, 40, 40)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    net.zero_grad()
    net(torch.randn(2, 3, 40, 40)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    assert net.body.conv1[0].weight.grad.abs().sum() > 0


def test_channels_last_images_and_weights_change_nothing():
    torch.manual_seed(0)
    net = facenet_nn2(NetSpec("facenet_nn2", num_classes=8)).eval()
    pictures = torch.rand(2, 3, 40, 40) * 2 - 1
    with torch.no_grad():
        expected = net(pictures)
        moved = net.to(memory_format=torch.channels_last)(pictures.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_starts_near_chance_and_learns_noise_by_heart():
    torch.manual_seed(0)
    net = facenet_nn2(NetSpec("facenet_nn2", num_classes=4, batch_norm_decay=0.6))
    pictures, labels = torch.rand(16, 3, 40, 40) * 2 - 1, torch.arange(16) % 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(net(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(4), abs=0.3)
    assert losses[-1] < 0.1
    with torch.no_grad():
        assert (net.eval()(pictures).argmax(1) == labels).all()
