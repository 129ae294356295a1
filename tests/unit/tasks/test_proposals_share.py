"""What is spent on proposals, by arithmetic from the layers that each of them goes through."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.nets import NetSpec
from tasks.nets.complexity import proposals_share

BEHIND = 91 + 90 * 4  # scores and shifts of a box
# Of a 14x14 crop: conv12 and conv13 at 7x7 behind a stride of 2; fc6 and fc7 behind a pool.
MOBILENET = 49 * (9 * 512 + 512 * 1024 + 9 * 1024 + 1024 * 1024) + 1024 * BEHIND
VGG = 49 * 512 * 4096 + 4096 * 4096 + 4096 * BEHIND
INCEPTION_V2 = 381.3e6


@pytest.mark.parametrize(
    ("net", "size", "per_box", "printed", "share"),
    [
        ("mobilenet", 300, MOBILENET, 25.2e9, "93 %"),
        ("inception_v2", 300, INCEPTION_V2, 118.2e9, "97 %"),
        ("vgg", 300, VGG, 64.3e9, "57 %"),
        ("mobilenet", 600, MOBILENET, 30.5e9, "77 %"),
        ("inception_v2", 600, INCEPTION_V2, 129.6e9, "88 %"),
        ("vgg", 600, VGG, 149.6e9, "24 %"),
    ],
)
def test_300_proposals_have_their_share_of_the_printed_cost(net, size, per_box, printed, share):
    found = proposals_share(NetSpec(f"faster_rcnn_{net}", num_classes=91), size)
    assert found == pytest.approx(300 * per_box / printed, rel=0.002)
    assert f"{found:.0%}".replace("%", " %") == share


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 400))
def test_the_share_is_that_of_as_many_proposals_as_the_net_has(proposals):
    first_stage = 25_224_412_096 - 300 * MOBILENET
    found = proposals_share(NetSpec("faster_rcnn_mobilenet", num_classes=91, proposals=proposals), 300)
    assert found == pytest.approx(proposals * MOBILENET / (first_stage + proposals * MOBILENET), rel=1e-12)


@pytest.mark.parametrize("net", ["ssd300_mobilenet", "mobilenet"])
def test_a_net_without_proposals_has_no_share(net):
    assert proposals_share(NetSpec(net, num_classes=91), 300) is None
