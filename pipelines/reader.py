"""Shards -> batches: which samples, in which order, cut how.

Everything is a pure function of the arguments. A training stream is the samples of epoch 0, then those of epoch 1,
and so on, each epoch a permutation of the split; a sample's crop and colours depend on (seed, its position in the
stream) alone. Ranks and threads only divide the work: for any number of them, and from any point of resumption, the
stream is the same, and no sample is lost or seen twice. (The guarantee of MosaicML's streaming, which webdataset's
reader does not give; the shards' own index makes it a matter of arithmetic.)
"""

from __future__ import annotations

import json
import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.decode import decode_crop
from pipelines.shards import OFFSETS, read_index, verify
from tasks.augment import (
    CROP_UNIFORMS,
    DISTORTION_UNIFORMS,
    Bounds,
    central_crops,
    draw_crops,
    draw_distortions,
)
from tasks.base import Batch

Ints = npt.NDArray[np.int64]
Fields = dict[str, Any]
Collate = Callable[[list[Fields]], dict[str, Tensor]]

OPEN_SHARDS = 256  # each holds a file descriptor, of which a process usually has 1024
_SHARD_ORDER, _SAMPLE_ORDER, _AUGMENTATION = range(3)  # what random numbers are for: no two uses share any
_NEVER = 2**62  # a position that no run reaches


def training_batches(
    folder: Path,
    split: str,
    *,
    size: int,
    batch_size: int,
    seed: int,
    rank: int,
    world: int,
    start_sample: int,
    num_samples: int | None,
    bounds: Bounds,
    antialias: bool,
    threads: int,
    block_shards: int,
    targets: Collate,
) -> Iterator[Batch]:
    """The batches of one rank, from positions [start_sample, start_sample + num_samples) of the training stream.

    Step s is the next world * batch_size positions, of which rank r has those with position % world == r; None makes
    the stream endless. Its last step may be short: ranks then differ by at most one sample, which may be all that a
    rank has. Images are (N, size, size, 3). `threads` build batches ahead of the consumer (0: it builds them itself);
    close the iterator to end them early. Raises ValueError for shards that are absent or not what their index says,
    and for a bad sample.
    """
    assert 0 <= rank < world and batch_size > 0 and start_sample >= 0
    reader = SplitReader(folder, split)
    stream = training_stream(reader.shard_sizes, seed, block_shards)
    first = start_sample + (rank - start_sample) % world
    positions = range(first, _NEVER if num_samples is None else start_sample + num_samples, world)

    def batch(step: int) -> Batch:
        places = np.array(positions[step * batch_size : (step + 1) * batch_size], dtype=np.int64)
        samples = stream(places)
        numbers = uniforms(seed, places, CROP_UNIFORMS + DISTORTION_UNIFORMS)
        crops = draw_crops(numbers[:, :CROP_UNIFORMS], *reader.image_sizes(samples), bounds)
        images, fields = reader.decode(samples, crops, size, antialias)
        distortions = draw_distortions(numbers[:, CROP_UNIFORMS:], bounds)
        return Batch(images, torch.from_numpy(distortions), targets(fields))

    return _in_order(batch, _steps(len(positions), batch_size), threads)


def evaluation_batches(
    folder: Path,
    split: str,
    *,
    size: int,
    batch_size: int,
    central_fraction: float,
    antialias: bool,
    threads: int,
    targets: Collate,
) -> Iterator[Batch]:
    """Every sample of the split once, in the order of the shards; the last batch may be short.

    Each image is the central `central_fraction` of each side, resized without keeping its aspect (slim's evaluation).
    Errors and threads are as in `training_batches`.
    """
    reader = SplitReader(folder, split)
    total = sum(reader.shard_sizes)

    def batch(step: int) -> Batch:
        samples = np.arange(step * batch_size, min((step + 1) * batch_size, total))
        crops = central_crops(*reader.image_sizes(samples), central_fraction)
        images, fields = reader.decode(samples, crops, size, antialias)
        return Batch(images, torch.empty(0, 4), targets(fields))

    return _in_order(batch, _steps(total, batch_size), threads)


