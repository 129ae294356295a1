"""Verification against brute force over all pairs in integers, scikit-learn, and a bootstrap that copies people."""

import itertools
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import squareform
from sklearn.metrics import roc_auc_score, roc_curve

from tasks import verification
from tasks.base import Pairs
from tasks.verification import compare_all, far_curve, fold_accuracy, pair_distances, roc, tar_at_far, tar_interval

ROOT = Path(__file__).parents[3]


def embedded(people, images, noise, seed=0, size=8):
    """(embeddings, identities) of people with about so many images each, shuffled."""
    generator = np.random.default_rng(seed)
    identities = generator.integers(people, size=people * images) * 1_000_003 - 7
    centres = {identity: generator.normal(size=size) for identity in np.unique(identities)}
    vectors = np.array([centres[identity] + noise * generator.normal(size=size) for identity in identities])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), identities


def by_hand(embeddings, identities):
    """(distances, same) of all pairs: in integers, one pair at a time."""
    whole = [None if not np.isfinite(row).all() else [round(float(x) * 2**24) for x in row] for row in embeddings]
    distances, same = [], []
    for i, j in itertools.combinations(range(len(identities)), 2):
        same.append(identities[i] == identities[j])
        if whole[i] is None or whole[j] is None:
            distances.append(np.inf if same[-1] else 0.0)
        else:
            distances.append(sum((a - b) ** 2 for a, b in zip(whole[i], whole[j], strict=True)) / 2**48)
    return np.array(distances), np.array(same)


def tar_by_hand(distances, same, far):
    """(TAR, threshold, false accepts) at the largest of all thresholds that keeps to the FAR."""
    impostors = distances[~same]
    largest = max(t for t in {*impostors.tolist(), np.inf} if (impostors < t).sum() / len(impostors) <= far)
    return np.mean(distances[same] < largest), largest, (impostors < largest).sum()


def interval_by_hand(embeddings, identities, far, replicates, seed):
    """Puts each replicate's images together, a person who is drawn twice as two people whom nobody compares."""
    people = np.unique(identities)
    draws = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1 / len(people)), replicates)
    distances = squareform(by_hand(embeddings, identities)[0], checks=False)
    tars = []
    for draw in draws:
        copies = [(p, c) for p, times in enumerate(draw) for c in range(times)]
        genuine, impostor = [], []
        for (p, _), (q, _) in itertools.combinations(copies, 2):
            if p != q:
                impostor += distances[np.ix_(identities == people[p], identities == people[q])].ravel().tolist()
        for p, _ in copies:
            own = distances[np.ix_(identities == people[p], identities == people[p])]
            genuine += squareform(own, checks=False).tolist()
        if genuine and impostor:
            same = np.arange(len(genuine) + len(impostor)) < len(genuine)
            tars.append(tar_by_hand(np.array(genuine + impostor), same, far)[0])
    return tuple(np.quantile(tars, (0.025, 0.975)))


# Few directions, so that embeddings repeat and distances tie; a zero vector; one that is no number.
DIRECTIONS = np.array(
    [[1, 0], [0, 1], [-1, 0], [0.6, 0.8], [0.8, 0.6], [0.28, 0.96], [0, 0], [np.nan, 1]], dtype=np.float32
)
SAMPLE = st.tuples(st.integers(0, 7), st.integers(0, 4))  # a direction, a person


def chosen(samples):
    directions, identities = (np.array(column) for column in zip(*samples, strict=True))
    return DIRECTIONS[directions], identities


@settings(deadline=None, max_examples=200)
@given(
    samples=st.lists(SAMPLE, min_size=3, max_size=24),
    far=st.sampled_from([0.0, 1e-4, 0.01, 0.05, 0.1, 0.29, 0.3, 0.5, 1.0]),
    block=st.integers(1, 200),
    spare=st.sampled_from([1, 4]),
)
def test_tar_equals_brute_force_with_ties_copies_and_nan(samples, far, block, spare):
    embeddings, identities = chosen(samples)
    distances, same = by_hand(embeddings, identities)
    with patch.multiple(verification, BLOCK=block, SPARE=spare):
        if same.all() or not same.any():
            with pytest.raises(ValueError, match="no impostor pair" if same.any() else "no genuine pair"):
                compare_all(embeddings, identities, far)
            return
        found = tar_at_far(compare_all(embeddings, identities, far), far)
    assert found == (*tar_by_hand(distances, same, far), same.sum(), (~same).sum())


