"""The losses against their definitions in float64, for labels and for a teacher's probabilities."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from tasks.losses import attribute_cross_entropy, softmax_cross_entropy

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.normal(size=(7, 5))
LABELS = RNG.integers(5, size=7)
TAUGHT = softmax(RNG.normal(size=(7, 5)), axis=1)  # probabilities of classes
SHARES = expit(RNG.normal(size=(7, 5)))  # probabilities of attributes


def tensor(values):
    return torch.tensor(values, dtype=torch.float32)


def per_attribute(logits, shares):
    return -(shares * np.log(expit(logits)) + (1 - shares) * np.log(expit(-logits))).mean()


def gradient(loss, logits, targets):
    leaf = tensor(logits).requires_grad_()
    loss(leaf, targets).backward()
    return leaf.grad.numpy()


def test_classes_with_labels():
    expected = -log_softmax(LOGITS, axis=1)[np.arange(7), LABELS].mean()
    assert softmax_cross_entropy(tensor(LOGITS), torch.tensor(LABELS)).item() == pytest.approx(expected, rel=1e-5)


def test_classes_with_a_teachers_probabilities():
    expected = -(TAUGHT * log_softmax(LOGITS, axis=1)).sum(axis=1).mean()
    assert softmax_cross_entropy(tensor(LOGITS), tensor(TAUGHT)).item() == pytest.approx(expected, rel=1e-5)


def test_attributes_with_labels():
    labels = RNG.integers(2, size=(7, 5)).astype(np.uint8)
    expected = per_attribute(LOGITS, labels)
    assert attribute_cross_entropy(tensor(LOGITS), torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-5)


def test_attributes_with_a_teachers_probabilities():
    expected = per_attribute(LOGITS, SHARES)
    assert attribute_cross_entropy(tensor(LOGITS), tensor(SHARES)).item() == pytest.approx(expected, rel=1e-5)


def test_gradients_pull_towards_the_teacher():
    found = gradient(softmax_cross_entropy, LOGITS, tensor(TAUGHT))
    np.testing.assert_allclose(found, (softmax(LOGITS, axis=1) - TAUGHT) / 7, atol=1e-6)
    found = gradient(attribute_cross_entropy, LOGITS, tensor(SHARES))
    np.testing.assert_allclose(found, (expit(LOGITS) - SHARES) / 35, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (softmax_cross_entropy, torch.tensor(LABELS)),
        (softmax_cross_entropy, tensor(TAUGHT)),
        (attribute_cross_entropy, tensor(SHARES)),
    ],
)
def test_low_precision_logits_are_raised_to_float32(loss, targets):
    logits = tensor(LOGITS).to(torch.bfloat16)
    assert loss(logits, targets).dtype == torch.float32
    assert loss(logits, targets) == loss(logits.float(), targets)


def test_sure_and_wrong_costs_the_logit_and_is_finite():
    assert softmax_cross_entropy(torch.tensor([[1e4, 0.0]]), torch.tensor([1])) == 1e4
    assert attribute_cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([[0, 1]])) == 1e4
