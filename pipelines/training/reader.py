"""Shards -> batches: which samples, in which order, cut how.

Everything is a pure function of the arguments. A training stream is the samples of epoch 0, then those of epoch 1,
and so on, each epoch a permutation of the split (or it is dealt to ranks by identity: see `balanced_stream`); a
sample's crop and colours depend on (seed, its position in the stream) alone. Ranks and threads only divide the work:
for any number of them (of threads alone, where shards are dealt to ranks), and from any point of resumption, the stream
is the same, and no sample is lost or seen twice. (The guarantee of MosaicML's streaming, which webdataset's reader does
not give; the shards' own index makes it a matter of arithmetic.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.shards import load_array
from pipelines.training.gpu_decode import decode_on, moved
from pipelines.training.order import balanced_stream, training_stream, uniforms
from pipelines.training.split_reader import Fields, Ints
from pipelines.training.split_reader import SplitReader as SplitReader
from tasks.augment import (
    CROP_UNIFORMS,
    DISTORTION_UNIFORMS,
    FLIP,
    Bounds,
    central_crops,
    draw_crops,
    draw_distortions,
)
from tasks.base import Batch, View
from tasks.box_crops import OBJECT_CROP_UNIFORMS, draw_object_crops

Item = TypeVar("Item")
Result = TypeVar("Result")
Collate = Callable[[list[Fields]], dict[str, Tensor]]

IN_USE = 3  # blocks of shards: the last one, where batches are late, this one and the next, which is fetched ahead
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
    deal: Literal["samples", "shards"] = "samples",
    images_per_identity: int | None = None,
    teaching: Teaching | None = None,
    digest: str | None = None,
    device: torch.device | None = None,
    decode: Literal["cpu", "gpu"] = "cpu",
) -> Iterator[Batch]:
    """The batches of one rank, from positions [start_sample, start_sample + num_samples) of the training stream.

    Step s is the next world * batch_size positions, of which rank r has those with position % world == r; None makes
    the stream endless. Its last step may be short: ranks then differ by at most one sample, which may be all that a
    rank has. With `images_per_identity` the batches have so many images of each person in them, and batch_size is a
    multiple of it. With `deal` "shards" a rank reads shards of its own, others in each epoch (see `training_stream`).
    Images are (N, size, size, 3), on `device` where one is given; with `decode` "gpu" they are decoded there too (see
    `gpu_decode`). `teaching` says what the batches bring for or from a teacher.
    `threads` build batches ahead of the consumer (0: it builds them itself); close the iterator to end them early.
    `digest` is that of the index of the shards that are meant, for a machine that streams them (see `shard_cache`).
    Raises ValueError for shards that are absent or not what their index says, and for a bad sample.
    """
    assert 0 <= rank < world and batch_size > 0 and start_sample >= 0
    reader = SplitReader(folder, split, digest)
    reader.require_room(IN_USE * block_shards if images_per_identity is None else len(reader.shard_sizes))
    parts = world if deal == "shards" else 1
    block = parts * block_shards * max(reader.shard_sizes)  # in positions
    if images_per_identity is None:
        stream = training_stream(reader.shard_sizes, seed, block_shards, parts)
    else:
        stream = balanced_stream(np.array(reader.column("identity")), seed, world, images_per_identity)
    crop_uniforms = CROP_UNIFORMS if bounds.min_object_shares is None else OBJECT_CROP_UNIFORMS
    first = start_sample + (rank - start_sample) % world
    positions = range(first, _NEVER if num_samples is None else start_sample + num_samples, world)

    def batch(step: int) -> Batch:
        places = np.array(positions[step * batch_size : (step + 1) * batch_size], dtype=np.int64)
        samples = stream(places)
        numbers = uniforms(seed, places, crop_uniforms + DISTORTION_UNIFORMS)
        crops = _crops(reader, samples, numbers[:, :crop_uniforms], bounds)
        reader.fetch_ahead(lambda: stream(places[places < positions.stop - block] + block))
        if device is not None and decode == "gpu":
            images, fields = decode_on(device, reader, samples, crops, size, antialias)
        else:
            images, fields = reader.decode(samples, crops, size, antialias)
            images = images if device is None else moved(images, device)
        distortions = draw_distortions(numbers[:, crop_uniforms:], bounds)
        found = targets(_with_views(fields, crops, distortions[:, FLIP] > 0))
        if teaching is not None:
            found |= teaching.targets(reader, samples)
        return Batch(images, torch.from_numpy(distortions), found)

    return _closing(reader, _in_order(batch, _steps(len(positions), batch_size), threads))


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
    start_sample: int = 0,
) -> Iterator[Batch]:
    """Every sample of the split once, in the order of the shards, from one of them on; the last batch may be short.

    Each image is the central `central_fraction` of each side, resized without keeping its aspect (slim's evaluation).
    Errors and threads are as in `training_batches`.
    """
    reader = SplitReader(folder, split)
    reader.require_room(IN_USE)
    total, block = sum(reader.shard_sizes), max(reader.shard_sizes)

    def batch(step: int) -> Batch:
        first = start_sample + step * batch_size
        samples = np.arange(first, min(first + batch_size, total))
        crops = central_crops(*reader.image_sizes(samples), central_fraction)
        reader.fetch_ahead(lambda: samples[samples < total - block] + block)
        images, fields = reader.decode(samples, crops, size, antialias)
        return Batch(images, torch.empty(0, 4), targets(_with_views(fields, crops, np.zeros(len(crops), np.bool_))))

    return _closing(reader, _in_order(batch, _steps(total - start_sample, batch_size), threads))


def _crops(reader: SplitReader, samples: Ints, numbers: npt.NDArray[np.float64], bounds: Bounds) -> Ints:
    """What is cut out of training images, (N, 4)."""
    heights, widths = reader.image_sizes(samples)
    if bounds.min_object_shares is None:
        return draw_crops(numbers, heights, widths, bounds)
    boxes = [
        np.array([thing["box"] for thing in fields["objects"] if not thing["crowd"]], np.float64).reshape(-1, 4)
        for _, fields in reader.read(samples)
    ]
    return draw_object_crops(numbers, heights, widths, boxes, bounds, bounds.min_object_shares)


def _with_views(fields: list[Fields], crops: Ints, flipped: npt.NDArray[np.bool_]) -> list[Fields]:
    """The fields, and under "view" how each image is seen."""
    for sample, (top, left, height, width), flip in zip(fields, crops.tolist(), flipped.tolist(), strict=True):
        sample["view"] = View((top, left, height, width), flip)
    return fields


@dataclass(frozen=True)
class Teaching:
    """What the batches of a distilled run bring beside their images.

    Either `stored`, the file of a teacher's predictions, (samples of the split, outputs) float32, whose rows they bring
    as "taught"; or, without it, the images that the teacher is to see, as it would in evaluation, as "teacher_images".
    """

    stored: Path | None
    size: int
    central_fraction: float
    antialias: bool

    def targets(self, reader: SplitReader, samples: Ints) -> dict[str, Tensor]:
        """Those of some samples."""
        if self.stored is None:
            images, _ = reader.decode_central(samples, self.size, self.central_fraction, self.antialias)
            return {"teacher_images": images}
        return {"taught": torch.from_numpy(_rows(self.stored)[samples])}


@lru_cache(maxsize=1)
def _rows(path: Path) -> npt.NDArray[np.float32]:
    try:
        rows: npt.NDArray[np.float32] = load_array(path, mmap_mode="r")
    except ValueError as error:  # as of a pickle
        raise ValueError(f"{path} holds no predictions: {error}") from None
    return rows


def _closing(reader: SplitReader, batches: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from batches
    finally:
        reader.close()


def _steps(samples: int, batch_size: int) -> int:
    return -(-samples // batch_size)


def _in_order(make: Callable[[int], Batch], count: int, threads: int) -> Iterator[Batch]:
    """make(0), ..., make(count - 1), by `threads` that work ahead of the consumer, each on a batch of its own."""
    if threads == 0:
        yield from map(make, range(count))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    try:
        # One more than are in work, so that no thread waits for the consumer.
        yield from ahead(pool, make, range(count), threads + 1)
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[Result]:
    """The results of all items, in order; up to `limit` of them are under way or wait to be taken."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > limit:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