@pytest.mark.parametrize("far", [1e-3, 0.01, 0.2])
def test_tar_equals_scikit_learns(far):
    embeddings, identities = embedded(40, 5, noise=0.8)
    distances, same = by_hand(embeddings, identities)
    fpr, tpr, _ = roc_curve(same, -distances, drop_intermediate=False)
    assert tar_at_far(compare_all(embeddings, identities, 0.2), far).tar == tpr[fpr <= far].max()


@pytest.mark.parametrize("block", [1, 1000, 7001])
def test_order_and_blocks_change_no_bit(block):
    embeddings, identities = embedded(30, 5, noise=0.8, size=64)
    pairs = compare_all(embeddings, identities)
    order = np.random.default_rng(1).permutation(len(identities))
    with patch.object(verification, "BLOCK", block):
        again = compare_all(embeddings[order], identities[order])
    for name in ("images", "genuine", "impostor", "bins"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pairs, name))


def test_as_many_impostors_are_accepted_as_the_far_allows_and_no_more():
    pairs = compare_all(*embedded(11, 4, noise=0.8), 1.0)
    for count in range(1, pairs.impostor_pairs + 1):
        assert tar_at_far(pairs, count / pairs.impostor_pairs).false_accepts == count
        assert tar_at_far(pairs, (count - 1e-9) / pairs.impostor_pairs).false_accepts == count - 1


@pytest.mark.parametrize("value", [0.0, 0.25, np.nan])
def test_a_net_that_says_nothing_has_a_tar_of_zero(value):
    embeddings, identities = np.full((300, 16), value, np.float32), np.arange(300) // 3
    with patch.multiple(verification, BLOCK=1000, SPARE=1):
        pairs = compare_all(embeddings, identities)
        assert tar_at_far(pairs, 1e-3)[:3] == (0.0, 0.0, 0)
        assert tar_interval(pairs, 1e-3, replicates=50) == (0.0, 0.0)
    assert [curve.tolist() for curve in far_curve(pairs)] == [[1.0], [0.0 if np.isnan(value) else 1.0]]


@pytest.mark.parametrize("far", [-0.1, 2e-3, float("nan")])
def test_a_far_beyond_what_was_compared_is_refused(far):
    with pytest.raises(ValueError, match=f"far is {far}, allowed are 0 to 0.001"):
        tar_at_far(compare_all(*embedded(5, 4, noise=0.5), 1e-3), far)
    if not far >= 0:
        with pytest.raises(ValueError, match="max_far is"):
            compare_all(*embedded(5, 4, noise=0.5), far)


def has_both_kinds(samples):
    """Whether samples (direction, person) make a genuine and an impostor pair."""
    return 1 < len({person for _, person in samples}) < len(samples)


