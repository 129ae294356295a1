"""Face verification: whether two images show one person, judged by the distance of their embeddings.

A pair is accepted when its squared distance is strictly below a threshold. Genuine pairs show one person, impostor
pairs two. FAR is the share of impostor pairs that are accepted, TAR that of genuine pairs (FAR and VAL in section 4 of
FaceNet, arXiv 1503.03832).

Embeddings are (N, D) float32 of unit length, or zero. They are rounded to multiples of 2^-24, which moves a coordinate
by 3e-8 at most; from there on distances are exact, whatever the order of the sums: equal embeddings are at distance 0,
and equal distances tie on every machine. A pair with an embedding that is not finite counts against the net: it is at
an infinite distance when it is genuine, and at 0 when it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.base import Pairs

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

GRID = 2.0**24  # of products of such multiples, sums below 32 are exact in float64
BLOCK = 1 << 20  # pairs that are compared at a time: 8 MB of distances
SPARE = 4  # times as many of the closest impostor pairs are held as a FAR allows, for the bootstrap

# Bins of impostor distances are float64 numbers without their last 40 bits, so an octave has 4096. The first is for 0,
# the second starts at the smallest other distance, 2^-48.
_DROPPED_BITS = 40
_BIN_OF_ZERO = ((1023 - 48) << 12) - 1
_BINS = ((1023 + 3) << 12) - _BIN_OF_ZERO  # up to 8, which no squared distance reaches


class Verification(NamedTuple):
    """TAR at a FAR."""

    tar: float
    threshold: float  # of squared distance
    false_accepts: int
    genuine_pairs: int
    impostor_pairs: int


class Roc(NamedTuple):
    """The whole ROC: fpr and tpr ascend from 0 to 1. auc: the area below it. eer: the equal error rate."""

    fpr: Float64s
    tpr: Float64s
    auc: float
    eer: float


class AllPairs(NamedTuple):
    """All pairs of two different images, as far as they matter to a low FAR; P people.

    embeddings, identities, max_far: what `compare_all` was given.
    images: (P,) int64, how many of each person, in the order of their identities.
    genuine: (G,) float64, the squared distance of every genuine pair, ascending; genuine_person: (G,) int32.
    impostor: (K,) float64, those of the impostor pairs that are closest, ascending; impostor_people: (2, K) int32.
    bins: how many of all impostor pairs are in each bin of distance. People are places in `images`.
    """

    embeddings: Float32s
    identities: Int64s
    max_far: float
    images: Int64s
    genuine: Float64s
    genuine_person: Int32s
    impostor: Float64s
    impostor_people: Int32s
    impostor_pairs: int
    bins: Int64s


def compare_all(embeddings: Float32s, identities: Int64s, max_far: float = 1e-3) -> AllPairs:
    """Compares all pairs of different images in blocks, for `tar_at_far` and `tar_interval` up to `max_far`.

    Holds 12 bytes for each genuine pair, and 16 for each of `SPARE` times max_far of the impostor pairs.
    Raises ValueError where there is no genuine or no impostor pair, and for a max_far outside of [0, 1].
    """
    if not 0 <= max_far <= 1:
        raise ValueError(f"max_far is {max_far}, allowed are 0 to 1")
    images = np.unique(identities, return_counts=True)[1]
    if images.max(initial=0) < 2:
        raise ValueError(f"no genuine pair: none of {len(images)} people has two images")
    if len(images) < 2:
        raise ValueError(f"no impostor pair: all {len(identities)} images show one person")
    impostors = int(_impostor_weight(images, np.ones_like(images)))
    return _compare(embeddings, identities, max_far, SPARE * (_allowed(max_far, impostors) + 1))


def tar_at_far(pairs: AllPairs, far: float) -> Verification:
    """TAR at the largest threshold at which the share of accepted impostor pairs is at most `far`; exact.

    That threshold is the distance of the first impostor pair which is one too many: this pair and all that tie with it,
    genuine or not, are rejected. Where far * impostor pairs < 1 no impostor pair is accepted. Where all may be (far 1),
    the threshold is infinite. "1e-4 Accuracy" of the paper's Table 14 is read as TAR at FAR 1e-4.
    Raises ValueError for a far outside of [0, pairs.max_far].
    """
    ones = np.ones_like(pairs.images)
    threshold = float(_thresholds(pairs, ones[None], far)[0])
    assert not np.isnan(threshold), "compare_all holds more pairs than a FAR allows"
    return Verification(
        tar=_tar(pairs, ones, threshold),
        threshold=threshold,
        false_accepts=int(np.searchsorted(pairs.impostor, threshold)),
        genuine_pairs=len(pairs.genuine),
        impostor_pairs=pairs.impostor_pairs,
    )


def tar_interval(pairs: AllPairs, far: float, replicates: int = 1000, seed: int = 0) -> tuple[float, float]:
    """A 95 % interval (low, high) of `tar_at_far`, by a percentile bootstrap over people.

    A replicate draws as many people as there are, with replacement. A genuine pair of a person who was drawn m times
    counts m times, an impostor pair of people drawn m and k times m * k times; two copies of a person make no pairs.
    The threshold is found anew in each, by these weights. Replicates without any pair of a kind are left out.

    Pairs are compared again, holding more of them, until every replicate's threshold is among them. Only where more
    pairs tie than are held, a replicate may take the tie for its threshold though it allows more: TAR is then too low.
    As with any bootstrap, a TAR of 0 or 1 has an interval without width. arXiv 2306.01198 compares such intervals.
    """
    people = len(pairs.images)
    weights = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=replicates)
    genuine = weights @ (pairs.images * (pairs.images - 1) // 2)
    weights = weights[(genuine > 0) & (_impostor_weight(pairs.images, weights) > 0)]
    last = -np.inf
    while np.isnan(thresholds := _thresholds(pairs, weights, far)).any() and pairs.impostor[-1] > last:
        last = pairs.impostor[-1]
        pairs = _compare(pairs.embeddings, pairs.identities, pairs.max_far, SPARE * len(pairs.impostor))
    thresholds = np.where(np.isnan(thresholds), last, thresholds)
    tars = [_tar(pairs, weight, threshold) for weight, threshold in zip(weights, thresholds, strict=True)]
    low, high = np.quantile(tars, (0.025, 0.975))
    return float(low), float(high)


def far_curve(pairs: AllPairs, points: int = 200, lowest: float = 1e-6) -> tuple[Float64s, Float64s]:
    """(far, tar) of all pairs for a picture on a logarithmic axis: at most `points` of them, far ascending to 1.

    Each is exact. Their thresholds are the edges of bins: for each of `points` FARs, evenly spaced by their logarithm
    from `lowest` on, the largest edge that does not exceed it. Where that accepts no impostor there is no point.
    """
    accepted = np.cumsum(pairs.bins)
    targets = np.geomspace(lowest, 1, points) * accepted[-1]
    places = np.unique(np.searchsorted(accepted, targets, side="right") - 1)
    places = places[places >= 0]
    places = places[accepted[places] > 0]
    edges = (places + 1 + _BIN_OF_ZERO << _DROPPED_BITS).view(np.float64)
    return accepted[places] / accepted[-1], np.searchsorted(pairs.genuine, edges) / len(pairs.genuine)


def pair_distances(embeddings: Float32s, pairs: Pairs) -> Float64s:
    """(M,) the squared distance of each pair."""
    grid, broken = _on_grid(embeddings)
    distances = np.square(grid[pairs.first] - grid[pairs.second]).sum(axis=1)
    worst = np.where(pairs.same, np.inf, 0.0)
    return np.where(broken[pairs.first] | broken[pairs.second], worst, distances)


def fold_accuracy(distances: Float64s, same: Bools, fold: Int64s) -> tuple[float, float]:
    """(mean, standard deviation) over folds of the share of pairs that are told right: LFW's 10-fold protocol.

    A fold's threshold is the one that is best on all other folds: of their pairs' distances, and infinity, the smallest
    of those that tell most pairs right. The deviation is that of a sample (ddof 1); divided by the root of the number
    of folds it is the standard error that LFW's results state (http://vis-www.cs.umass.edu/lfw/results.html).
    Raises ValueError for fewer than two folds.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(f"the pairs are in {len(folds)} fold, at least 2 are needed")
    shares = []
    for number in folds:
        threshold = _best_threshold(distances[fold != number], same[fold != number])
        shares.append(np.mean((distances < threshold)[fold == number] == same[fold == number]))
    return float(np.mean(shares)), float(np.std(shares, ddof=1))


