"""Average precision against scikit-learn's; its interval against resampling by hand, and against the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score

from tasks.average_precision import SEED, average_precision, mean_ap_interval

NAN = float("nan")


def sklearns(scores, labels):
    """(A,), NaN where there is no positive, which scikit-learn calls zero."""
    columns = zip(scores.T, labels.T, strict=True)
    return np.array([average_precision_score(truth, score) if truth.any() else NAN for score, truth in columns])


def made_up(samples, prevalence, rng, separation=1.0):
    labels = (rng.random((samples, len(prevalence))) < prevalence).astype(np.uint8)
    return (rng.normal(size=labels.shape) + separation * labels).astype(np.float32), labels


def test_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.9], [0.7, 0.5], [0.6, 0.5]])
    labels = np.array([[1, 0], [0, 0], [1, 1], [0, 1]])
    expected = [(1 / 1 + 2 / 3) / 2, 2 / 3]
    np.testing.assert_allclose(average_precision(scores, labels), expected, rtol=1e-15)


@pytest.mark.parametrize("decimals", [6, 1, 0])
@pytest.mark.parametrize("prevalence", [0.5, 0.01, 0.001, 1.0])
def test_equals_scikit_learns(prevalence, decimals):
    scores, labels = made_up(3000, np.full(8, prevalence), np.random.default_rng(0))
    scores = scores.round(decimals)
    np.testing.assert_allclose(average_precision(scores, labels), sklearns(scores, labels), rtol=1e-12)


pairs = arrays.array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.float32, shape, elements=st.integers(-3, 3)),
        arrays.arrays(np.uint8, shape, elements=st.integers(0, 1)),
    )
)


@given(pairs)
def test_equals_scikit_learns_with_many_ties(drawn):
    np.testing.assert_allclose(average_precision(*drawn), sklearns(*drawn), rtol=1e-12)


def test_equal_scores_reach_the_prevalence():
    labels = np.array([[1], [0], [0], [1], [0]])
    assert average_precision(np.zeros((5, 1)), labels) == [0.4]


def test_an_attribute_that_no_sample_has_is_not_defined():
    labels = np.array([[0, 1], [0, 0]])
    ap = average_precision(np.array([[0.9, 0.9], [0.1, 0.1]]), labels)
    assert np.isnan(ap[0])
    assert ap[1] == 1.0


@given(pairs, st.data())
def test_a_score_that_is_not_a_number_never_helps(drawn, data):
    scores, labels = drawn
    spoiled = np.where(data.draw(arrays.arrays(np.bool_, scores.shape)), np.float32(NAN), scores)
    before, after = average_precision(scores, labels), average_precision(spoiled, labels)
    np.testing.assert_array_equal(np.isnan(before), np.isnan(after))
    defined = ~np.isnan(before)
    assert (after[defined] <= before[defined] + 1e-12).all()


def test_what_says_nothing_scores_nothing():
    assert average_precision(np.full((3, 1), NAN), np.array([[1], [0], [1]])) == [0.0]


def test_shapes_must_agree():
    with pytest.raises(AssertionError, match=r"\(3, 2\) scores, \(3, 1\) labels"):
        average_precision(np.zeros((3, 2)), np.zeros((3, 1)))


def test_the_interval_equals_resampling_by_hand():
    scores, labels = made_up(60, np.array([0.5, 0.0, 0.2]), np.random.default_rng(0))
    scores, labels[7, 1] = scores.round(1), 1  # some replicates lack the second attribute
    rng = np.random.default_rng(SEED)
    drawn = [rng.integers(60, size=60) for _ in range(40)]
    means = [np.nanmean(sklearns(scores[places], labels[places])) for places in drawn]
    expected = 2 * np.nanmean(sklearns(scores, labels)) - np.quantile(means, (0.975, 0.025))
    np.testing.assert_allclose(mean_ap_interval(scores, labels, 40), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("prevalence", "share"), [(np.array([0.1, 0.3, 0.5]), 0.89), (np.linspace(0.02, 0.5, 40), 0.85)]
)
@pytest.mark.slow
def test_the_interval_holds_the_truth_and_is_no_wider_than_it_must_be(prevalence, share):
    """With many attributes their bias, which does not average out, is what counts."""
    rng = np.random.default_rng(0)
    truth = average_precision(*made_up(100_000, prevalence, rng)).mean()
    found = []
    for _ in range(80):
        drawn = made_up(1000, prevalence, rng)
        found.append((average_precision(*drawn).mean(), *mean_ap_interval(*drawn, 200)))
    estimates, low, high = np.array(found).T
    assert ((low <= truth) & (truth <= high)).mean() >= share
    assert (high - low).mean() == pytest.approx(2 * 1.96 * estimates.std(), rel=0.15)


@pytest.mark.parametrize("samples", [0, 5])
def test_without_positives_nothing_is_known(samples):
    assert mean_ap_interval(np.zeros((samples, 2)), np.zeros((samples, 2))) == (0.0, 1.0)
