"""Random access to the samples of a split: from the folder that its shards lie in, or streamed through a cache."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.shards import OFFSETS, read_offsets, read_split
from pipelines.training.decode import decode_crop
from pipelines.training.shard_cache import open_cache
from tasks.augment import central_crops

Ints = npt.NDArray[np.int64]
Fields = dict[str, Any]
State = tuple[int, int, int]  # a file's inode, bytes, and time of its last change in ns

OPEN_SHARDS = 256  # each holds a file descriptor, of which a process usually has 1024


class SplitReader:
    """Random access to the samples of one split, by their place in it. Threads may share a reader.

    A shard's size and sha256 are compared with the index when a reader first touches it, before any byte is used, and
    again where the file has become another: that is looked at before and after each block of samples, so that what is
    written over in place is not taken for data. (One that is cut short while bytes of it are being read kills the
    process, by SIGBUS: it is mapped into memory.) Where shards are streamed, what is touched is fetched, and a cache's
    files are never written over; `digest` is as in `open_cache`.
    """

    def __init__(self, folder: Path, split: str, digest: str | None = None) -> None:
        self._cache = open_cache(folder, digest)
        self._folder = folder if self._cache is None else self._cache.folder
        self._shards = read_split(self._folder, split).shards
        self.shard_sizes = tuple(shard.samples for shard in self._shards)
        self._starts = np.cumsum([0, *self.shard_sizes])
        self._offsets: list[Ints | None] = [None] * len(self._shards)
        self._paths = [str(self._folder / shard.name) for shard in self._shards]
        self._states: list[State | None] = [None] * len(self._shards)
        self._opening = [Lock() for _ in self._shards]
        self._tar = lru_cache(OPEN_SHARDS)(_mapped)

    def require_room(self, at_once: int) -> None:
        """Raise ValueError where shards are streamed and the cache may not hold any `at_once` of them."""
        if self._cache is not None:
            self._cache.require_room(self._shards, at_once)

    def fetch_ahead(self, samples: Callable[[], Ints]) -> None:
        """Begin to fetch the shards of some samples, where shards are streamed."""
        if self._cache is not None:
            self._cache.fetch_ahead([self._shards[number] for number in np.unique(self._numbers(samples())).tolist()])

    def close(self) -> None:
        """Fetch no more ahead."""
        if self._cache is not None:
            self._cache.close()

    def image_sizes(self, samples: Ints) -> tuple[Ints, Ints]:
        """Heights and widths, each (N,), in pixels."""
        _, rows = self._locate(samples)
        return rows[:, OFFSETS.index("height")], rows[:, OFFSETS.index("width")]

    def read(self, samples: Ints) -> Iterator[tuple[memoryview, Fields]]:
        """Each sample's JPEG, not copied where its shard lies here, and its JSON fields. ValueError for others.

        All that came is right once the end is reached without an error.
        """
        shards, rows = self._locate(samples)
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            image, image_bytes, fields, fields_bytes, *_ = row
            text = self._part(shard, fields, fields_bytes)
            try:
                found = json.loads(str(text, "utf-8"))
            except ValueError as error:
                raise ValueError(f"{self._paths[shard]}, byte {fields}: the fields are not JSON: {error}") from None
            yield self._part(shard, image, image_bytes), found
        for shard in set(shards.tolist()):
            self._checked_offsets(shard)

    def decode(self, samples: Ints, crops: Ints, size: int, antialias: bool) -> tuple[Tensor, list[Fields]]:
        """Crops (N, size, size, 3) uint8 RGB, and fields. Raises ValueError with shard and key for a bad image."""
        images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
        fields = []
        stored = zip(samples.tolist(), self.read(samples), crops.tolist(), images.numpy(), strict=True)
        for sample, (jpeg, sample_fields), crop, out in stored:
            try:
                decode_crop(jpeg, crop, antialias, out)
            except ValueError as error:
                raise ValueError(f"{self.place(sample)}: {error}") from error
            fields.append(sample_fields)
        return images, fields

    def place(self, sample: int) -> str:
        """Where a sample is found, in words: the path of its shard, and its key."""
        return f"{self._paths[int(self._numbers(sample))]}, sample {sample:08d}"

    def decode_central(self, samples: Ints, size: int, fraction: float, antialias: bool) -> tuple[Tensor, list[Fields]]:
        """As `decode`, of the central `fraction` of each side: what a net sees in evaluation."""
        return self.decode(samples, central_crops(*self.image_sizes(samples), fraction), size, antialias)

    def column(self, field: str) -> list[Any]:
        """One field of every sample, in order. Raises ValueError where a sample lacks it."""
        found = []
        for first, end in pairwise(self._starts.tolist()):  # a cache may hold fewer shards than there are
            for sample, (_, fields) in enumerate(self.read(np.arange(first, end)), first):
                if field not in fields:
                    raise ValueError(f"{self._folder}: sample {sample:08d} has no {field}; it has {', '.join(fields)}")
                found.append(fields[field])
        return found

    def _locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """The shard of each sample, (N,), and its row of the shard's offsets, (N, 6)."""
        shards = self._numbers(samples)
        rows = np.empty((len(samples), len(OFFSETS)), dtype=np.int64)
        # From the first sample's shard on: threads that come to a new block begin, and verify, each at another shard.
        touched = np.unique(shards)
        if self._cache is not None:
            self._cache.fetch([self._shards[number] for number in touched.tolist()])
        for shard in np.roll(touched, -np.searchsorted(touched, shards[:1])).tolist():
            here = shards == shard
            rows[here] = self._checked_offsets(shard)[samples[here] - self._starts[shard]]
        return shards, rows

    def _checked_offsets(self, number: int) -> Ints:
        """A shard's offsets, once its bytes are known to be right, or if its file is the one of which they were."""
        shard = self._shards[number]
        with self._opening[number]:
            offsets = self._offsets[number]
            # Looked at before the bytes, so that a change while these are verified is seen the next time.
            state = None if self._cache is not None else _state(self._paths[number])
            if offsets is None or state != self._states[number]:
                offsets = read_offsets(self._folder, shard) if self._cache is None else self._cache.offsets(shard)
                if self._states[number] is not None:
                    self._tar.cache_clear()  # the name may be another file's now
                self._offsets[number], self._states[number] = offsets, state
            return offsets

    def _numbers(self, samples: Any) -> Any:
        """The shard of each sample."""
        return np.searchsorted(self._starts, samples, side="right") - 1

    def _part(self, number: int, start: int, size: int) -> memoryview:
        if self._cache is not None:
            return self._cache.read(self._shards[number], start, size)
        return self._tar(self._paths[number])[start : start + size]


def _state(path: str) -> State | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - Path's takes twice as long
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _mapped(path: str) -> memoryview:
    with Path(path).open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