@settings(deadline=None, max_examples=25)
@given(
    samples=st.lists(SAMPLE, min_size=6, max_size=14).filter(has_both_kinds),
    far=st.sampled_from([0.0, 0.05, 0.3]),
    block=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_interval_equals_that_of_copied_people(samples, far, block, seed):
    embeddings, identities = chosen(samples)
    expected = interval_by_hand(embeddings, identities, far, 20, seed)
    with patch.object(verification, "BLOCK", block):
        pairs = compare_all(embeddings, identities, 1.0)
    assert tar_interval(pairs, far, replicates=20, seed=seed) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(samples=st.lists(SAMPLE, min_size=6, max_size=24).filter(has_both_kinds))
def test_points_of_the_curve_are_those_of_thresholds(samples):
    distances, same = by_hand(*chosen(samples))
    thresholds = np.append(np.unique(distances), np.inf)
    points = [(np.mean(distances[~same] < t), np.mean(distances[same] < t)) for t in thresholds]
    far, tar = far_curve(compare_all(*chosen(samples)), lowest=1e-4)
    assert {*zip(far, tar, strict=True)} <= {*points}
    assert (far[-1], tar[-1]) == points[-1]


def test_interval_compares_again_where_the_closest_pairs_are_of_few_people():
    embeddings, identities = embedded(12, 5, noise=0.6)
    lookalikes = np.isin(identities, np.unique(identities)[:2])
    embeddings[lookalikes] = embedded(1, lookalikes.sum(), noise=0.02)[0]
    far = 0.005
    expected = interval_by_hand(embeddings, identities, far, 40, 3)
    with (
        patch.multiple(verification, SPARE=2),
        patch.object(verification, "_compare", wraps=verification._compare) as calls,
    ):
        pairs = compare_all(embeddings, identities, far)
        assert tar_interval(pairs, far, replicates=40, seed=3) == pytest.approx(expected, abs=1e-12)
    assert calls.call_count > 2


def test_interval_holds_the_tar_and_is_the_same_each_time():
    pairs = compare_all(*embedded(100, 4, noise=0.5))
    low, high = tar_interval(pairs, 1e-3, replicates=200)
    assert 0 < low < tar_at_far(pairs, 1e-3).tar < high < 1
    assert tar_interval(pairs, 1e-3, replicates=200) == (low, high)
    assert tar_interval(pairs, 1e-3, replicates=200, seed=1) != (low, high)


@pytest.mark.slow
def test_interval_covers_the_tar_of_a_population():
    """Of 60 samples of 60 people each, all but a few must cover what 2,000 people show; 57 are expected."""
    truth = tar_at_far(compare_all(*embedded(2000, 3, noise=0.35, size=4), 0.02), 0.02).tar
    covered = 0
    for seed in range(1, 61):
        low, high = tar_interval(compare_all(*embedded(60, 3, noise=0.35, seed=seed, size=4), 0.02), 0.02, 200)
        covered += low <= truth <= high
    assert covered >= 51


def test_points_of_the_curve_are_as_near_as_bins_allow():
    embeddings, identities = embedded(60, 4, noise=0.6)
    pairs = compare_all(embeddings, identities)
    far, _ = far_curve(pairs, points=50, lowest=1e-4)
    targets = np.geomspace(1e-4, 1, 50)
    reached = [far[far <= target * (1 + 1e-12)].max(initial=0) for target in targets]
    np.testing.assert_allclose(reached, targets, rtol=0.02, atol=1 / pairs.impostor_pairs)


def random_pairs(count, folds, levels, seed=0):
    """(distances, same, fold): as many genuine as impostor pairs in each fold; distances of few levels tie."""
    generator = np.random.default_rng(seed)
    same, fold = np.arange(count) % 2 == 0, np.arange(count) // 2 % folds
    return np.floor(levels * (generator.random(count) + 0.6 * ~same)) / levels, same, fold


@pytest.mark.parametrize("levels", [2**40, 12])
def test_roc_equals_scikit_learns(levels):
    distances, same, _ = random_pairs(600, 10, levels)
    fpr, tpr, _ = roc_curve(same, -distances, drop_intermediate=False)
    curve = roc(distances, same)
    np.testing.assert_allclose(curve.fpr, fpr, atol=1e-15)
    np.testing.assert_allclose(curve.tpr, tpr, atol=1e-15)
    assert curve.auc == pytest.approx(roc_auc_score(same, -distances), abs=1e-12)
    shown = set(zip(*verification.thinned(curve, points=40), strict=True))
    assert {(0.0, 0.0), (1.0, 1.0)} <= shown <= set(zip(curve.fpr, curve.tpr, strict=True))
    assert 10 < len(shown) <= 40


@pytest.mark.parametrize(
    ("distances", "same", "eer"),
    [
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 0], 0.0),
        ([0.1, 0.2, 0.3, 0.4], [1, 0, 1, 0], 0.5),
        ([0.1, 0.2, 0.2, 0.3], [1, 1, 0, 0], 0.25),  # halfway along the step of the tie
        ([0.1, 0.1, 0.1, 0.1], [1, 1, 0, 0], 0.5),
        ([0.0, 0.0, np.inf, np.inf], [0, 0, 1, 1], 1.0),
    ],
)
def test_equal_error_rate_by_arithmetic(distances, same, eer):
    assert roc(np.array(distances), np.array(same, dtype=bool)).eer == pytest.approx(eer, abs=1e-12)


