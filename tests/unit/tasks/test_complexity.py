"""Counts against the paper's tables, hand arithmetic and torch's own FLOP counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.nets import CLASSIFIERS, NetSpec, build
from tasks.nets.complexity import Cost, LayerRow, count, layer_table, one_layer_example

RESOLUTIONS = (224, 192, 160, 128)
# By hand from Table 1: Mult-Adds at the four resolutions, weights, weights with BatchNorm and bias.
MOBILENETS = {
    1.0: ((568_740_352, 418_121_728, 290_675_200, 186_400_768), 4_209_088, 4_231_976),
    0.75: ((325_400_448, 239_273_472, 166_396_800, 106_770_432), 2_568_144, 2_585_560),
    0.5: ((149_497_088, 109_970_432, 76_524_800, 49_160_192), 1_319_648, 1_331_592),
    0.25: ((41_030_272, 30_212_608, 21_059_200, 13_570_048), 463_600, 470_072),
}
# Tables 6 and 7, in millions: alpha, resolution, Mult-Adds, parameters.
PUBLISHED = [
    (1.0, 224, 569, 4.2),
    (0.75, 224, 325, 2.6),
    (0.5, 224, 149, 1.3),
    (0.25, 224, 41, 0.5),
    (1.0, 192, 418, 4.2),
    (1.0, 160, 290, 4.2),
    (1.0, 128, 186, 4.2),
    (0.5, 160, 76, 1.32),
]
# Table 1 as printed, but for the stride of the last depthwise layer (printed s2, though 7x7 stays 7x7).
TABLE_1 = """
Conv / s2     3x3x3x32       224x224x3
Conv dw / s1  3x3x32 dw      112x112x32
Conv / s1     1x1x32x64      112x112x32
Conv dw / s2  3x3x64 dw      112x112x64
Conv / s1     1x1x64x128     56x56x64
Conv dw / s1  3x3x128 dw     56x56x128
Conv / s1     1x1x128x128    56x56x128
Conv dw / s2  3x3x128 dw     56x56x128
Conv / s1     1x1x128x256    28x28x128
Conv dw / s1  3x3x256 dw     28x28x256
Conv / s1     1x1x256x256    28x28x256
Conv dw / s2  3x3x256 dw     28x28x256
Conv / s1     1x1x256x512    14x14x256
5x
Conv dw / s2  3x3x512 dw     14x14x512
Conv / s1     1x1x512x1024   7x7x512
Conv dw / s1  3x3x1024 dw    7x7x1024
Conv / s1     1x1x1024x1024  7x7x1024
Avg Pool / s1  Pool 7x7      7x7x1024
FC / s1       1024x1000      1x1x1024
Softmax / s1  Classifier     1x1x1000
"""
FIVE = 5 * ["Conv dw / s1  3x3x512 dw  14x14x512", "Conv / s1  1x1x512x512  14x14x512"]


def meta(net: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build(NetSpec(net, **options))


@pytest.mark.parametrize("width", MOBILENETS)
def test_the_sixteen_mobilenets(width: float) -> None:
    mult_adds, parameters, parameters_all = MOBILENETS[width]
    net = meta("mobilenet", width=width)
    for resolution, expected in zip(RESOLUTIONS, mult_adds, strict=True):
        counted = count(net, resolution)
        assert (counted.mult_adds, counted.parameters, counted.parameters_all) == (expected, parameters, parameters_all)


@pytest.mark.parametrize(("width", "resolution", "mult_adds", "parameters"), PUBLISHED)
def test_published_figures_are_within_one_unit(
    width: float, resolution: int, mult_adds: int, parameters: float
) -> None:
    counted = count(meta("mobilenet", width=width), resolution)
    assert abs(counted.mult_adds / 1e6 - mult_adds) < 1.0  # the paper truncates some and rounds others
    assert counted.parameters / 1e6 == pytest.approx(parameters, abs=0.05)


def test_full_and_shallow_variants() -> None:
    full = count(meta("conv_mobilenet"), 224)
    assert full.mult_adds - full.by_kind["fully connected"].mult_adds == 4_866_269_184  # Table 4: 4866, 29.3
    assert (full.parameters, full.parameters_all) == (29_281_120, 29_294_088)
    shallow = count(meta("shallow_mobilenet"), 224)
    assert (shallow.mult_adds, shallow.parameters, shallow.parameters_all) == (307_323_392, 2_875_328, 2_887_976)


def test_table_2_shares() -> None:
    shares = count(meta("mobilenet"), 224).shares()
    percent = {kind: (round(100 * cost, 2), round(100 * size, 2)) for kind, (cost, size) in shares.items()}
    assert percent == {
        "conv 1x1": (94.86, 74.59),
        "conv dw 3x3": (3.06, 1.06),
        "conv 3x3": (1.91, 0.02),  # printed 1.19
        "fully connected": (0.18, 24.33),
    }


def test_table_3_by_the_papers_formulas() -> None:
    d, m, f = 3, 512, 14
    thin, small = 384, 10
    assert one_layer_example() == {
        "convolution": Cost(d * d * m * m * f * f, d * d * m * m),
        "depthwise separable": Cost(d * d * m * f * f + m * m * f * f, d * d * m + m * m),
        "alpha 0.75": Cost((d * d + thin) * thin * f * f, (d * d + thin) * thin),
        "rho 0.714": Cost((d * d + thin) * thin * small * small, (d * d + thin) * thin),
    }
    millions = [(round(cost / 1e6, 1), round(size / 1e6, 2)) for cost, size in one_layer_example().values()]
    assert millions == [(462.4, 2.36), (52.3, 0.27), (29.6, 0.15), (15.1, 0.15)]


def test_table_1() -> None:
    expected = [line for row in TABLE_1.strip().splitlines() for line in (FIVE if row == "5x" else [row])]
    rows = layer_table(meta("mobilenet"), 224)
    assert [f"{row.type} {row.filter} {row.input}".split() for row in rows] == [line.split() for line in expected]
    assert sum(row.parameters > 0 for row in rows) == 28  # the paper: "MobileNet has 28 layers"
    assert rows[3] == LayerRow(
        "body.conv2.depthwise", "conv dw 3x3", "Conv dw / s2", "3x3x64 dw", "112x112x64", 9 * 64 * 56 * 56, 9 * 64
    )


@pytest.mark.parametrize(
    ("net", "size"),
    [(net, 224) for net in CLASSIFIERS if net != "inception_v3"]
    + [("inception_v3", 299), ("mobilenet", 75), ("alexnet", 101)],
)
def test_agrees_with_torchs_flop_counter(net: str, size: int) -> None:
    module = meta(net, num_classes=17)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.empty(1, 3, size, size, device="meta"))
    assert count(module, size).mult_adds == counter.get_total_flops() // 2


def test_a_real_net_is_counted_where_it_is_and_stays_as_it_was() -> None:
    net = build(NetSpec("mobilenet", width=0.25, num_classes=10))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modules = list(net.named_modules())
    net.pool.eval()
    counted = count(net, 33)
    assert counted == count(meta("mobilenet", width=0.25, num_classes=10), 33)
    assert net.training
    assert not net.pool.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(now == then for now, then in zip(net.named_modules(), modules, strict=True)), "BatchNorm is back"


def test_counts_a_net_of_its_own_kinds() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, (1, 7)), nn.Flatten(), nn.Linear(6 * 8 * 2, 5))
    counted = count(net, 8)
    assert counted.by_kind == {"conv 1x7": Cost(126 * 8 * 2, 126), "fully connected": Cost(480, 480)}
    assert (counted.mult_adds, counted.parameters, counted.parameters_all) == (2016 + 480, 606, 606 + 6 + 5)
