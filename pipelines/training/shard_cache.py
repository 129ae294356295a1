"""Shards streamed from an object store, by way of a folder on this machine that never holds more than a bound.

Where shards are read from is a matter of the machine and not of the run, so environment variables say it:

SHARDS_URL         what stands for `data/<scale>/shards`: s3://bucket/prefix, gs:, az:, http:, https: or file:. obstore
                   (https://developmentseed.org/obstore) finds credentials and endpoint in AWS_*, GOOGLE_*, AZURE_*
SHARD_CACHE        a folder on this machine's own disk, which all processes of the machine share
SHARD_CACHE_BYTES  the most that it holds, what is being fetched included

A shard is fetched whole, once for all processes of a machine, and has its name only when its size and sha256 are those
of the index. No file stays open: a sample is read by opening its shard, so the least recently used ones may go at any
time, and a process that is reading one still reads it to its end. What a killed process was fetching is fetched anew.

A machine fetches what its ranks read: all shards, or with a run's `deal: shards` its own part of them, another in each
epoch; the cache then has to hold what is in use of each of the machine's ranks. Requests for the ranges of single
samples would spare as much, but no checksum covers a range, each sample would cost a request, and every epoch all of
them again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.files import human
from pipelines.shards import INDEX, Shard, read_index, read_offsets
from pipelines.training.cache_room import files_of, held, lock_of, make_room, part_of, remove

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("s3", "gs", "az", "http", "https", "file")
CONNECTIONS = 4  # shards fetched at a time by one process
CHUNK = 2**22  # bytes from the network to the disk at a time
TRIES = 3  # of reading a shard that others evict, or that this disk has damaged
PATIENCE = 600.0  # seconds to wait for room while other downloads hold all of it
# A stall ends a request, its length does not. obstore repeats what is answered by 429 or 5xx, or breaks off.
CLIENT: ClientConfig = {"connect_timeout": "20s", "read_timeout": "60s", "timeout": "365 days", "allow_http": True}
RETRY: RetryConfig = {"max_retries": 10, "retry_timeout": timedelta(minutes=5)}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What the environment says: where shards come from, the folder that keeps them, and the most it holds."""

    url: str
    folder: Path
    max_bytes: int


def configured() -> Settings | None:
    """The environment's settings; None where shards are read where they lie.

    Raises ValueError that names the variable which is missing or wrong.
    """
    url = os.environ.get("SHARDS_URL", "").rstrip("/")
    if not url:
        return None
    if url.partition("://")[0] not in SCHEMES:
        raise ValueError(f"SHARDS_URL is {url!r}; it must begin with one of: {', '.join(SCHEMES)}, and ://")
    folder, size = (os.environ.get(name, "") for name in ("SHARD_CACHE", "SHARD_CACHE_BYTES"))
    if not folder:
        raise ValueError("SHARDS_URL is set, so SHARD_CACHE must be a folder on this machine's disk; it is not set")
    if not size.isdecimal():
        raise ValueError(f"SHARD_CACHE_BYTES is {size!r}; with SHARDS_URL it must be a number of bytes: 50000000000")
    return Settings(url, Path(folder).absolute(), int(size))


def open_cache(folder: Path, digest: str | None) -> ShardCache | None:
    """The cache that stands for a data set's `folder` on this machine; None where the folder itself is read.

    digest: of the index of the shards that the run was planned with; None: of the index that lies in the folder.
    Raises ValueError where the shards at SHARDS_URL are others.
    """
    settings = configured()
    if settings is None:
        return None
    return ShardCache(settings, folder.name, read_index(folder).digest if digest is None else digest)


