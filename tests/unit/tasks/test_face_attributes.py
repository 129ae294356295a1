"""The attributes' metrics against scikit-learn's and counting; labels that are absent, mixed or wrong."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score
from torch import nn

from tasks.average_precision import mean_ap_interval
from tasks.base import Batch, TestSet, evaluate
from tasks.face_attributes import FACE_ATTRIBUTES, collate
from tasks.losses import attribute_cross_entropy

NAMES = ("Bald", "Eyeglasses", "Male", "Nobody", "Smiling")


def made_up(samples=203, seed=0):
    """Logits, and labels that they say something of; no sample has the fourth attribute."""
    rng = np.random.default_rng(seed)
    labels = rng.random((samples, 5)) < [0.03, 0.2, 0.5, 0.0, 0.6]
    logits = rng.normal(size=(samples, 5)) + 2 * labels - 1
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels, dtype=torch.uint8)


def evaluated(logits, labels, batch=64):
    evaluator = FACE_ATTRIBUTES.evaluator(TestSet(NAMES))
    for start in range(0, len(labels), batch):
        evaluator.update(logits[start : start + batch], {"attributes": labels[start : start + batch]})
    return evaluator.compute()


def test_the_metrics_over_uneven_batches():
    logits, labels = made_up()
    found = evaluated(logits, labels)
    scores, has = logits.sigmoid().numpy(), [0, 1, 2, 4]
    expected = average_precision_score(labels[:, has], scores[:, has], average=None)
    np.testing.assert_allclose(found.arrays["ap"][has], expected, rtol=1e-12)
    assert np.isnan(found.arrays["ap"][3])
    metrics = found.metrics
    assert metrics["mean_ap"] == pytest.approx(expected.mean())
    assert (metrics["attributes"], metrics["samples"]) == (4, 203)
    assert (metrics["mean_ap_low"], metrics["mean_ap_high"]) == mean_ap_interval(scores, labels.numpy())
    assert metrics["mean_ap_low"] < metrics["mean_ap"] < metrics["mean_ap_high"]
    assert metrics["chance_ap"] == pytest.approx(labels.numpy()[:, has].mean())
    right = accuracy_score(labels.flatten(), scores.ravel() > 0.5)
    assert metrics["attribute_accuracy"] == pytest.approx(right)
    assert FACE_ATTRIBUTES.batch_metrics(logits, {"attributes": labels})["attribute_accuracy"] == pytest.approx(right)


def test_the_arrays_are_what_was_seen():
    logits, labels = made_up()
    arrays = evaluated(logits, labels).arrays
    np.testing.assert_array_equal(arrays["scores"], FACE_ATTRIBUTES.predict(logits))
    np.testing.assert_array_equal(arrays["labels"], labels)
    np.testing.assert_allclose(arrays["prevalence"], labels.double().mean(dim=0))
    assert {name: array.dtype for name, array in arrays.items()} == {
        "ap": np.float64, "prevalence": np.float64, "scores": np.float32, "labels": np.uint8,
    }  # fmt: skip


def test_equal_outputs_reach_chance():
    _, labels = made_up()
    metrics = evaluated(torch.zeros(203, 5), labels).metrics
    assert metrics["mean_ap"] == pytest.approx(metrics["chance_ap"])


def test_outputs_that_are_not_numbers_are_never_right():
    logits, labels = made_up()
    before = evaluated(logits, labels).metrics
    logits[::3, 2] = torch.nan
    after = evaluated(logits, labels).metrics
    assert after["mean_ap"] < before["mean_ap"]
    assert after["attribute_accuracy"] < before["attribute_accuracy"]
    nothing = evaluated(torch.full_like(logits, torch.nan), labels).metrics
    assert nothing["mean_ap"] == nothing["mean_ap_high"] == nothing["attribute_accuracy"] == 0.0


@pytest.mark.parametrize("samples", [0, 3])
def test_a_test_set_without_positives_says_nothing(samples):
    metrics = evaluated(torch.zeros(samples, 5), torch.zeros(samples, 5, dtype=torch.uint8)).metrics
    assert (metrics["mean_ap"], metrics["mean_ap_low"], metrics["mean_ap_high"]) == (0.0, 0.0, 1.0)
    assert (metrics["chance_ap"], metrics["attributes"], metrics["samples"]) == (0.0, 0, samples)


def test_a_net_is_evaluated():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    _, labels = made_up(20)
    images = torch.randint(256, (20, 4, 4, 3), dtype=torch.uint8)
    batches = (Batch(images[i : i + 8], torch.empty(0, 4), {"attributes": labels[i : i + 8]}) for i in (0, 8, 16))
    found = evaluate(FACE_ATTRIBUTES, net, batches, TestSet(NAMES), "cpu")
    assert found.metrics["samples"] == 20
    np.testing.assert_array_equal(found.arrays["labels"], labels)


def test_collate_labels():
    targets = collate([{"attributes": [0, 1, 1], "identity": "7"}, {"attributes": [1, 0, 0], "identity": "8"}])
    assert targets["attributes"].dtype == torch.uint8
    assert targets["attributes"].tolist() == [[0, 1, 1], [1, 0, 0]]


def test_images_without_labels_have_no_targets():
    assert collate([{"name": "a"}, {"name": "b"}]) == {}


def test_some_labels_are_a_mistake():
    with pytest.raises(ValueError, match="'attributes': 1 of 2 samples have them; all must, or none"):
        collate([{"attributes": [0, 1]}, {}])


def test_other_numbers_are_a_mistake():
    with pytest.raises(ValueError, match=r"'attributes': \[-1, 1\] occur; 0 and 1 are allowed"):
        collate([{"attributes": [-1, 1]}])


def test_without_labels_one_can_only_be_taught():
    with pytest.raises(ValueError, match="no 'attributes'"):
        FACE_ATTRIBUTES.loss(torch.zeros(2, 5), collate([{}, {}]))
    assert FACE_ATTRIBUTES.distill(torch.zeros(2, 5), torch.full((2, 5), 0.3)).item() == pytest.approx(np.log(2))


def test_the_losses_are_the_per_attribute_cross_entropy():
    logits, labels = made_up(9)
    assert FACE_ATTRIBUTES.loss(logits, {"attributes": labels}) == attribute_cross_entropy(logits, labels)
    student = logits.clone().requires_grad_()
    FACE_ATTRIBUTES.distill(student, FACE_ATTRIBUTES.predict(logits)).backward()
    torch.testing.assert_close(student.grad, torch.zeros(9, 5), msg="the teacher itself is not the best student")