def roc(distances: Float64s, same: Bools) -> Roc:
    """The ROC of pairs with a point for each distinct distance; ties are one step, in which genuine and impostor mix.

    The area is by trapezoids; the equal error rate is where fpr = 1 - tpr on the straight lines between the points.
    Raises ValueError where there is no genuine or no impostor pair.
    """
    if same.all() or not same.any():
        raise ValueError(f"no {'impostor' if same.any() else 'genuine'} pair among {len(same)} pairs")
    values = np.unique(distances)
    fpr, tpr = (
        np.append(0.0, np.searchsorted(np.sort(distances[kind]), values, side="right") / kind.sum())
        for kind in (~same, same)
    )
    return Roc(fpr, tpr, float(np.trapezoid(tpr, fpr)), float(np.interp(0.0, fpr + tpr - 1, fpr)))


def thinned(curve: Roc, points: int = 300) -> tuple[Float64s, Float64s]:
    """(fpr, tpr) of at most `points` of a ROC's points, spread evenly along it, with its ends; for a picture."""
    places = np.unique(np.searchsorted(curve.fpr + curve.tpr, np.linspace(0, 2, points)))
    return curve.fpr[places], curve.tpr[places]


def _on_grid(embeddings: Float32s) -> tuple[Float64s, Bools]:
    """The rounded embeddings, (N, D), zero where they are not finite; and (N,) where that is."""
    broken = ~np.isfinite(embeddings.sum(axis=1, dtype=np.float64))
    grid = np.rint(np.where(broken[:, None], 0, embeddings).astype(np.float64) * GRID) / GRID
    assert np.square(grid).sum(axis=1).max(initial=0) < 1.001, "embeddings must be of unit length"
    return grid, broken


