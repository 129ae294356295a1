"""What goes between Faster R-CNN's stages, against brute force: one image, one box at a time."""

import pytest
import torch
import torch.nn.functional as F

from tasks.boxes import areas, encode, intersections, iou
from tasks.nets import NetSpec
from tasks.proposals import ANCHORS, BOXES, Minibatch, assign, draw, propose, stage_losses, take

LOOSE = Minibatch(size=8, share=0.25, object_iou=0.4, background_iou=0.2, best=True)
STRICT = Minibatch(size=8, share=0.25, object_iou=0.3, background_iou=0.3, best=False)


def candidates(images=4):
    """36 boxes of a third of the image's side, and at the end one without area."""
    middles = (torch.arange(6) + 0.5) / 6
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    centres = torch.stack([x, y], dim=-1).reshape(-1, 2)
    boxes = torch.cat([centres - 1 / 6, centres + 1 / 6], dim=-1)
    return torch.cat([boxes, torch.zeros(1, 4)]).expand(images, -1, -1)


def scene():
    """Four images: two objects and a crowd; a crowd alone; nothing; objects without height or width, and a real one."""
    boxes = torch.tensor(
        [
            [[0.0, 0.0, 0.4, 0.3], [0.5, 0.5, 0.8, 0.9], [0.4, 0.4, 1.0, 1.0]],
            [[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
            [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
            [[0.1, 0.5, 0.6, 0.5], [0.3, 0.2, 0.4, 0.9], [0.2, 0.2, 0.2, 0.2]],
        ]
    )
    labels = torch.tensor([[3, 5, 5], [2, 0, 0], [0, 0, 0], [1, 4, 1]])
    crowd = torch.tensor([[False, False, True], [True, False, False], [False] * 3, [False, False, True]])
    return {"boxes": boxes, "labels": labels, "crowd": crowd}


def test_settings_are_the_published():
    assert (NetSpec("").proposals, ANCHORS.size, BOXES.size) == (300, 256, 64)
    assert ANCHORS == (256, 0.5, 0.7, 0.3, True)  # Ren et al., section 3.1.2
    assert BOXES == (64, 0.25, 0.5, 0.5, False)


@pytest.mark.parametrize("rule", [LOOSE, STRICT])
def test_assignment_equals_brute_force(rule):
    boxes, targets = candidates(), scene()
    found = assign(boxes, targets, rule)
    kinds = set()
    for image in range(4):
        objects = [
            (box, label, crowd)
            for box, label, crowd in zip(*(targets[name][image] for name in ("boxes", "labels", "crowd")), strict=True)
            if label > 0 and areas(box) > 0
        ]
        singles = [(box, label) for box, label, crowd in objects if not crowd]
        overlaps = [[iou(box[None], other[None]).item() for box, _ in singles] for other in boxes[image]]
        best = {max(range(len(overlaps)), key=lambda a: overlaps[a][o]): o for o in range(len(singles))}
        for a, other in enumerate(boxes[image]):
            highest = max(overlaps[a], default=0.0)
            matched = overlaps[a].index(highest) if highest >= rule.object_iou else None
            if rule.best and a in best:
                matched = best[a]
            covered = any(
                intersections(other[None], box[None]) > 0.5 * areas(other) for box, _, crowd in objects if crowd
            )
            ignored = matched is None and (covered or highest >= rule.background_iou or areas(other) == 0)
            assert found.labels[image, a] == (0 if matched is None else singles[matched][1])
            assert torch.equal(found.boxes[image, a], other if matched is None else singles[matched][0])
            assert found.ignored[image, a] == ignored
            kinds.add((matched is not None, highest >= rule.object_iou, bool(ignored), bool(covered)))
    assert len(kinds) >= 5
    assert (found.labels > 0).any(dim=1).tolist() == [True, False, False, rule.best]  # the last has a low object


def test_images_without_any_box_have_background_only():
    targets = {
        "boxes": torch.zeros(4, 0, 4),
        "labels": torch.zeros(4, 0, dtype=torch.int64),
        "crowd": torch.zeros(4, 0, dtype=torch.bool),
    }
    found = assign(candidates(), targets, ANCHORS)
    assert not found.labels.any()
    assert found.ignored.nonzero().tolist() == [[image, 36] for image in range(4)]
    drawn = draw(candidates(), targets, BOXES)
    assert drawn.counts.sum(dim=1).tolist() == [36] * 4
    assert not drawn.labels.any()


def test_minibatches_have_their_size_and_share():
    boxes, targets = candidates(), scene()
    found = assign(boxes, targets, STRICT)
    assert (found.labels > 0).sum(dim=1).tolist() == [8, 0, 0, 0]  # all of a minibatch, but for its share
    seen = torch.zeros(4, 37)
    for seed in range(40):
        torch.manual_seed(seed)
        drawn = draw(boxes, targets, STRICT)
        assert drawn.places.shape == drawn.labels.shape == drawn.counts.shape == (4, 8)
        assert drawn.counts.all()
        assert (drawn.labels > 0).sum(dim=1).tolist() == [2, 0, 0, 0]  # a quarter of eight at most
        assert torch.equal(drawn.labels, found.labels.gather(1, drawn.places))
        assert torch.equal(drawn.boxes, take(found.boxes, drawn.places))
        assert not found.ignored.gather(1, drawn.places).any()
        assert all(len(row.unique()) == 8 for row in drawn.places)
        seen.scatter_add_(1, drawn.places, torch.ones(4, 8))
    assert ((seen > 0) == ~found.ignored).all()  # whatever may be drawn is, sooner or later
    torch.manual_seed(3)
    first = draw(boxes, targets, STRICT)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(boxes, targets, STRICT), strict=True))


def test_minibatches_that_cannot_be_filled_say_what_counts():
    boxes, targets = candidates(), scene()
    found = assign(boxes, targets, LOOSE)
    objects, background = (found.labels > 0).sum(dim=1), ((found.labels == 0) & ~found.ignored).sum(dim=1)
    drawn = draw(boxes, targets, LOOSE._replace(size=64, share=1.0))
    assert drawn.places.shape == (4, 37)  # all there are
    assert torch.equal(drawn.counts.sum(dim=1), objects + background)
    assert torch.equal((drawn.counts & (drawn.labels > 0)).sum(dim=1), objects)


@pytest.mark.parametrize("classes", [1, 6])
def test_losses_equal_brute_force(classes):
    torch.manual_seed(0)
    boxes, targets = candidates(), scene()
    drawn = draw(boxes, targets, LOOSE._replace(size=40, share=1.0))
    assert 0 < drawn.counts.sum() < drawn.counts.numel()
    drawn = drawn._replace(labels=drawn.labels.clamp(max=classes))
    boxes = take(boxes, drawn.places)
    logits, offsets = torch.randn(4, 37, classes + 1), 3 * torch.randn(4, 37, classes, 4)
    offsets.requires_grad_()
    losses = stage_losses(logits, offsets, boxes, drawn)
    classification = localisation = 0.0
    for image in range(4):
        count = drawn.counts[image].sum().item()
        for k in range(37):
            if not drawn.counts[image, k]:
                continue
            label = drawn.labels[image, k]
            classification += F.cross_entropy(logits[image, k][None], label[None]) / count / 4
            if label > 0:
                wanted = encode(drawn.boxes[image, k], boxes[image, k])
                error = F.smooth_l1_loss(offsets[image, k, label - 1], wanted, reduction="sum")
                localisation += 2 * error / count / 4
    torch.testing.assert_close(losses["classification"], classification)
    torch.testing.assert_close(losses["localisation"], localisation)
    losses["localisation"].backward()  # also of the box without area
    assert offsets.grad.isfinite().all()
    assert ((offsets.grad != 0).any(dim=(2, 3)) == (drawn.counts & (drawn.labels > 0))).all()


def test_losses_of_nothing_are_nothing():
    """A batch whose images are crowds from edge to edge."""
    targets = {
        "boxes": torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]),
        "labels": torch.tensor([[1]]),
        "crowd": torch.tensor([[True]]),
    }
    drawn = draw(candidates(1), targets, BOXES)
    assert not drawn.counts.any()
    logits = torch.randn(1, 37, 2, requires_grad=True)
    losses = stage_losses(logits, torch.randn(1, 37, 1, 4), take(candidates(1), drawn.places), drawn)
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]
    losses["classification"].backward()
    assert not logits.grad.any()


