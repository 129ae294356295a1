"""SSD's loss against brute force: one anchor, one image at a time, with torch's own loss functions."""

import pytest
import torch
import torch.nn.functional as F

from tasks.boxes import areas, encode, intersections, iou, match
from tasks.multibox import assign, hard_negatives, multibox_losses

CLASSES = 6


def grid():
    """36 anchors of a third of the image's side."""
    middles = (torch.arange(6) + 0.5) / 6
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    centres = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return torch.cat([centres - 1 / 6, centres + 1 / 6], dim=-1)


def scene():
    """Four images: two objects and one in a crowd; a crowd alone; nothing; objects without height beside a real one."""
    boxes = torch.tensor(
        [
            [[0.0, 0.0, 0.4, 0.3], [0.5, 0.5, 0.8, 0.9], [0.4, 0.4, 1.0, 1.0]],
            [[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
            [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
            [[0.1, 0.5, 0.6, 0.5], [0.3, 0.2, 0.6, 0.6], [0.2, 0.2, 0.2, 0.2]],
        ]
    )
    labels = torch.tensor([[3, 5, 5], [2, 0, 0], [0, 0, 0], [1, 4, 1]])
    crowd = torch.tensor([[False, False, True], [True, False, False], [False] * 3, [False, False, True]])
    return {"boxes": boxes, "labels": labels, "crowd": crowd}


def predictions(images, anchors, seed=0):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(images, anchors, 4, generator=generator)
    return offsets, 2 * torch.randn(images, anchors, CLASSES, generator=generator)


def test_assignment_equals_brute_force():
    anchors, targets = grid(), scene()
    found = assign(anchors.expand(4, -1, -1), **targets)
    for image in range(4):
        boxes, labels, crowd = (targets[name][image] for name in ("boxes", "labels", "crowd"))
        usable = [i for i in range(3) if labels[i] > 0 and not crowd[i] and areas(boxes[i]) > 0]
        regions = [boxes[i] for i in range(3) if labels[i] > 0 and crowd[i] and areas(boxes[i]) > 0]
        # One image alone, without what must not count at all.
        alone = match(iou(boxes[usable], anchors), torch.ones(len(usable), dtype=torch.bool), 0.5)
        for a, anchor in enumerate(anchors):
            object_ = usable[alone[a]] if alone[a] >= 0 else None
            covered = any(intersections(anchor[None], region[None]) > 0.5 * areas(anchor) for region in regions)
            assert found.labels[image, a] == (0 if object_ is None else labels[object_])
            assert torch.equal(found.boxes[image, a], anchor if object_ is None else boxes[object_])
            assert found.ignored[image, a] == (covered and object_ is None)
    assert (found.labels > 0).sum(dim=1).tolist()[1:3] == [0, 0]
    assert all((found.labels[image] > 0).any() for image in (0, 3))
    assert found.ignored.any(dim=1).tolist() == [True, True, False, False]


def test_without_a_place_for_objects_all_is_background():
    anchors = grid().expand(2, -1, -1)
    found = assign(anchors, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0) > 0)
    assert not found.labels.any()
    assert not found.ignored.any()
    assert torch.equal(found.boxes, anchors)


@pytest.mark.parametrize("seed", range(4))
def test_hard_negatives_equal_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randint(0, 9, (5, 20), generator=generator).float()  # many are equal
    positive = torch.rand(5, 20, generator=generator) < torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0])[:, None]
    ignored = torch.rand(5, 20, generator=generator) < 0.2
    chosen = hard_negatives(losses, positive, ignored)
    for image in range(5):
        free = [a for a in range(20) if not positive[image, a] and not ignored[image, a]]
        free.sort(key=lambda a: -losses[image, a])  # a stable sort: the first of equals stays in front
        expected = free[: 3 * int(positive[image].sum())]
        assert sorted(expected) == torch.where(chosen[image])[0].tolist()
    assert not chosen[0].any()


