"""SSD's anchors against values by hand from the published formulas, and against torchvision's generator for VGG."""

import math

import numpy as np
import pytest
import torch

from tasks.nets.anchors import anchors, anchors_on, caffe_levels, tensorflow_levels

TENSORFLOW_SIDES = (19, 10, 5, 3, 2, 1)
CAFFE_SIDES = (38, 19, 10, 5, 3, 1)


def middle_and_size(box):
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]


def test_tensorflow_has_1917():
    boxes = anchors(tensorflow_levels(), TENSORFLOW_SIDES, 300)
    assert [len(level.shapes) for level in tensorflow_levels()] == [3, 6, 6, 6, 6, 6]
    assert boxes.shape == (1917, 4) == (3 * 361 + 6 * (100 + 25 + 9 + 4 + 1), 4)
    assert boxes.dtype == np.float32


def test_caffe_has_8732():
    boxes = anchors(caffe_levels(), CAFFE_SIDES, 300)
    assert boxes.shape == (8732, 4) == (4 * (38**2 + 9 + 1) + 6 * (19**2 + 100 + 25), 4)


@pytest.mark.parametrize(
    ("place", "x", "y", "width", "height"),
    [
        # Map 1, 19 cells: a square of .1, then an area of .2 squared, twice as wide as high and as high as wide.
        (0, 0.5 / 19, 0.5 / 19, 0.1, 0.1),
        (1, 0.5 / 19, 0.5 / 19, 0.282843, 0.141421),
        (2, 0.5 / 19, 0.5 / 19, 0.141421, 0.282843),
        (3, 1.5 / 19, 0.5 / 19, 0.1, 0.1),  # the next cell lies to the right
        (3 * 19, 0.5 / 19, 1.5 / 19, 0.1, 0.1),  # the next row below
        # Map 2, 10 cells: .2 + .75 / 5 = .35; the extra square has sqrt(.35 x .5).
        (1083, 0.05, 0.05, 0.35, 0.35),
        (1084, 0.05, 0.05, 0.494975, 0.247487),
        (1085, 0.05, 0.05, 0.247487, 0.494975),
        (1086, 0.05, 0.05, 0.606218, 0.202073),
        (1087, 0.05, 0.05, 0.202073, 0.606218),
        (1088, 0.05, 0.05, 0.418330, 0.418330),
        # Map 6, one cell: .95, and the extra square with 1.0 for the map that does not follow.
        (1911, 0.5, 0.5, 0.95, 0.95),
        (1914, 0.5, 0.5, 1.645448, 0.548483),
        (1916, 0.5, 0.5, 0.974679, 0.974679),
    ],
)
def test_tensorflows_by_hand(place, x, y, width, height):
    boxes = anchors(tensorflow_levels(), TENSORFLOW_SIDES, 300)
    np.testing.assert_allclose(middle_and_size(boxes[place]), [x, y, width, height], atol=1e-6)


@pytest.mark.parametrize(
    ("place", "x", "y", "width", "height"),
    [
        # In pixels. Map 1: min 21, max 45, cells of 8.
        (0, 4, 4, 21, 21),
        (1, 4, 4, math.sqrt(21 * 45), math.sqrt(21 * 45)),
        (2, 4, 4, 21 * math.sqrt(2), 21 / math.sqrt(2)),
        (3, 4, 4, 21 / math.sqrt(2), 21 * math.sqrt(2)),
        (4, 12, 4, 21, 21),
        # Map 2: min 45, max 99, cells of 16; ratios of 3 as well.
        (5776, 8, 8, 45, 45),
        (5777, 8, 8, math.sqrt(45 * 99), math.sqrt(45 * 99)),
        (5780, 8, 8, 45 * math.sqrt(3), 45 / math.sqrt(3)),
        # Map 4: min 153, cells of 64; its last cell, at the lower right.
        (5776 + 2166 + 600 + 144, 288, 288, 153, 153),
        # Map 5: min 207, cells of 100. Map 6: min 261, max 315.
        (8692, 50, 50, 207, 207),
        (8728, 150, 150, 261, 261),
        (8729, 150, 150, math.sqrt(261 * 315), math.sqrt(261 * 315)),
    ],
)
def test_caffes_by_hand(place, x, y, width, height):
    boxes = anchors(caffe_levels(), CAFFE_SIDES, 300)
    np.testing.assert_allclose(300 * np.array(middle_and_size(boxes[place])), [x, y, width, height], atol=1e-3)


def test_caffes_equal_torchvisions():
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList

    theirs = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
        clip=False,
    )
    images = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    (boxes,) = theirs(images, [torch.zeros(1, 1, side, side) for side in CAFFE_SIDES])
    ours = 300 * anchors(caffe_levels(), CAFFE_SIDES, 300)
    np.testing.assert_allclose(ours, boxes.numpy(), atol=1e-3)


@pytest.mark.parametrize("levels", [tensorflow_levels(), caffe_levels()], ids=["tensorflow", "caffe"])
def test_small_images_have_the_same_shapes_on_smaller_grids(levels):
    boxes = anchors(levels, (12, 6, 3, 2, 1, 1), 96)
    assert len(boxes) == sum(
        len(level.shapes) * side**2 for level, side in zip(levels, (12, 6, 3, 2, 1, 1), strict=True)
    )
    # 96 px have cells of 8 and 16 px: one rule gives them from the map's side, the other from the net's stride.
    x, y, width, _ = middle_and_size(boxes[0])
    assert (x, y) == pytest.approx((4 / 96, 4 / 96))
    assert width == pytest.approx(levels[0].shapes[0].width)
    assert middle_and_size(boxes[-1])[:2] == pytest.approx([0.5, 0.5])


def test_what_is_shared_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        anchors(caffe_levels(), CAFFE_SIDES, 300)[0] = 0


def test_on_a_device_they_are_the_same_made_once_and_fit_to_train_with():
    here = torch.device("cpu"), caffe_levels(), CAFFE_SIDES, 301
    with torch.inference_mode():
        boxes = anchors_on(*here)
    assert np.array_equal(boxes.numpy(), anchors(*here[1:]))
    assert anchors_on(*here).data_ptr() == boxes.data_ptr()
    assert not boxes.is_inference()