def suppressed(boxes, scores):
    """Greedy suppression, one box at a time."""
    kept = []
    for place in scores.argsort(descending=True).tolist():
        if areas(boxes[place]) > 0 and not (iou(boxes[place][None], boxes[kept]) > 0.7).any():
            kept.append(place)
    return boxes[kept]


def test_proposals_equal_brute_force():
    torch.manual_seed(0)
    anchors = candidates(2)[:, :-1]
    logits, offsets = torch.randn(2, 36, 2), 4 * torch.randn(2, 36, 4)
    proposals = propose(logits, offsets, anchors, 300)
    assert proposals.shape == (2, 300, 4)
    for image in range(2):
        shift, growth = offsets[image, :, :2] / 10 / 3, (offsets[image, :, 2:] / 5).exp() / 3
        centres = (anchors[image, :, :2] + anchors[image, :, 2:]) / 2 + shift
        boxes = torch.cat([centres - growth / 2, centres + growth / 2], dim=-1).clamp(0, 1)
        expected = suppressed(boxes, logits[image, :, 1] - logits[image, :, 0])
        assert 20 < len(expected) < 36
        torch.testing.assert_close(proposals[image, : len(expected)], expected)
        assert not proposals[image, len(expected) :].any()


def test_proposals_are_the_likeliest_of_many():
    torch.manual_seed(0)
    start = torch.rand(1, 500, 2) * 0.8
    anchors = torch.cat([start, start + 0.1 + 0.1 * torch.rand(1, 500, 2)], dim=-1)
    logits = torch.stack([torch.zeros(1, 500), torch.randn(1, 500)], dim=-1)
    expected = suppressed(anchors[0], logits[0, :, 1])
    assert len(expected) > 300
    torch.testing.assert_close(propose(logits, torch.zeros(1, 500, 4), anchors, 300)[0], expected[:300])