def losses_by_hand(offsets, logits, anchors, targets, scores):
    """Sums over single anchors, by binary_cross_entropy_with_logits or cross_entropy."""
    found = assign(anchors.expand(len(logits), -1, -1), **targets)
    classification = localisation = torch.zeros(())
    matched = 0
    for image in range(len(logits)):
        each = []
        for a in range(len(anchors)):
            label = found.labels[image, a]
            if scores == "sigmoid":
                wanted = F.one_hot(label, CLASSES).float()
                each.append(F.binary_cross_entropy_with_logits(logits[image, a], wanted, reduction="sum"))
            else:
                each.append(F.cross_entropy(logits[image, a], label))
        positives = [a for a in range(len(anchors)) if found.labels[image, a] > 0]
        negatives = [a for a in range(len(anchors)) if a not in positives and not found.ignored[image, a]]
        negatives.sort(key=lambda a: -each[a])
        for a in positives + negatives[: 3 * len(positives)]:
            classification = classification + each[a]
        for a in positives:
            wanted = encode(found.boxes[image, a], anchors[a])
            localisation = localisation + F.smooth_l1_loss(offsets[image, a], wanted, reduction="sum")
        matched += len(positives)
    return {"classification": classification / matched, "localisation": localisation / matched}


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_losses_and_gradients_equal_brute_force(scores):
    anchors, targets = grid(), scene()
    gradients = []
    for compute in (multibox_losses, losses_by_hand):
        offsets, logits = (value.requires_grad_() for value in predictions(4, 36))
        laid = anchors.expand(4, -1, -1) if compute is multibox_losses else anchors
        losses = compute(offsets, logits, laid, targets, scores)
        sum(losses.values()).backward()
        gradients.append((losses, offsets.grad, logits.grad))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0][2][1:3].abs().sum() == 0  # neither the crowd's image nor the empty one has a part


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_a_batch_without_objects_has_no_loss_and_finite_gradients(scores):
    anchors = grid().expand(2, -1, -1)
    offsets, logits = (value.requires_grad_() for value in predictions(2, 36))
    targets = {name: value[1:3] for name, value in scene().items()}
    losses = multibox_losses(offsets, logits, anchors, targets, scores)
    assert {name: value.item() for name, value in losses.items()} == {"classification": 0.0, "localisation": 0.0}
    sum(losses.values()).backward()
    assert offsets.grad.abs().sum() == logits.grad.abs().sum() == 0


def test_padding_changes_nothing():
    offsets, logits = predictions(4, 36)
    anchors, targets = grid().expand(4, -1, -1), scene()
    padded = {
        name: torch.cat([value, torch.zeros(4, 5, *value.shape[2:], dtype=value.dtype)], dim=1)
        for name, value in targets.items()
    }
    assert multibox_losses(offsets, logits, anchors, targets, "sigmoid") == multibox_losses(
        offsets, logits, anchors, padded, "sigmoid"
    )


def test_each_object_counts_alike_whichever_image_of_the_batch_it_is_in():
    """The loss is a sum over anchors by the batch's matches: the mean of single images' losses by their matches."""
    offsets, logits = predictions(4, 36)
    anchors, targets = grid().expand(4, -1, -1), scene()
    whole = multibox_losses(offsets, logits, anchors, targets, "softmax")
    matches = (assign(anchors, **targets).labels > 0).sum(dim=1)
    for name, value in whole.items():
        single = 0.0
        for image in range(4):
            part = slice(image, image + 1)
            one = {key: target[part] for key, target in targets.items()}
            single += multibox_losses(offsets[part], logits[part], anchors[part], one, "softmax")[name] * matches[image]
        torch.testing.assert_close(value, single / matches.sum())


def test_half_precision_outputs_give_a_single_precision_loss():
    offsets, logits = predictions(4, 36)
    losses = multibox_losses(offsets.bfloat16(), logits.bfloat16(), grid().expand(4, -1, -1), scene(), "sigmoid")
    assert {value.dtype for value in losses.values()} == {torch.float32}
