"""One file from a URL to its place on disk, whole and verified or not at all: what `fetch` stands on.

The bytes go to `<name>.part`, and `<name>.part.json` beside it says which of them are safely there, so that a killed
download goes on where it was. Only a complete file with the right checksum gets its name.

obstore (https://developmentseed.org/obstore) speaks http, https, s3, gs and az, finds their credentials in the
environment (AWS_*, GOOGLE_*, AZURE_*) and repeats requests that are answered by 408, 429 or 5xx, or that break off.
It does not read Retry-After: the pauses grow from 0.5 s to 30 s instead, some minutes in all. A server that does not
state the length of its answers is beyond it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, NotSupportedError
from obstore.store import HTTPStore, from_url

from pipelines.files import digest, human, progress
from pipelines.partial import Partial, Remote, discard, part_of, record, resume

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

CONNECTIONS = 4
CHUNK = 32 * 2**20  # bytes of one request
NOTE = 2**22  # bytes after which what has come is noted: the most that a kill costs each connection
BLOCK = 2**18  # bytes from the network to the disk at a time
PEEK = 1024  # bytes that are looked at before a download starts
FRUITLESS_TRIES = 6  # in a row, each broken off before one more byte came
RESTARTS = 3  # of a file that changes at the server meanwhile
# A stall ends a request, its length does not.
CLIENT: ClientConfig = {"connect_timeout": "20s", "read_timeout": "60s", "timeout": "365 days"}
RETRY: RetryConfig = {
    "max_retries": 10,
    "retry_timeout": timedelta(minutes=5),
    "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=30), "base": 2},
}

Note = Callable[[int, int], Awaitable[None]]  # told of bytes [start, end) that are written
logger = logging.getLogger(__name__)


def download(url: str, path: Path, size: int | None = None, checksum: str | None = None) -> str:
    """Put the file at `url` to `path` and return its checksum; `files.locked` keeps a second process from the path.

    `size` is in bytes; `checksum` is `md5:<hex>` or `sha256:<hex>`, or None, and then the sha256 is returned.
    Raises ValueError in one line that names the URL or the file where the server refuses, offers another size or a web
    page instead of data, the disk is too small, or the checksum is another one. What was fetched stays in
    `<name>.part` for the next try, except after a wrong checksum, which cannot tell which bytes are bad.
    """
    part = part_of(path)
    started = time.monotonic()
    try:
        fetched = _fetch(url, path, size, is_checked=checksum is not None)
    except (BaseError, FileNotFoundError) as error:  # obstore's "not found" is the builtin one
        raise ValueError(f"{url}: {_first_line(error)}") from None
    except OSError as error:
        full = "the disk is full: " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise ValueError(f"{part}: {full}{error.strerror}; run this again to go on from here") from error
    seconds = max(time.monotonic() - started, 1e-3)
    found = digest(part, "sha256" if checksum is None else checksum.partition(":")[0])
    if checksum not in (None, found):
        discard(part)
        raise ValueError(f"{path}: expected {checksum}, but {url} gave {found}; deleted, so the next try starts clean")
    part.replace(path)
    discard(part)
    logger.info(f"{path}: {human(fetched)} fetched in {seconds:.1f} s ({human(fetched / seconds)}/s), {found}")
    return found


def require_space(sizes: dict[Path, int]) -> None:
    """Raises ValueError where a disk has no room for these files (path -> bytes) beside what is there of them."""
    for folder in {path.parent for path in sizes}:
        parts = {part_of(path): size for path, size in sizes.items() if path.parent == folder}
        held = sum(part.stat().st_blocks * 512 for part in parts if part.exists())  # a .part has holes
        needed, free = sum(parts.values()) - held, shutil.disk_usage(folder).free
        if needed > free:
            missing = f"{human(needed - free)} ({needed - free:,} bytes) are missing"
            raise ValueError(f"{folder}: needs {human(needed)}, but the disk has {human(free)} free: {missing}")


class _ChangedError(Exception):
    """The server has other bytes now than those that a `.part` was begun with."""


def _fetch(url: str, path: Path, size: int | None, is_checked: bool) -> int:
    """Fill the `.part` of `path` with all bytes of `url` and return how many of them came now."""
    for _ in range(RESTARTS):
        try:
            return asyncio.run(_fill(url, path, size, is_checked))
        except _ChangedError:
            logger.info(f"{path}: {url} has changed since it was begun; starting again")
            discard(part_of(path))
    raise ValueError(f"{url} changed {RESTARTS} times while it was being fetched")


async def _fill(url: str, path: Path, size: int | None, is_checked: bool) -> int:
    part = part_of(path)
    state = resume(part, url)
    if state and not (state.remote.version or is_checked):
        logger.info(f"{path}: {url} states no version, and no checksum would tell a mixture; starting again")
        state = None
    first = next(state.missing(CHUNK), None) if state else (0, 0)
    if first is None:
        return 0
    store = _store(url)
    remote, has_ranges = await _probe(store, url, first[0], size)
    if state and state.remote != remote:
        raise _ChangedError
    if not state or not has_ranges:
        discard(part)
        state = Partial(remote)
    require_space({path: remote.size})
    held = state.done_bytes
    if held:
        logger.info(f"{path}: {human(held)} of {human(remote.size)} are here; fetching the rest")
    with part.open("r+b" if held else "w+b") as file, progress(path.name, remote.size, held) as advance:
        file.truncate(remote.size)
        if has_ranges:
            await _fill_ranges(store, state, part, file, advance)
        else:
            logger.info(f"{url}: the server knows no ranges: one stream, which starts again if it breaks off")
            await _copy_whole(store, remote, file, advance)
            await _done(part, state, file, (0, remote.size))
    return remote.size - held


async def _fill_ranges(
    store: ObjectStore, state: Partial, part: Path, file: IO[bytes], advance: Callable[[int], None]
) -> None:
    """Fetch what is missing over CONNECTIONS connections; each chunk is on the disk before it is recorded."""
    chunks = state.missing(CHUNK)

    async def note(start: int, end: int) -> None:
        await _done(part, state, file, (start, end))

    async def work() -> None:
        for chunk in chunks:
            await _copy_range(store, state.remote, chunk, file, advance, note)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(work())
    except ExceptionGroup as errors:  # the first failure, which ended the others
        raise errors.exceptions[0] from None


async def _copy_range(
    store: ObjectStore,
    remote: Remote,
    span: tuple[int, int],
    file: IO[bytes],
    advance: Callable[[int], None],
    note: Note,
) -> None:
    """Write the bytes [start, end) of the remote to the same place in `file`; go on where a stream breaks off."""
    position, end = span
    fruitless = 0
    while True:
        result = await _get_same(store, remote, (position, end))
        reached, cause = await _pour(result, (position, end), file, advance, note)
        if reached == end:
            return
        fruitless = fruitless + 1 if reached == position else 0
        position = reached
        await _pause(remote, position, fruitless, cause)


async def _copy_whole(store: ObjectStore, remote: Remote, file: IO[bytes], advance: Callable[[int], None]) -> None:
    """Write the whole remote to `file` from a server that can only start at its first byte."""
    for attempt in range(1, FRUITLESS_TRIES + 1):
        result = await _get_same(store, remote, None)
        reached, cause = await _pour(result, (0, remote.size), file, advance)
        if reached == remote.size:
            return
        advance(-reached)
        await _pause(remote, reached, attempt, cause)


async def _pour(
    result: GetResult, span: tuple[int, int], file: IO[bytes], advance: Callable[[int], None], note: Note | None = None
) -> tuple[int, str]:
    """Write what an answer brings to the place `span` of `file`; how far that went, and why if it is not the end.

    `note` is told of each piece that has been written.
    """
    position, end = span
    noted = position
    cause = "the stream ended"
    try:
        async for block in result.stream(BLOCK):
            if position + len(block) > end:
                cause = "more came than was asked for"
                break
            file.seek(position)
            file.write(block)
            position += len(block)
            advance(len(block))
            if note and position - noted >= NOTE:
                file.flush()
                await note(noted, position)
                noted = position
    except (BaseError, FileNotFoundError) as error:  # the network's: writing raises other OSErrors
        cause = _first_line(error)
    file.flush()
    if note and position > noted:
        await note(noted, position)
    return position, cause


async def _pause(remote: Remote, position: int, fruitless: int, cause: str) -> None:
    if fruitless == FRUITLESS_TRIES:
        raise ValueError(f"{remote.url}: broken off {fruitless} times at byte {position:,}: {cause}")
    await asyncio.sleep(0.5 * 2**fruitless)


async def _probe(store: ObjectStore, url: str, at: int, size: int | None) -> tuple[Remote, bool]:
    """What the server has, and whether it serves ranges; `at` is a byte that is wanted anyway.

    Raises ValueError for a web page in the file's stead and for another size than `size`.
    """
    has_ranges = True
    try:
        result = await _get(store, (at, at + PEEK))
    except NotSupportedError:
        has_ranges = False
        result = await _get(store, None)
    remote = _describe(url, result)
    content_type = result.attributes.get("Content-Type", "")
    head = b"" if at else await anext(result.stream(PEEK), b"")
    text = head[:PEEK].decode("latin-1").lstrip("\xef\xbb\xbf \t\r\n").lower()
    if content_type.startswith("text/html") or text.startswith(("<!doctype html", "<html")):
        raise ValueError(f"{url} is a web page ({content_type}), not the file: a login, quota or error page?")
    if size is not None and remote.size != size:
        raise ValueError(f"{url} has {remote.size:,} bytes, but {size:,} are expected: nothing was fetched")
    return remote, has_ranges


async def _get(store: ObjectStore, span: tuple[int, int] | None) -> GetResult:
    try:
        return await obstore.get_async(store, "", options={"range": span} if span else None)
    except BaseError as error:
        shrunk = "Wanted range starting" in str(error) or _first_line(error).startswith("HTTP 416")
        if span and span[0] > 0 and shrunk:
            raise _ChangedError from None
        raise


async def _get_same(store: ObjectStore, remote: Remote, span: tuple[int, int] | None) -> GetResult:
    result = await _get(store, span)
    if _describe(remote.url, result) != remote:
        raise _ChangedError
    return result


def _describe(url: str, result: GetResult) -> Remote:
    meta = result.meta
    changed = meta["last_modified"]  # 1970 stands for a server that does not say
    return Remote(url, meta["size"], meta["e_tag"] or (changed.isoformat() if changed.timestamp() else ""))


def _store(url: str) -> ObjectStore:
    """The client for exactly one file: only a URL taken whole keeps its query."""
    # A bucket's endpoint is https unless the environment (AWS_ENDPOINT) says otherwise.
    client: ClientConfig = {**CLIENT, "allow_http": not url.startswith("https:")}
    if url.startswith(("http:", "https:")):  # from_url would take a page of a public bucket for the bucket itself
        return HTTPStore.from_url(url, client_options=client, retry_config=RETRY)
    return from_url(url, client_options=client, retry_config=RETRY)


def _first_line(error: Exception) -> str:
    """`HTTP <status> <reason>` where the server answered so, else the first line of obstore's message."""
    status = re.search(r"status code: (\d{3}[ \w-]*)", str(error))
    return f"HTTP {status[1].strip()}" if status else str(error).partition("\n")[0]


async def _done(part: Path, state: Partial, file: IO[bytes], span: tuple[int, int]) -> None:
    """Note that the bytes of `span` are done, after they are."""
    await asyncio.to_thread(os.fdatasync, file.fileno())
    state.add(*span)
    record(part, state)
