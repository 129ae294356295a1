"""Average precision of many attributes at once, and how sure their mean is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

REPLICATES = 1000  # of the bootstrap
SEED = 0  # fixed, so that all nets are judged on the same resamples of a test set


class Ranking(NamedTuple):
    """The samples of each attribute, from the highest score down; all arrays are (A, N).

    order: the samples' places. relevant: has the attribute. found: is relevant and has a score.
    last: is the last of the samples with its score.
    """

    order: npt.NDArray[np.intp]
    relevant: npt.NDArray[np.bool_]
    found: npt.NDArray[np.bool_]
    last: npt.NDArray[np.bool_]


def average_precision(scores: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Floats:
    """(A,) the average precision of each attribute in [0, 1]; NaN where no sample has the attribute.

    scores: (N, A), higher for likelier. labels: (N, A), 0 or 1.
    The sum over distinct scores of the gain in recall times the precision there, not interpolated; samples of equal
    scores are retrieved together. https://scikit-learn.org/stable/modules/model_evaluation.html#average-precision
    A score that is not a number counts against the net: the sample is ranked first if it lacks the attribute, and
    never found if it has it.
    """
    return _weighted(*rank(scores, labels), np.ones(len(scores)))


def mean_ap_interval(
    scores: npt.NDArray[Any], labels: npt.NDArray[Any], replicates: int = REPLICATES
) -> tuple[float, float]:
    """The 95 % basic bootstrap interval of the mean average precision, within [0, 1]; (0, 1) where there is none.

    Samples, not attributes, are drawn with replacement. In a replicate the mean is over the attributes that some drawn
    sample has; one without any is left out. Average precision from few positives is too high, and from a resample of
    them higher still: so the quantiles of the replicates are mirrored at the estimate, which takes that bias off
    (https://en.wikipedia.org/wiki/Bootstrapping_(statistics)). In simulated test sets it held the true value in 93 % of
    those of 1,000 samples with 40 attributes of 2 to 50 %, where the quantiles themselves did in 53 %, and in 83 % of
    those of 300 samples with 40 attributes of 2 to 5 %.
    """
    ranking, samples = rank(scores, labels), len(scores)
    rng = np.random.default_rng(SEED)
    means = []
    for _ in range(replicates):
        drawn = np.bincount(rng.integers(samples, size=samples), minlength=samples)
        ap = _weighted(*ranking, drawn.astype(np.float64))
        if np.isfinite(ap).any():
            means.append(np.nanmean(ap))
    if not means:
        return 0.0, 1.0
    estimate = np.nanmean(_weighted(*ranking, np.ones(samples)))
    low, high = (2 * estimate - np.quantile(means, (0.975, 0.025))).clip(0, 1)
    return float(low), float(high)


def rank(scores: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Ranking:
    """Sort once what every weighting of the samples needs sorted; arguments as of `average_precision`."""
    assert scores.shape == labels.shape, f"{scores.shape} scores, {labels.shape} labels"
    relevant, missing = labels.T != 0, np.isnan(scores.T)
    keys = np.where(missing, np.where(relevant, -np.inf, np.inf), scores.T)
    order = np.argsort(-keys, axis=1, kind="stable")
    keys, relevant, found = (np.take_along_axis(rows, order, 1) for rows in (keys, relevant, relevant & ~missing))
    last = np.ones_like(relevant)
    last[:, :-1] = keys[:, 1:] != keys[:, :-1]
    return Ranking(order, relevant, found, last)


@numba.njit(cache=True)
def _weighted(
    order: npt.NDArray[Any],
    relevant: npt.NDArray[Any],
    found: npt.NDArray[Any],
    last: npt.NDArray[Any],
    weights: Floats,
) -> Floats:
    """`average_precision` of a ranking in which sample i occurs weights[i] times, 0 among them."""
    result = np.empty(len(order))
    for attribute in range(len(order)):
        retrieved = positives = hits = waiting = total = 0.0
        for place in range(len(weights)):
            weight = weights[order[attribute, place]]
            retrieved += weight
            positives += weight * relevant[attribute, place]
            hits += weight * found[attribute, place]
            waiting += weight * found[attribute, place]  # for the precision at the last sample with this score
            if last[attribute, place]:  # a branch on `waiting` too, hard to predict, would double the time
                total += waiting * hits / max(retrieved, 1.0)  # nothing waits where nothing is retrieved
                waiting = 0.0
        result[attribute] = total / positives if positives > 0 else np.nan
    return result
