"""Intervals of shares and of their differences, against exact quantiles, resampling by hand, and their limits."""

import numpy as np
import pytest
from scipy import stats

from tasks.bootstrap import independent_difference, paired_difference, share_interval, sign_test


@pytest.mark.parametrize(("correct", "samples"), [(1, 48), (6, 237), (75, 237), (188, 237), (1500, 2997), (47, 48)])
def test_the_interval_of_a_share_has_the_binomial_s_quantiles(correct, samples):
    counts = np.array(share_interval(correct, samples)) * samples
    assert counts == pytest.approx(counts.round(), abs=1e-9)  # a resample has whole counts
    below, up_to = (stats.binom.cdf(counts.round() - less, samples, correct / samples) for less in (1, 0))
    noise = 3 * (0.025 * 0.975 / 100_000) ** 0.5  # of so many draws
    assert (below <= np.array([0.025, 0.975]) + noise).all()
    assert (up_to >= np.array([0.025, 0.975]) - noise).all()


@pytest.mark.parametrize("samples", [1, 48, 237])
def test_where_resamples_do_not_differ_the_open_end_is_clopper_and_pearson_s(samples):
    assert share_interval(0, samples) == (0.0, pytest.approx(stats.beta.ppf(0.975, 1, samples)))
    assert share_interval(samples, samples) == (pytest.approx(stats.beta.ppf(0.025, samples, 1)), 1.0)


def test_of_no_samples_nothing_is_known():
    assert share_interval(0, 0) == (0.0, 1.0)


def test_more_correct_than_there_are_is_refused():
    with pytest.raises(AssertionError, match="5 of 4"):
        share_interval(5, 4)


def resampled(values, resamples=10_000):
    """The ends of the means of resamples of values (N,), drawn one by one."""
    rng = np.random.default_rng(7)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return np.quantile(means, (0.025, 0.975))


@pytest.mark.parametrize("agreement", [0.0, 0.7])
def test_a_paired_difference_is_that_of_resampled_photos(agreement):
    rng = np.random.default_rng(0)
    first, other = rng.random((2, 120)) < np.array([[0.6], [0.45]])
    second = np.where(rng.random(120) < agreement, first, other)
    found = paired_difference(first, second)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert found[1:3] == pytest.approx(resampled(first.astype(int) - second), abs=1.01 / 120)
    turned = paired_difference(second, first)
    assert turned[0] == -found.mean
    assert turned[1:3] == pytest.approx((-found.high, -found.low), abs=1.01 / 120)


def test_photos_that_both_get_right_or_wrong_narrow_the_interval():
    rng = np.random.default_rng(1)
    first = rng.random(237) < 0.5
    second = np.where(rng.random(237) < 0.1, ~first, first)
    paired = paired_difference(first, second)
    independent = independent_difference(int(first.sum()), 237, int(second.sum()), 237)
    assert paired.mean == pytest.approx(independent.mean)
    assert paired.high - paired.low < 0.6 * (independent.high - independent.low)


def test_nets_that_answer_alike_may_still_differ_on_as_many_photos_as_were_not_seen_to():
    bound = stats.beta.ppf(0.975, 1, 48)
    right = np.ones(48, bool)
    assert paired_difference(right, right) == (0.0, pytest.approx(-bound), pytest.approx(bound), False)
    assert paired_difference(right, ~right) == (1.0, pytest.approx(1 - 2 * bound), 1.0, True)
    assert paired_difference(~right, right) == (-1.0, -1.0, pytest.approx(2 * bound - 1), True)


def test_photos_of_two_nets_must_be_as_many():
    with pytest.raises(AssertionError, match=r"\(3,\) and \(4,\)"):
        paired_difference(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(AssertionError, match="no samples"):
        paired_difference(np.ones(0, bool), np.ones(0, bool))


@pytest.mark.parametrize(("first", "second"), [((188, 237), (123, 237)), ((27, 237), (900, 2997)), ((3, 48), (40, 48))])
def test_an_independent_difference_is_that_of_two_resampled_test_sets(first, second):
    found = independent_difference(*first, *second)
    (k, n), (m, o) = first, second
    one, other = (np.arange(total) < count for count, total in (first, second))
    rng = np.random.default_rng(3)
    drawn = [rng.choice(one, n).mean() - rng.choice(other, o).mean() for _ in range(5_000)]
    assert found.mean == pytest.approx(k / n - m / o)
    assert found[1:3] == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=1.01 / n)


def test_of_many_samples_both_are_the_normal_interval():
    share, other, n = 0.793, 0.776, 100_000
    found = independent_difference(round(share * n), n, round(other * n), n)
    half = 1.959964 * ((share * (1 - share) + other * (1 - other)) / n) ** 0.5
    assert found[1:3] == pytest.approx((0.017 - half, 0.017 + half), abs=0.02 * half)
    outcome = np.repeat([0, 1, 2], [60_000, 25_000, 15_000])  # equal, the first alone is right, the second alone
    paired = paired_difference(outcome == 1, outcome == 2)
    half = 1.959964 * ((0.4 - 0.1**2) / n) ** 0.5
    assert paired[:3] == (
        pytest.approx(0.1),
        *(pytest.approx(end, abs=0.02 * half) for end in (0.1 - half, 0.1 + half)),
    )


@pytest.mark.parametrize("counts", [(0, 9, 4, 9), (4, 9, 9, 9)])
def test_shares_whose_resamples_would_not_differ_are_refused(counts):
    with pytest.raises(AssertionError, match="no resample"):
        independent_difference(*counts)


def test_an_independent_difference_is_significant_where_its_interval_excludes_0():
    found = [independent_difference(count, 237, 100, 237) for count in (60, 95, 105, 140)]
    assert [difference.significant for difference in found] == [True, False, False, True]
    assert [difference.low > 0 or difference.high < 0 for difference in found] == [True, False, False, True]


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (4, 0), (0, 6), (9, 2), (2, 9), (31, 17), (5, 5), (120, 80)])
def test_the_sign_test_is_the_binomial_one(gained, lost):
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert sign_test(gained, lost) == pytest.approx(expected)


def test_a_paired_difference_of_few_photos_is_not_significant_though_its_interval_excludes_0():
    right = np.zeros(237, bool)
    for gained, significant in ((4, False), (6, True)):
        better = right.copy()
        better[:gained] = True
        found = paired_difference(better, right)
        assert found.low > 0
        assert found.significant is significant


def test_the_same_counts_have_the_same_interval():
    assert share_interval(75, 237) == share_interval(75, 237)
    assert independent_difference(75, 237, 52, 237) == independent_difference(75, 237, 52, 237)
