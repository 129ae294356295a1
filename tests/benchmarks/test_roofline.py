"""The bound that memory sets, by hand."""

import pytest
import torch

from tasks.nets import NetSpec, build
from tests.benchmarks.roofline import convolution_bytes, copy_bandwidth, images_per_second

WIDTHS = [(32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def mobilenet():
    return build(NetSpec("mobilenet", width=1.0))


def by_hand(resolution):
    """Table 1 of the paper: after the first layer each row is a depthwise convolution and a pointwise one."""
    side, channels, elements = resolution, 3, 0
    for row, (width, stride) in enumerate(WIDTHS):
        side = -(-side // stride)
        elements += side * side * (width if row == 0 else channels + width)
        channels = width
    return 2 * elements  # the classifier is a Linear here


@pytest.mark.parametrize("resolution", [224, 160])
def test_bytes_are_those_of_table_1(resolution):
    assert convolution_bytes(mobilenet, resolution) == by_hand(resolution)


def test_bound_is_bandwidth_over_traffic():
    bound = images_per_second(mobilenet, 224, "eager", 4.3e12)
    assert bound == pytest.approx(22_400, rel=0.01)
    assert images_per_second(mobilenet, 224, "compiled", 4.3e12) == pytest.approx(bound * 19 / 14)


def test_bandwidth_is_measured():
    assert 1e8 < copy_bandwidth(torch.device("cpu"), size=1 << 22, repeats=2) < 1e13
