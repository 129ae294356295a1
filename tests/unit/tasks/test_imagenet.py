"""Top-k counts against counting by hand, ties and bad numbers included; the interval against scipy's."""

import pytest
import torch
from scipy.stats import binomtest

from tasks.imagenet import IMAGENET, TopK, collate, wilson_interval


@pytest.mark.parametrize(("correct", "samples"), [(0, 10), (3, 10), (10, 10), (706, 1000), (35_300, 50_000)])
def test_wilson_interval_equals_scipys(correct, samples):
    expected = binomtest(correct, samples).proportion_ci(method="wilson")
    assert wilson_interval(correct, samples) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_topk_over_uneven_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(103, 12), torch.randint(12, (103,))
    evaluator = TopK()
    for start in range(0, 103, 40):
        evaluator.update(logits[start : start + 40], {"label": labels[start : start + 40]})
    metrics = evaluator.compute().metrics
    order = logits.argsort(dim=1, descending=True)
    for k in (1, 5):
        by_hand = sum(label in row[:k] for row, label in zip(order.tolist(), labels.tolist(), strict=True))
        assert metrics[f"top{k}_correct"] == by_hand
        assert metrics[f"top{k}"] == by_hand / 103
    assert metrics["samples"] == 103
    assert metrics["top1_low"] < metrics["top1"] < metrics["top1_high"]


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_net_that_says_nothing_scores_nothing(value):
    evaluator = TopK()
    evaluator.update(torch.full((5, 12), value), {"label": torch.zeros(5, dtype=torch.int64)})
    assert evaluator.compute().metrics["top1"] == evaluator.compute().metrics["top5"] == 0.0


def test_collate_and_predict():
    targets = collate([{"label": 3, "name": "a"}, {"label": 0, "name": "b"}])
    assert targets["label"].tolist() == [3, 0]
    torch.testing.assert_close(IMAGENET.predict(torch.randn(4, 7)).sum(dim=1), torch.ones(4))