@pytest.mark.parametrize(("same", "missing"), [(True, "impostor"), (False, "genuine")])
def test_roc_names_the_kind_of_pair_that_is_missing(same, missing):
    with pytest.raises(ValueError, match=f"no {missing} pair among 3"):
        roc(np.zeros(3), np.full(3, same))


@pytest.mark.parametrize("levels", [2**40, 12, 2])
def test_fold_accuracy_equals_brute_force(levels):
    distances, same, fold = random_pairs(240, 6, levels)
    accuracies = []
    for number in range(6):
        others = [(d, s) for d, s, f in zip(distances, same, fold, strict=True) if f != number]
        best, right = None, -1
        for threshold in [*sorted({d for d, _ in others}), np.inf]:
            count = sum((d < threshold) == s for d, s in others)
            if count > right:
                best, right = threshold, count
        own = [(d < best) == s for d, s, f in zip(distances, same, fold, strict=True) if f == number]
        accuracies.append(sum(own) / len(own))
    mean = sum(accuracies) / 6
    deviation = (sum((a - mean) ** 2 for a in accuracies) / 5) ** 0.5
    assert fold_accuracy(distances, same, fold) == pytest.approx((mean, deviation), abs=1e-12)


def test_one_fold_has_no_others():
    with pytest.raises(ValueError, match="1 fold, at least 2"):
        fold_accuracy(np.zeros(4), np.arange(4) < 2, np.zeros(4, np.int64))


def test_pair_distances_are_those_of_all_pairs():
    embeddings, identities = embedded(4, 3, noise=0.5)
    embeddings[5] = np.nan
    first, second = np.array(list(itertools.combinations(range(len(identities)), 2))).T
    distances, same = by_hand(embeddings, identities)
    pairs = Pairs(first, second, same, np.zeros(len(first), np.int64))
    np.testing.assert_array_equal(pair_distances(embeddings, pairs), distances)


MEASURE = """
import time
import numpy as np
from tasks.verification import compare_all, far_curve, tar_at_far, tar_interval
from tests.memory import peak_kib
# As in LFW, 518 images of one person, one of most, and 259,241 genuine pairs.
popularity = 1 / np.arange(1, 5750) ** 0.9
sizes = 1 + np.random.default_rng(3).multinomial(13233 - 5749, popularity / popularity.sum())
identities = np.random.default_rng(0).permutation(np.repeat(np.arange(5749), sizes))
vectors = np.random.default_rng(1).normal(size=(5749, 128))[identities]
vectors += 1.3 * np.random.default_rng(2).normal(size=(13233, 128))
embeddings = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
del vectors
start = time.perf_counter()
pairs = compare_all(embeddings, identities)
found, _ = tar_at_far(pairs, 1e-4), far_curve(pairs)
low, high = tar_interval(pairs, 1e-4)
seconds = time.perf_counter() - start
assert found.genuine_pairs + found.impostor_pairs == 87_549_528, found
assert found.false_accepts <= 1e-4 * found.impostor_pairs < found.false_accepts + 2, found
assert low < found.tar < high, (low, found, high)
print(peak_kib(), seconds)
"""


@pytest.mark.slow
def test_all_pairs_of_lfw_fit_into_two_gigabytes_and_a_minute():
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kibibytes, seconds = map(float, done.stdout.split())
    assert kibibytes < 2_000_000
    assert seconds < 60
