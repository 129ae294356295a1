"""In which order samples come, and the random numbers of each: pure functions of a seed and a place in the stream.

Positions count the samples of the whole training stream, over all epochs and ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from threading import Lock

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# What random numbers are for: no two uses share any.
_SHARD_ORDER, _SAMPLE_ORDER, _AUGMENTATION, _PERSON_ORDER, _PERSON_IMAGES = range(5)


def training_stream(shard_sizes: Sequence[int], seed: int, block_shards: int, parts: int = 1) -> Callable[[Ints], Ints]:
    """The function from positions in the endless training stream to samples of the split.

    With several `parts` each epoch's shards are dealt to so many ranks anew, and what a rank gets, the positions with
    one position % parts, is of its own shards. Every sample still comes once an epoch: the permuted shards are laid end
    to end and cut into as many samples as each rank has positions in the epoch, which differ by one at most, whatever
    the shards' sizes. So nothing is left out or repeated to make ranks equal, and of shards of one size a rank reads at
    most ceil(shards / parts) + 1: two ranks share one that a cut goes through. Where `parts` divides them, none is cut.
    """
    total = sum(shard_sizes)

    def shares(epoch: int) -> Ints:
        """How many positions of an epoch each rank has."""
        first = (np.arange(parts) - epoch * total) % parts
        return (total - first + parts - 1) // parts

    computing = Lock()  # at an epoch's start all threads want the same order

    @lru_cache(maxsize=2)  # batches in work span no more epochs, unless these are tiny
    def cached(epoch: int) -> Ints:
        return epoch_order(shard_sizes, seed, epoch, block_shards, shares(epoch))

    def order(epoch: int) -> Ints:
        with computing:
            return cached(epoch)

    def samples(positions: Ints) -> Ints:
        epochs, places = np.divmod(positions, total)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            owed = shares(epoch)
            found[here] = order(epoch)[(np.cumsum(owed) - owed)[positions[here] % parts] + places[here] // parts]
        return found

    return samples


def epoch_order(
    shard_sizes: Sequence[int], seed: int, epoch: int, block_shards: int, shares: Ints | None = None
) -> Ints:
    """A permutation of a split's samples, (sum of shard_sizes,) int64: shards permuted, then samples within blocks.

    A block is `block_shards` successive shards of the permuted ones: larger ones mix better, smaller ones have fewer
    shards in use at a time. The order depends on the arguments alone, not on the version of a library's generator.
    shares: (ranks,), numbers of samples that add up to all; blocks are made within each of these lengths. None: of all.
    """
    starts = np.cumsum([0, *shard_sizes])
    shards = np.argsort(_hash(seed, _SHARD_ORDER, epoch, np.arange(len(shard_sizes))))
    keys = _hash(seed, _SAMPLE_ORDER, epoch, np.arange(starts[-1]))
    line = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in shards])
    ends = np.cumsum(np.array(shard_sizes)[shards])
    order = []
    for first, end in pairwise([0, *np.cumsum(starts[-1:] if shares is None else shares).tolist()]):
        cuts = ends[(ends > first) & (ends < end)][block_shards - 1 :: block_shards]
        order += [samples[np.argsort(keys[samples])] for samples in np.split(line[first:end], cuts - first)]
    return np.concatenate(order)


def balanced_stream(
    identities: npt.NDArray[np.str_], seed: int, world: int, images_per_identity: int
) -> Callable[[Ints], Ints]:
    """The function from positions to samples where runs of `images_per_identity` samples show one person.

    identities: (samples,), whom each shows. What a rank gets, the positions with one position % world, is dealt person
    by person: all people in an order drawn anew each round, of each some images drawn anew, all different where there
    are enough. People with one image are left out: they make no pair. Raises ValueError if nobody is left.
    """
    names, numbers, counts = np.unique(identities, return_inverse=True, return_counts=True)
    by_person = np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])
    people = [images for images in by_person if len(images) > 1]
    if not people:
        raise ValueError(f"none of the {len(names)} people has two images: there are no batches by identity")

    @lru_cache(maxsize=2)
    def order(turn: int) -> Ints:
        return np.argsort(_hash(seed, _PERSON_ORDER, turn, np.arange(len(people))))

    def visit(number: int) -> Ints:
        turn, place = divmod(number, len(people))
        images = people[order(turn)[place]]
        return np.resize(images[np.argsort(_hash(seed, _PERSON_IMAGES, turn, images))], images_per_identity)

    def samples(positions: Ints) -> Ints:
        deals, ranks = np.divmod(positions, world)
        rounds, images = np.divmod(deals, images_per_identity)
        visits, where = np.unique(rounds * world + ranks, return_inverse=True)
        return np.stack([visit(number) for number in visits.tolist()])[where, images]

    return samples


def uniforms(seed: int, positions: Ints, count: int) -> npt.NDArray[np.float64]:
    """(N, count) numbers in [0, 1), each a function of (seed, position, column)."""
    bits = _hash(seed, _AUGMENTATION, positions[:, None], np.arange(count))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _hash(*words: int | Ints) -> npt.NDArray[np.uint64]:
    """64 well mixed bits of integers, by the steps of SplitMix64 (https://prng.di.unimi.it/splitmix64.c).

    It maps the last word one to one: keys of different samples never tie.
    """
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = state + np.uint64(0x9E3779B97F4A7C15) + np.atleast_1d(word).astype(np.uint64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state