class ShardCache:
    """The shards of one data set, as far as they are here; threads and processes may share it.

    `folder` looks like the data set's own, with fewer shards in it.
    """

    def __init__(self, settings: Settings, dataset: str, digest: str) -> None:
        self._settings = settings
        self._dataset = dataset
        self.folder = settings.folder / digest
        self.folder.mkdir(parents=True, exist_ok=True)
        self._store = _store(settings.url)
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="shards")
        self._beginning = Lock()
        self._under_way: dict[str, Future[None]] = {}
        self._fetch_index(digest)

    def require_room(self, shards: Sequence[Shard], at_once: int) -> None:
        """Raise ValueError unless the cache holds any `at_once` of these shards."""
        largest = sorted((_total_bytes(shard) for shard in shards), reverse=True)[:at_once]
        if sum(largest) > self._settings.max_bytes:
            raise ValueError(
                f"SHARD_CACHE_BYTES is {self._settings.max_bytes:,}; it must hold the {len(largest)} shards of "
                f"{self._dataset} that are in use at once, up to {sum(largest):,} bytes (block_shards in params.yaml)"
            )

    def fetch(self, shards: Iterable[Shard]) -> None:
        """Have these shards here, and count them as used now. Raises ValueError with URL and shard where it fails."""
        for future in [self._begin(shard) for shard in shards]:
            if future is not None:
                future.result()

    def fetch_ahead(self, shards: Iterable[Shard]) -> None:
        """Begin to fetch what will be wanted. What fails is tried again, and raised, when it is."""
        for shard in shards:
            self._begin(shard)

    def read(self, shard: Shard, start: int, size: int) -> memoryview:
        """Some bytes of a shard, which is fetched if it is not here, or not any more."""
        for _ in range(TRIES):
            try:
                with (self.folder / shard.name).open("rb", buffering=0) as file:
                    return memoryview(os.pread(file.fileno(), size, start))
            except FileNotFoundError:
                log.warning("%s has gone from %s before it was read", shard.name, self.folder)
                self.fetch([shard])
        raise ValueError(
            f"{self.folder / shard.name} was evicted {TRIES} times before it could be read: SHARD_CACHE_BYTES, "
            f"{self._settings.max_bytes:,}, is too little for all processes that share the cache"
        )

    def offsets(self, shard: Shard) -> npt.NDArray[np.int64]:
        """A shard's offsets; its bytes are verified on this disk, too. Raises as `fetch`."""
        for _ in range(TRIES):
            self.fetch([shard])
            try:
                return read_offsets(self.folder, shard)
            except (ValueError, FileNotFoundError) as error:  # evicted in between, or damaged since it was fetched
                log.warning("%s; fetching it anew", error)
                failed = error
                remove(files_of(self.folder / shard.name))
        raise failed

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, shard: Shard) -> Future[None] | None:
        try:
            os.utime(self.folder / shard.name)
        except FileNotFoundError:
            with self._beginning:
                future = self._under_way.get(shard.name)
                if future is None or future.done():
                    future = self._under_way[shard.name] = self._pool.submit(self._fetch, shard)
                return future
        return None

    def _fetch_index(self, digest: str) -> None:
        path = self.folder / INDEX
        with held(lock_of(path)):
            if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                return
            text = b"".join(self._stream(INDEX, None))
            found = hashlib.sha256(text).hexdigest()
            if found != digest:
                raise ValueError(f"{self._url(INDEX)} has sha256 {found}, but the shards that are meant have {digest}")
            part_of(path).write_bytes(text)
            part_of(path).replace(path)

    def _fetch(self, shard: Shard) -> None:
        """Fetch a shard, unless another process does or has done so; twice if it comes with the wrong bytes."""
        path = self.folder / shard.name
        with held(lock_of(path)):
            if path.exists():
                return
            started = time.monotonic()
            try:
                self._reserve(shard)
                self._receive(shard)
                with held(self._settings.folder / ".lock"):  # who counts what is here sees one name or the other
                    for final in files_of(path)[::-1]:  # the tar last: where it is, its offsets are
                        part_of(final).replace(final)
            except OSError as error:
                raise ValueError(f"{self.folder}: {error.strerror or error}, while {shard.name} was fetched") from error
            finally:
                remove(map(part_of, files_of(path)))
            log.info("%s: %s fetched in %.1f s", self._url(shard.name), human(shard.bytes), time.monotonic() - started)

    def _receive(self, shard: Shard) -> None:
        promised = {shard.offsets_name: (shard.offsets_bytes, shard.offsets_sha256)}
        promised[shard.name] = shard.bytes, shard.sha256
        for name, (size, sha256) in promised.items():
            try:
                self._receive_file(name, size, sha256)
            except ValueError as error:
                log.warning("%s; trying once more", error)
                self._receive_file(name, size, sha256)

    def _receive_file(self, name: str, size: int, sha256: str) -> None:
        hasher = hashlib.sha256()
        with part_of(self.folder / name).open("r+b") as file:
            for chunk in self._stream(name, size):
                hasher.update(chunk)
                file.write(chunk)
        if hasher.hexdigest() != sha256:
            raise ValueError(f"{self._url(name)} has sha256 {hasher.hexdigest()}, the index says {sha256}")

    def _stream(self, name: str, size: int | None) -> Iterator[Any]:
        """The bytes of an object, which must have a size where one is given."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            answer = obstore.get(self._store, f"{self._dataset}/{name}")
            found = answer.meta["size"]
            if size not in (None, found):
                raise ValueError(f"{self._url(name)} has {found} bytes, the index says {size}")
            yield from answer.stream(CHUNK)
        except (BaseError, FileNotFoundError) as error:  # obstore's "not found" is the builtin one
            raise ValueError(f"{self._url(name)}: {str(error).partition(chr(10))[0]}") from None

    def _reserve(self, shard: Shard) -> None:
        """Make room for a shard by evicting others, and take it. Raises ValueError where there is none to be had."""
        self.require_room([shard], 1)
        deadline = time.monotonic() + PATIENCE
        while not self._take_room(shard):
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{self._settings.folder} may hold {self._settings.max_bytes:,} bytes (SHARD_CACHE_BYTES), and for "
                    f"{PATIENCE:g} s other downloads have left no {_total_bytes(shard):,} for {shard.name}"
                )
            time.sleep(0.05)

    def _take_room(self, shard: Shard) -> bool:
        path = self.folder / shard.name
        with held(self._settings.folder / ".lock"):
            remove(map(part_of, files_of(path)))  # of a process that was killed: the shard's lock is ours
            if not make_room(self._settings.folder, self._settings.max_bytes, _total_bytes(shard)):
                return False
            for final, size in zip(files_of(path), (shard.bytes, shard.offsets_bytes), strict=True):
                with part_of(final).open("wb") as file:
                    file.truncate(size)
            return True

    def _url(self, name: str) -> str:
        return f"{self._settings.url}/{self._dataset}/{name}"


def _total_bytes(shard: Shard) -> int:
    return shard.bytes + shard.offsets_bytes


def _store(url: str) -> ObjectStore:
    from obstore.store import HTTPStore, from_url

    if url.startswith("file:"):
        return from_url(url)
    if url.startswith("http"):  # from_url would take some hosts for those of buckets
        return HTTPStore.from_url(url, client_options=CLIENT, retry_config=RETRY)
    return from_url(url, client_options=CLIENT, retry_config=RETRY)
