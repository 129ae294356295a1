"""Object detection as a task: targets from the shards' fields, a detector's losses, and figures in pixels."""

import numpy as np
import pytest
import torch
from torch import nn

from tasks.augment import distort
from tasks.base import Batch, TestSet, View, evaluate
from tasks.coco_ap import CocoAP
from tasks.detection import OBJECT_DETECTION, DetectionAP, collator, num_outputs
from tasks.nets import NetSpec, build

pytestmark = pytest.mark.usefixtures("one_thread")
CATEGORIES = ("1 red disc", "19 blue bars", "90 star")


def sample(number, objects, crop=(0, 0, 80, 100), flipped=False):
    return {"image_id": number, "objects": objects, "view": View(crop, flipped)}


def thing(category, box, crowd=False):
    return {"category": category, "box": box, "area": box[2] * box[3] / 2, "crowd": crowd}


def test_outputs_reach_the_highest_category():
    assert num_outputs(CATEGORIES) == 91
    assert num_outputs(("1 person", "3 car")) == 4
    with pytest.raises(ValueError, match="category 'person' does not begin with its number"):
        num_outputs(("person",))


def test_targets_are_padded_boxes_of_what_is_seen():
    samples = [
        sample(7, [thing(19, [10.0, 20.0, 30.0, 40.0]), thing(1, [90.0, 0.0, 10.0, 8.0], crowd=True)]),
        sample(8, []),
        sample(9, [thing(90, [10.0, 20.0, 30.0, 40.0]), thing(1, [70.0, 2.0, 20.0, 4.0])], (20, 0, 40, 50), True),
    ]
    targets = collator(CATEGORIES)(samples)
    assert targets["labels"].tolist() == [[19, 1], [0, 0], [90, 0]]  # the disc's middle is outside of the crop
    torch.testing.assert_close(targets["boxes"][0, 0], torch.tensor([0.1, 0.25, 0.4, 0.75]))
    torch.testing.assert_close(targets["boxes"][2, 0], torch.tensor([0.2, 0.0, 0.8, 1.0]))  # 10 to 40 of 50, mirrored
    assert targets["crowd"].tolist() == [[False, True], [False, False], [False, False]]
    assert targets["image_id"].tolist() == [7, 8, 9]
    assert targets["crop"].tolist() == [[0, 0, 80, 100], [0, 0, 80, 100], [20, 0, 40, 50]]
    assert targets["objects"][0, 1].tolist() == [1.0, 90.0, 0.0, 10.0, 8.0, 40.0, 1.0]
    assert not targets["objects"][1].any()


def test_images_without_any_object_have_empty_targets():
    targets = collator(CATEGORIES)([sample(1, []), sample(2, [])])
    assert {key: value.shape[1:] for key, value in targets.items()} == {
        "boxes": (0, 4), "labels": (0,), "crowd": (0,), "image_id": (), "crop": (4,), "objects": (0, 7),
    }  # fmt: skip


def test_what_has_no_objects_is_no_data_for_the_task():
    collate = collator(CATEGORIES)
    assert collate([{"label": 1}, {"label": 2}]) == {}
    with pytest.raises(ValueError, match="'objects': 1 of 2 samples have them; all must, or none"):
        collate([sample(1, []), {"label": 2}])
    with pytest.raises(ValueError, match=r"image 3: category 2 is none of \[1, 19, 90\]"):
        collate([sample(3, [thing(2, [0.0, 0.0, 1.0, 1.0])])])


def test_boxes_move_with_the_pixels_that_are_flipped():
    """What the device does to the pixels is what the reader says of the boxes."""
    image = torch.zeros(1, 80, 100, 3, dtype=torch.uint8)
    image[:, 20:60, 10:40] = 255
    turned = distort(image, torch.tensor([[1.0, 0.0, 1.0, 1.0]]))[0, 0] > 0
    (box,) = collator(CATEGORIES)([sample(1, [thing(1, [10.0, 20.0, 30.0, 40.0])], flipped=True)])["boxes"][0]
    rows, columns = np.nonzero(turned.numpy())
    found = [columns.min() / 100, rows.min() / 80, (columns.max() + 1) / 100, (rows.max() + 1) / 80]
    assert box.tolist() == pytest.approx(found)


