"""How sure shares of samples are, and differences of two shares: percentile bootstraps of 95 %, tests at 5 %.

A resample of samples that are right or wrong is known by how many are right, so counts are drawn and not samples:
https://en.wikipedia.org/wiki/Bootstrapping_(statistics)#Deriving_confidence_intervals_from_the_bootstrap_distribution
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 100_000
SEED = 0  # fixed, so that the same counts have the same interval
TAIL = 0.025  # left out at each end

Bools = npt.NDArray[np.bool_]


class Difference(NamedTuple):
    """The first share less the second, with its 95 % interval, all within [-1, 1]; and whether it is significant."""

    mean: float
    low: float
    high: float
    significant: bool


def share_interval(correct: int, samples: int) -> tuple[float, float]:
    """The interval of a share, (low, high) in [0, 1]; (0, 1) for no samples.

    Where none is correct, or all are, resamples do not differ: the open end is then the exact bound.
    """
    assert 0 <= correct <= samples, f"{correct} of {samples}"
    if samples == 0:
        return 0.0, 1.0
    if correct in (0, samples):
        unseen = _unseen(samples)
        return (0.0, unseen) if correct == 0 else (1 - unseen, 1.0)
    low, high = _ends(_resampled(np.random.default_rng(SEED), correct, samples))
    return low, high


def paired_difference(first: Bools, second: Bools) -> Difference:
    """How the shares of two nets differ on the same samples, by resamples of those; first, second: (N,), N > 0.

    It is significant by the exact sign test of the samples on which they differ (McNemar's test): of few of those the
    bootstrap's interval is too narrow. Where the nets differ by the same on every sample, resamples do not differ: the
    ends are then where as many samples as the exact bound allows would turn out otherwise.
    """
    samples = len(first)
    assert first.shape == second.shape == (samples,), f"{first.shape} and {second.shape}"
    assert samples > 0, "no samples"
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    mean, significant = (gained - lost) / samples, sign_test(gained, lost) < 2 * TAIL
    if samples in (gained, lost, samples - gained - lost):
        unseen = _unseen(samples)
        return Difference(mean, mean - unseen * (mean + 1), mean + unseen * (1 - mean), significant)
    outcomes = np.array([gained, lost, samples - gained - lost]) / samples
    drawn = np.random.default_rng(SEED).multinomial(samples, outcomes, RESAMPLES)
    return Difference(mean, *_ends((drawn[:, 0] - drawn[:, 1]) / samples), significant)


def sign_test(gained: int, lost: int) -> float:
    """The chance that so uneven a split of samples, or a more uneven one, comes of even odds; 1 for no samples."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def independent_difference(first: int, first_samples: int, second: int, second_samples: int) -> Difference:
    """How two shares differ of which only the counts are known, so that their samples are taken for different ones.

    It is significant where the interval excludes 0. Of the same samples they differ less by chance, as a rule, so that
    the interval is then too wide. Neither share may be 0 or 1.
    """
    for correct, samples in ((first, first_samples), (second, second_samples)):
        assert 0 < correct < samples, f"{correct} of {samples}: no resample of them would differ"
    rng = np.random.default_rng(SEED)
    drawn = _resampled(rng, first, first_samples) - _resampled(rng, second, second_samples)
    low, high = _ends(drawn)
    return Difference(first / first_samples - second / second_samples, low, high, low > 0 or high < 0)


def _resampled(rng: np.random.Generator, correct: int, samples: int) -> npt.NDArray[np.float64]:
    return rng.binomial(samples, correct / samples, RESAMPLES) / samples


def _ends(drawn: npt.NDArray[Any]) -> tuple[float, float]:
    low, high = np.quantile(drawn, (TAIL, 1 - TAIL), method="inverted_cdf")
    return float(low), float(high)


def _unseen(samples: int) -> float:
    """The largest share that an outcome which no sample had can have (Clopper and Pearson's bound)."""
    return float(1 - TAIL ** (1 / samples))