def _blocks(grid: Float64s, broken: Bools, person: Int32s) -> Iterator[tuple[int, Float64s, Bools]]:
    """(start, squared distances, whether they show one person) of samples start.. with all from start on."""
    square, one = np.square(grid).sum(axis=1, keepdims=True), np.ones((len(grid), 1))
    left, right = np.hstack([-2 * grid, square, one]), np.hstack([grid, one, square])
    rows = max(1, BLOCK // len(grid))
    for start in range(0, len(grid), rows):
        block = slice(start, start + rows)
        distances = left[block] @ right[start:].T
        same = person[block, None] == person[start:]
        if broken.any():
            either = broken[block, None] | broken[start:]
            distances = np.where(either, np.where(same, np.inf, 0.0), distances)
        yield start, distances, same


def _compare(embeddings: Float32s, identities: Int64s, max_far: float, held: int) -> AllPairs:
    """Holds the `held` closest impostor pairs; of those that tie at the end, any."""
    person = np.unique(identities, return_inverse=True)[1].astype(np.int32)
    bins = np.zeros(_BINS, np.int64)
    genuine, owners = [], []
    closest, people, bound = np.empty(0), np.empty((2, 0), np.int32), np.inf
    for start, distances, same in _blocks(*_on_grid(embeddings), person):
        places = np.nonzero(np.triu(same, 1))
        genuine.append(distances[places])
        owners.append(person[start + places[0]])
        impostor = np.triu(~same, 1)
        number = (distances[impostor].view(np.int64) >> _DROPPED_BITS) - _BIN_OF_ZERO
        bins += np.bincount(np.maximum(number, 0), minlength=_BINS)
        places = np.nonzero(impostor & (distances < bound))
        closest = np.append(closest, distances[places])
        people = np.hstack([people, person[start + np.array(places)]])
        if len(closest) > 2 * held:
            order = np.argpartition(closest, held - 1)[:held]
            closest, people = closest[order], people[:, order]
            bound = closest.max()
    nearest, order = np.argsort(closest)[:held], np.argsort(np.concatenate(genuine))
    return AllPairs(
        embeddings=embeddings,
        identities=identities,
        max_far=max_far,
        images=np.bincount(person),
        genuine=np.concatenate(genuine)[order],
        genuine_person=np.concatenate(owners)[order],
        impostor=closest[nearest],
        impostor_people=people[:, nearest],
        impostor_pairs=int(bins.sum()),
        bins=bins,
    )


def _allowed(far: float, weight: int) -> int:
    """The largest part of an integral weight whose share is at most `far`."""
    near = round(far * weight)
    return max(part for part in (near - 1, near, near + 1) if part / weight <= far)


def _impostor_weight(images: Int64s, weights: Int64s) -> Int64s:
    """(...) the weight of all impostor pairs where people have `weights` (..., P)."""
    return ((weights @ images) ** 2 - weights**2 @ images**2) // 2


def _thresholds(pairs: AllPairs, weights: Int64s, far: float) -> Float64s:
    """(B,) for each row of weights (B, P) the largest threshold at which no more than `far` of the impostor pairs'
    weight is accepted; NaN where it is beyond the pairs that are held."""
    if not 0 <= far <= pairs.max_far:
        raise ValueError(f"far is {far}, allowed are 0 to {pairs.max_far}, for which the pairs were compared")
    beyond = np.inf if len(pairs.impostor) == pairs.impostor_pairs else np.nan
    distances = np.append(pairs.impostor, beyond)
    places = []
    for weight, total in zip(weights, _impostor_weight(pairs.images, weights), strict=True):
        first, second = weight[pairs.impostor_people]
        places.append(np.searchsorted(np.cumsum(first * second), _allowed(far, int(total)), side="right"))
    return distances[places]


def _tar(pairs: AllPairs, weight: Int64s, threshold: float) -> float:
    counted = weight[pairs.genuine_person]
    return float(counted[: np.searchsorted(pairs.genuine, threshold)].sum() / counted.sum())


def _best_threshold(distances: Float64s, same: Bools) -> float:
    thresholds = np.append(np.unique(distances), np.inf)
    accepted, false_accepts = (np.searchsorted(np.sort(distances[kind]), thresholds) for kind in (same, ~same))
    return float(thresholds[np.argmax(accepted - false_accepts)])