@pytest.mark.parametrize("objects", [[], [thing(1, [10.0, 20.0, 30.0, 40.0]), thing(19, [50.0, 5.0, 40.0, 60.0])]])
def test_the_loss_is_the_sum_of_the_nets_parts(objects):
    torch.manual_seed(0)
    net = build(NetSpec("ssd300_mobilenet", num_classes=91))
    targets = collator(CATEGORIES)([sample(1, objects), sample(2, [])])
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    parts = OBJECT_DETECTION.run(net, images, targets)
    loss = OBJECT_DETECTION.loss(parts, targets)
    assert loss.item() == pytest.approx(sum(value.item() for value in parts.values()))
    metrics = OBJECT_DETECTION.batch_metrics(parts, targets)
    assert metrics.keys() == {"classification_loss", "localisation_loss"}
    assert not any(value.requires_grad for value in metrics.values())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_a_detector_learns_from_no_teacher():
    with pytest.raises(ValueError, match="a detector learns from boxes, not from a teacher"):
        OBJECT_DETECTION.distill(torch.zeros(1, 5, 6), torch.zeros(1, 5, 6))


class Oracle(nn.Module):
    """Knows what is where: rows of detections by image, in [0, 1] of what is seen."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.seen = rows, 0

    def forward(self, images):
        found = torch.zeros(len(images), 3, 6)
        for place in range(len(images)):
            rows = torch.tensor(self.rows[self.seen + place]).reshape(-1, 6)
            found[place, : len(rows)] = rows
        self.seen += len(images)
        return found


def test_evaluation_is_in_pixels_of_the_stored_image():
    """Images of unequal sizes, one seen in part: as the figures are when the pixels are given to them."""
    samples = [
        sample(5, [thing(1, [10.0, 20.0, 30.0, 40.0])]),
        sample(3, [thing(19, [8.0, 4.0, 16.0, 12.0]), thing(1, [0.0, 0.0, 40.0, 30.0], crowd=True)], (0, 0, 30, 40)),
        sample(4, []),
        sample(9, [thing(90, [20.0, 10.0, 40.0, 40.0])], (10, 20, 60, 60)),
    ]
    rows = [
        [[0.1, 0.25, 0.4, 0.75, 0.9, 1]],
        [[0.2, 4 / 30, 0.6, 16 / 30, 0.8, 19], [0.25, 0.25, 0.5, 0.5, 0.7, 1]],
        [[0.0, 0.0, 0.5, 0.5, 0.6, 90]],
        [[0.0, 0.0, 40 / 60, 40 / 60, 0.4, 90]],
    ]
    collate = collator(CATEGORIES)
    batches = (
        Batch(torch.zeros(len(part), 8, 8, 3, dtype=torch.uint8), torch.empty(0, 4), collate(part))
        for part in (samples[:3], samples[3:])
    )
    found = evaluate(OBJECT_DETECTION, Oracle(rows), batches, TestSet(CATEGORIES), "cpu")
    figures = CocoAP(CATEGORIES)
    pixels = [
        [[10, 20, 40, 60, 0.9, 1]],
        [[8, 4, 24, 16, 0.8, 19], [10, 7.5, 20, 15, 0.7, 1]],
        [[0, 0, 50, 40, 0.6, 90]],
        [[20, 10, 60, 50, 0.4, 90]],
    ]
    tables = [torch.tensor(rows, dtype=torch.float64) for rows in pixels]
    figures.update(
        [5, 3, 4, 9],
        [{"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()} for rows in tables],
        [one["objects"] for one in samples],
    )
    expected = figures.compute()
    assert found.metrics == pytest.approx(expected.metrics)
    assert found.metrics["ap"] == pytest.approx(1.0 - 0.5 / 3, abs=0.01)  # of the star, a surer one is where none is
    assert found.metrics["samples"] == 4
    np.testing.assert_allclose(found.arrays["detection_boxes"], expected.arrays["detection_boxes"], atol=1e-4)
    assert found.arrays["image_sizes"].tolist() == [[80, 100], [30, 40], [80, 100], [60, 60]]


def test_a_net_that_finds_nothing_has_no_ap():
    collate = collator(CATEGORIES)
    evaluator = DetectionAP(TestSet(CATEGORIES))
    evaluator.update(torch.zeros(1, 5, 6), collate([sample(1, [thing(1, [10.0, 20.0, 30.0, 40.0])])]))
    evaluation = evaluator.compute()
    assert evaluation.metrics["ap"] == 0
    assert len(evaluation.arrays["detection_score"]) == 0
