"""The confusion matrix against scikit-learn's and, for ties and bad numbers, against a loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from tasks import stanford_dogs
from tasks.base import TestSet
from tasks.imagenet import IMAGENET
from tasks.stanford_dogs import STANFORD_DOGS

INF, NAN = math.inf, math.nan


def evaluated(logits, labels, batch=40):
    evaluator = STANFORD_DOGS.evaluator(TestSet([str(place) for place in range(logits.shape[1])]))
    for start in range(0, len(labels), batch):
        evaluator.update(logits[start : start + batch], {"label": labels[start : start + batch]})
    return evaluator.compute()


def taken_for(row, label):
    others = [place for place in range(len(row)) if place != label]
    if all(row[label] > row[place] for place in others):
        return label
    return max(others, key=lambda place: (-INF if math.isnan(row[place]) else row[place], -place))


def test_over_uneven_batches_and_classes_of_different_size():
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.arange(1.0, 13), 403, replacement=True, generator=generator)
    logits = torch.randn(403, 12, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 12)
    found = evaluated(logits, labels)
    answers = logits.argmax(dim=1)
    np.testing.assert_array_equal(found.arrays["confusion"], confusion_matrix(labels, answers))
    assert found.arrays["confusion"].dtype == np.int64
    assert found.metrics["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, answers))
    assert found.metrics["mean_per_class"] != pytest.approx(found.metrics["top1"], abs=1e-3)


def test_classes_without_samples_are_left_out_of_the_mean():
    found = evaluated(torch.eye(4)[[0, 0, 2]], torch.tensor([0, 0, 3]))
    assert found.metrics["mean_per_class"] == 0.5
    assert found.metrics["top1"] == 2 / 3


def test_no_samples():
    found = evaluated(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert (found.metrics["mean_per_class"], found.metrics["samples"]) == (0.0, 0)
    assert found.arrays["confusion"].tolist() == [[0, 0, 0]] * 3


@st.composite
def outputs(draw):
    size, samples = draw(st.integers(2, 6)), draw(st.integers(1, 12))
    row = st.lists(st.sampled_from([-INF, -1.0, 0.0, 1.0, INF, NAN]), min_size=size, max_size=size)
    rows = draw(st.lists(row, min_size=samples, max_size=samples))
    return rows, draw(st.lists(st.integers(0, size - 1), min_size=samples, max_size=samples))


@given(outputs())
def test_ties_and_bad_numbers_fit_the_counts(drawn):
    rows, labels = drawn
    found = evaluated(torch.tensor(rows), torch.tensor(labels), batch=5)
    counts = found.arrays["confusion"]
    expected = np.zeros_like(counts)
    for row, label in zip(rows, labels, strict=True):
        expected[label, taken_for(row, label)] += 1
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(labels, minlength=len(counts)))
    assert np.trace(counts) == found.metrics["top1_correct"]
    assert counts.sum() == found.metrics["samples"]


def test_all_else_is_imagenets():
    kept = {"name": IMAGENET.name, "evaluator": IMAGENET.evaluator}
    assert STANFORD_DOGS._replace(**kept) == IMAGENET
    assert STANFORD_DOGS.name == stanford_dogs.__name__.split(".")[-1]


def test_the_top_metrics_are_imagenets():
    logits, labels = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 8
    imagenet = IMAGENET.evaluator(TestSet(()))
    imagenet.update(logits, {"label": labels})
    metrics = evaluated(logits, labels).metrics
    assert metrics.pop("mean_per_class") >= 0
    assert metrics == imagenet.compute().metrics
