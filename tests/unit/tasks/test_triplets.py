"""The triplet loss against loops over every triplet, and its gradient where distances vanish."""

import math

import pytest
import torch
import torch.nn.functional as F

from tasks.triplets import positive_pairs, triplet_loss


def unit(samples, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(samples, size, generator=generator, dtype=torch.float64), dim=1)


def loss_by_hand(embeddings, identities):
    terms = []
    for a, anchor in enumerate(embeddings):
        to_others = [(anchor - other).square().sum() for other in embeddings]
        negatives = sorted(d for d, name in zip(to_others, identities, strict=True) if name != identities[a])
        for p, name in enumerate(identities):
            if p == a or name != identities[a] or not negatives:
                continue
            farther = [d for d in negatives if d > to_others[p]]
            negative = farther[0] if farther else negatives[-1]
            terms.append(max(torch.zeros(()).double(), to_others[p] - negative + 0.2))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("size", [2, 3, 64])  # in two dimensions some positives are farther than all negatives
@pytest.mark.parametrize("people", [2, 5, 12])
def test_loss_and_gradient_equal_loops_over_triplets(people, size):
    for seed in range(5):
        identities = torch.randint(people, (16,), generator=torch.Generator().manual_seed(seed))
        embeddings = unit(16, size, seed).requires_grad_()
        ours, theirs = (
            torch.autograd.grad(loss, embeddings, retain_graph=True)[0]
            for loss in (triplet_loss(embeddings, identities), loss_by_hand(embeddings, identities.tolist()))
        )
        torch.testing.assert_close(triplet_loss(embeddings, identities), loss_by_hand(embeddings, identities.tolist()))
        # |a - p|^2 is 2 - 2ap only on the sphere: gradients agree along it.
        along = (ours - theirs) - ((ours - theirs) * embeddings).sum(dim=1, keepdim=True) * embeddings
        torch.testing.assert_close(along, torch.zeros_like(along))


@pytest.mark.parametrize(
    ("negatives", "of_first", "of_second"),
    [
        ([20, 41, 60, 90], 41, 90),  # the nearest that is farther: semi-hard for the first anchor
        ([20, 60, 90], 60, 90),  # beyond the margin, no loss
        ([20, 30, 10], 30, 10),  # none is farther than the positive: the farthest
        ([40, 41, 60], 41, 60),  # a tie with the positive is not farther
    ],
)
def test_which_negative_is_taken(negatives, of_first, of_second):
    """Two images of one person lie at 0 and 40 degrees on a circle, one image of each other person at `negatives`."""
    angles = torch.deg2rad(torch.tensor([0, 40, *negatives], dtype=torch.float64))
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    identities = torch.tensor([0, 0, *range(1, len(negatives) + 1)])
    first, second = (
        max(0, 2 * math.cos(math.radians(gap)) - 2 * math.cos(math.radians(40)) + 0.2)
        for gap in (of_first, 40 - of_second)
    )
    assert triplet_loss(embeddings, identities).item() == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("identities", [[0, 1, 2, 3], [5, 5, 5, 5], [7]])
def test_a_batch_without_triplets_has_no_loss_and_no_gradient(identities):
    embeddings = unit(len(identities), 8, 0).float().requires_grad_()
    loss = triplet_loss(embeddings, torch.tensor(identities))
    loss.backward()
    assert loss.item() == 0
    assert (embeddings.grad == 0).all()


def test_equal_embeddings_have_the_margin_for_a_loss_and_a_finite_gradient():
    outputs = torch.ones(8, 16, requires_grad=True)
    loss = triplet_loss(F.normalize(outputs, dim=1), torch.arange(8) // 2)
    loss.backward()
    assert loss.item() == pytest.approx(0.2, abs=1e-5)
    assert outputs.grad.isfinite().all()


def test_distances_are_not_rounded_in_mixed_precision():
    embeddings = unit(16, 128, 0).float()
    identities = torch.arange(16) // 4
    with torch.autocast("cpu", torch.bfloat16):
        mixed = triplet_loss(embeddings, identities)
    assert mixed.dtype == torch.float32
    assert mixed == triplet_loss(embeddings, identities)


def test_positive_pairs_leave_out_the_anchor():
    positive, negative = positive_pairs(torch.tensor([3, 9, 3]))
    assert positive.tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    assert negative.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
