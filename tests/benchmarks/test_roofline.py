"""The bound that memory and multiplication set, by hand."""

import pytest
import torch
from torch import nn

from tasks.nets import NetSpec, build
from tests.benchmarks.roofline import Device, Work, least_seconds, measured, work

WIDTHS = [(32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def work_of(net, resolution, images=1):
    with torch.device("meta"):
        shown = torch.empty(images, 3, resolution, resolution)
        return work(lambda: net(shown), net)


def mobilenet():
    with torch.device("meta"):
        return build(NetSpec("mobilenet"))


def by_hand(resolution):
    """Table 1 of the paper: after the first layer each row is a depthwise convolution and a pointwise one."""
    side, channels, elements = resolution, 3, 0
    for row, (width, stride) in enumerate(WIDTHS):
        side = -(-side // stride)
        elements += side * side * (width if row == 0 else channels + width)
        channels = width
    return 2 * elements


@pytest.mark.parametrize("resolution", [224, 160])
def test_bytes_are_passes_over_the_outputs_of_table_1(resolution):
    found = work_of(mobilenet(), resolution)
    assert found.bytes == 19 * by_hand(resolution)
    assert found.compiled_bytes == 14 * by_hand(resolution)


def test_timms_net_moves_as_much():
    import timm

    with torch.device("meta"):
        found = work_of(timm.create_model("mobilenetv1_100"), 224)
    assert (found.bytes, found.compiled_bytes) == (19 * by_hand(224), 14 * by_hand(224))


def test_operations_are_six_for_each_of_the_papers_mult_adds():
    assert work_of(mobilenet(), 224, images=2).operations == 2 * 6 * 568_740_352


def test_a_relu_that_follows_no_batch_norm_is_a_pass_of_its_own():
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Sigmoid(), nn.ReLU6())
    found = work_of(net, 8)
    assert found.bytes == found.compiled_bytes == (6 + 5 + 8 + 5) * 2 * 4 * 8 * 8


def test_the_net_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ZeroDivisionError):
        work(lambda: 1 / 0, net)
    assert not net[0]._forward_hooks


def test_bound_is_the_longer_of_moving_and_multiplying():
    asked = Work(bytes=2000, compiled_bytes=1000, operations=300)
    assert least_seconds(asked, Device(100.0, 100.0), compiled=False) == 20
    assert least_seconds(asked, Device(100.0, 100.0), compiled=True) == 10
    assert least_seconds(asked, Device(100.0, 10.0), compiled=True) == 30


def test_a_device_is_measured():
    found = measured(torch.device("cpu"), size=1 << 22, side=64)
    assert 1e8 < found.bytes < 1e13
    assert 1e6 < found.operations < 1e14