def training_stream(shard_sizes: Sequence[int], seed: int, block_shards: int) -> Callable[[Ints], Ints]:
    """The function from positions in the endless training stream to samples of the split."""
    total = sum(shard_sizes)

    @lru_cache(maxsize=2)  # batches in work span no more epochs, unless these are tiny
    def order(epoch: int) -> Ints:
        return epoch_order(shard_sizes, seed, epoch, block_shards)

    def samples(positions: Ints) -> Ints:
        epochs, places = np.divmod(positions, total)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = order(epoch)[places[here]]
        return found

    return samples


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, block_shards: int) -> Ints:
    """A permutation of a split's samples, (sum of shard_sizes,) int64: shards permuted, then samples within blocks.

    A block is `block_shards` successive shards of the permuted ones: larger ones mix better, smaller ones have fewer
    shards in use at a time. The order depends on the arguments alone, not on the version of a library's generator.
    """
    starts = np.cumsum([0, *shard_sizes])
    shards = np.argsort(_hash(seed, _SHARD_ORDER, epoch, np.arange(len(shard_sizes))))
    keys = _hash(seed, _SAMPLE_ORDER, epoch, np.arange(starts[-1]))
    blocks = []
    for first in range(0, len(shards), block_shards):
        block = shards[first : first + block_shards]
        samples = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in block])
        blocks.append(samples[np.argsort(keys[samples])])
    return np.concatenate(blocks)


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


class SplitReader:
    """Random access to the samples of one split, by their place in it. Threads may share a reader.

    A shard's size and sha256 are compared with the index when a reader first touches it, before any byte is used.
    """

    def __init__(self, folder: Path, split: str) -> None:
        splits = read_index(folder).splits
        if split not in splits:
            raise ValueError(f"{folder} has no split {split!r}; there are: {', '.join(sorted(splits))}")
        self._folder = folder
        self._shards = splits[split].shards
        self.shard_sizes = tuple(shard.samples for shard in self._shards)
        self._starts = np.cumsum([0, *self.shard_sizes])
        self._offsets: list[Ints | None] = [None] * len(self._shards)
        self._opening = [Lock() for _ in self._shards]
        self._paths = [folder / shard.name for shard in self._shards]
        self._tar = lru_cache(OPEN_SHARDS)(_mapped)

    def image_sizes(self, samples: Ints) -> tuple[Ints, Ints]:
        """Heights and widths, each (N,), in pixels."""
        _, rows = self._locate(samples)
        return rows[:, OFFSETS.index("height")], rows[:, OFFSETS.index("width")]

    def read(self, samples: Ints) -> Iterator[tuple[memoryview, Fields]]:
        """Each sample's JPEG, not copied, and its JSON fields."""
        shards, rows = self._locate(samples)
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            tar = self._tar(self._paths[shard])
            image, image_bytes, fields, fields_bytes, *_ = row
            yield tar[image : image + image_bytes], json.loads(str(tar[fields : fields + fields_bytes], "utf-8"))

    def decode(self, samples: Ints, crops: Ints, size: int, antialias: bool) -> tuple[Tensor, list[Fields]]:
        """Crops (N, size, size, 3) uint8 RGB, and fields. Raises ValueError with shard and key for a bad image."""
        images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
        fields = []
        stored = zip(samples.tolist(), self.read(samples), crops.tolist(), images.numpy(), strict=True)
        for sample, (jpeg, sample_fields), crop, out in stored:
            try:
                decode_crop(jpeg, crop, antialias, out)
            except ValueError as error:
                path = self._paths[np.searchsorted(self._starts, sample, side="right") - 1]
                raise ValueError(f"{path}, sample {sample:08d}: {error}") from error
            fields.append(sample_fields)
        return images, fields

    def _locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """The shard of each sample, (N,), and its row of the shard's offsets, (N, 6)."""
        shards = np.searchsorted(self._starts, samples, side="right") - 1
        rows = np.empty((len(samples), len(OFFSETS)), dtype=np.int64)
        # From the first sample's shard on: threads that come to a new block begin, and verify, each at another shard.
        touched = np.unique(shards)
        for shard in np.roll(touched, -np.searchsorted(touched, shards[:1])).tolist():
            here = shards == shard
            rows[here] = self._checked_offsets(shard)[samples[here] - self._starts[shard]]
        return shards, rows

    def _checked_offsets(self, number: int) -> Ints:
        with self._opening[number]:
            offsets = self._offsets[number]
            if offsets is None:
                shard = self._shards[number]
                verify(self._folder, shard)
                path = self._folder / shard.offsets_name
                offsets = np.load(path, allow_pickle=False)
                if offsets.shape != (shard.samples, len(OFFSETS)):
                    raise ValueError(f"{path} has shape {offsets.shape}, the index says {shard.samples} samples")
                self._offsets[number] = offsets
            return offsets


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _steps(samples: int, batch_size: int) -> int:
    return -(-samples // batch_size)


def _in_order(make: Callable[[int], Batch], count: int, threads: int) -> Iterator[Batch]:
    """make(0), ..., make(count - 1), by `threads` that work ahead of the consumer, each on a batch of its own."""
    if threads == 0:
        yield from map(make, range(count))
        return
    pending: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    try:
        for step in range(count):
            pending.append(pool.submit(make, step))
            if len(pending) > threads + 1:  # one more than are in work, so that no thread waits for the consumer
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
