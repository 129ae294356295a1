"""Boxes against torchvision, brute force and values by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import boxes
from tasks.boxes import areas, decode, encode, intersections, iou, match, suppress

SIDE = st.floats(0.02, 1.0)  # sides end at 62.5 times the anchor's
PLACE = st.floats(-0.2, 1.0)


def random_boxes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(*shape, 2, generator=generator) * 0.8
    return torch.cat([start, start + torch.rand(*shape, 2, generator=generator) * 0.4 + 0.01], dim=-1)


def test_overlaps_equal_torchvisions():
    from torchvision.ops import box_area, box_iou

    a, b = random_boxes(3, 20), random_boxes(3, 30, seed=1)
    together = iou(a, b)
    assert together.shape == (3, 20, 30)
    for image in range(3):
        torch.testing.assert_close(together[image], box_iou(a[image], b[image]))
        torch.testing.assert_close(areas(a[image]), box_area(a[image]))


@pytest.mark.parametrize(
    ("other", "shared", "expected"),
    [
        ([0.0, 0.0, 0.5, 0.5], 0.25, 1.0),
        ([0.25, 0.0, 0.75, 0.5], 0.125, 1 / 3),
        ([0.0, 0.0, 1.0, 1.0], 0.25, 0.25),
        ([0.5, 0.5, 1.0, 1.0], 0.0, 0.0),  # they touch in a corner
        ([0.2, 0.2, 0.2, 0.4], 0.0, 0.0),  # no width
        ([0.4, 0.4, 0.2, 0.2], 0.0, 0.0),  # ends before it starts
    ],
)
def test_overlaps_by_hand(other, shared, expected):
    one, other = torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([other])
    assert intersections(one, other).item() == pytest.approx(shared)
    assert iou(one, other).item() == pytest.approx(expected)
    assert iou(other, one).item() == pytest.approx(expected)


def test_two_boxes_without_area_do_not_overlap():
    point = torch.full((1, 4), 0.5)
    assert iou(point, point).item() == 0.0


def test_offsets_by_hand():
    anchor, box = torch.tensor([0.2, 0.2, 0.6, 0.4]), torch.tensor([0.3, 0.1, 0.5, 0.5])
    # Centres (.4, .3) and (.4, .3); sides .4 x .2 and .2 x .4.
    torch.testing.assert_close(encode(box, anchor), torch.tensor([0, 0, 5 * math.log(0.5), 5 * math.log(2)]))
    moved = box + torch.tensor([0.1, 0.05, 0.1, 0.05])
    torch.testing.assert_close(encode(moved, anchor)[:2], torch.tensor([10 * 0.1 / 0.4, 10 * 0.05 / 0.2]))


def test_offsets_equal_torchvisions():
    from torchvision.models.detection._utils import BoxCoder

    objects, anchors = random_boxes(50), random_boxes(50, seed=1)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(encode(objects, anchors), coder.encode_single(objects, anchors))
    offsets = torch.randn(50, 4) * 5
    torch.testing.assert_close(decode(offsets, anchors), coder.decode_single(offsets, anchors))


@settings(deadline=None, max_examples=50)
@given(st.tuples(PLACE, PLACE, SIDE, SIDE), st.tuples(PLACE, PLACE, SIDE, SIDE))
def test_decoding_undoes_encoding(box, anchor):
    box, anchor = (torch.tensor([x, y, x + w, y + h], dtype=torch.float64) for x, y, w, h in (box, anchor))
    torch.testing.assert_close(decode(encode(box, anchor), anchor), box, atol=1e-9, rtol=0)


def test_any_offset_gives_a_finite_box():
    anchor = torch.tensor([0.0, 0.0, 0.1, 0.1])
    box = decode(torch.tensor([0.0, 0.0, 1e6, -1e6]), anchor)
    torch.testing.assert_close(box, torch.tensor([0.05 - 3.125, 0.05, 0.05 + 3.125, 0.05]))


def matched_by_hand(overlaps, present, threshold):
    """Anchor by anchor in plain Python."""
    answer = []
    objects = [row for row in range(len(overlaps)) if present[row]]
    best_anchor = {row: int(np.argmax(overlaps[row])) for row in objects}
    for anchor in range(overlaps.shape[1]):
        owners = [row for row in objects if best_anchor[row] == anchor and overlaps[row, anchor] > 0]
        near = [row for row in objects if overlaps[row, anchor] >= threshold]
        candidates = owners or near
        answer.append(max(candidates, key=lambda row: overlaps[row, anchor]) if candidates else -1)
    return answer


@pytest.mark.parametrize("seed", range(5))
def test_matching_equals_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    overlaps = iou(random_boxes(4, 6, seed=seed), random_boxes(40, seed=seed + 10).expand(4, -1, -1))
    present = torch.rand(4, 6, generator=generator) > 0.3
    present[1] = False
    matched = match(overlaps, present, 0.5)
    assert matched.dtype == torch.int64
    for image in range(4):
        expected = matched_by_hand(overlaps[image].numpy(), present[image].numpy(), 0.5)
        assert matched[image].tolist() == expected
    assert (matched[1] == -1).all()


def test_the_best_anchor_of_an_object_takes_it_whatever_else_it_overlaps():
    overlaps = torch.tensor([[0.9, 0.6, 0.0, 0.0], [0.3, 0.7, 0.2, 0.0], [0.0, 0.0, 0.1, 0.0]])
    assert match(overlaps, torch.ones(3, dtype=torch.bool), 0.5).tolist() == [0, 1, 2, -1]
    # Two objects whose best anchor is the same: it goes to the one that it overlaps more.
    overlaps = torch.tensor([[0.3, 0.1], [0.4, 0.0], [0.0, 0.0]])
    assert match(overlaps, torch.ones(3, dtype=torch.bool), 0.5).tolist() == [1, -1]


def test_from_half_an_overlap_on_an_anchor_stands_for_the_object():
    overlaps = torch.tensor([[0.8, 0.5, 0.4999]])
    assert match(overlaps, torch.tensor([True]), 0.5).tolist() == [0, 0, -1]


def test_without_objects_no_anchor_stands_for_any():
    assert match(torch.zeros(2, 0, 5), torch.zeros(2, 0, dtype=torch.bool), 0.5).tolist() == [[-1] * 5] * 2


def suppressed_by_hand(found, scores, score_threshold, nms_iou, max_detections):
    """All scores from the best down, each against all of its class that stay."""
    ranked = sorted(
        ((float(scores[a, c]), a, c) for a in range(len(scores)) for c in range(scores.shape[1])),
        key=lambda entry: -entry[0],
    )
    kept = []
    for score, a, c in ranked:
        box = found[a] if found.dim() == 2 else found[a, c]
        if score <= score_threshold or areas(box) == 0:
            continue
        rivals = [other for other, _, label in kept if label == c + 1]
        if not rivals or iou(box[None], torch.stack(rivals)).max() <= nms_iou:
            kept.append((box, score, c + 1))
    return kept[:max_detections]


@pytest.mark.parametrize("candidates", [1, 7, 1000])  # with few, suppression has to look at more and more
@pytest.mark.parametrize("limit", [5, 20, 1000])
@pytest.mark.parametrize("by_class", [False, True])
def test_suppression_equals_brute_force(monkeypatch, candidates, limit, by_class):
    monkeypatch.setattr(boxes, "CANDIDATES", candidates)
    found = random_boxes(30, 3) if by_class else random_boxes(30)
    found[4] = 0.5  # no area
    scores = torch.rand(30, 3, generator=torch.Generator().manual_seed(1))
    expected = suppressed_by_hand(found, scores, 0.2, 0.15, limit)
    detected = suppress(found, scores, 0.2, 0.15, limit)
    assert detected["labels"].tolist() == [label for _, _, label in expected]
    torch.testing.assert_close(detected["scores"], torch.tensor([score for _, score, _ in expected]))
    torch.testing.assert_close(detected["boxes"], torch.stack([box for box, _, _ in expected]))
    assert 5 <= len(expected) < 0.8 * (scores > 0.2).sum()


def test_nothing_above_the_threshold_is_no_detection():
    detected = suppress(random_boxes(5), torch.full((5, 2), 0.3), 0.3, 0.6, 100)
    assert [tuple(value.shape) for value in detected.values()] == [(0, 4), (0,), (0,)]
    assert detected["labels"].dtype == torch.int64


@pytest.mark.parametrize("column", [0, 89])
def test_small_boxes_are_told_apart_whatever_their_class(column):
    """Classes are kept apart by moving their boxes: 90 sides away, single precision has 1e-5 of a side left."""
    scores = torch.zeros(2, 90)
    scores[:, column] = torch.tensor([0.9, 0.8])
    for shift in torch.linspace(0.0002, 0.0003, 21):  # of boxes of .0006, whose IoU is .4 at a shift of .000257
        pair = torch.tensor([[0.5, 0.5, 0.5006, 0.5006], [0.5 + shift, 0.5, 0.5006 + shift, 0.5006]])
        expected = 1 if iou(pair[:1].double(), pair[1:].double()) > 0.4 else 2
        assert len(suppress(pair, scores, 0.1, 0.4, 100)["labels"]) == expected
