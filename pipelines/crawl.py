"""Many small images by URL -> parts of some thousand, kept where they can be read again by their offset.

`folder/crawl/part-000000.tar` holds what was fetched (`00000012.jpg` and `00000012.json` for number 12 of the list),
`part-000000.dead.jsonl` each URL that gave no image, with the cause, `part-000000.json` how many there are of each, and
`crawl.json`, which is written last, all parts and the totals.

The list is streamed, and only a part's worth of it is held. Until a part is complete it has another name, to which
results are appended as they come: after a kill, what was noted is not asked for again. A part's digest of its piece of
the list, of `max_bytes` and of the mirror tells whether it is still what is wanted; to ask again for what was dead,
delete the part.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from pipelines.archives import members, opened
from pipelines.crawl_doubts import Doubt, Doubts
from pipelines.crawl_part import MAX_BYTES, MAX_MEMBERS, OpenPart, finished, paths, read_image
from pipelines.files import digest, read_json, write_json
from pipelines.section import Section
from pipelines.transport import UNREACHABLE, DeadError, Get, mirrored, network

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.sources.base import Place

RECORD = "crawl.json"
ANSWERED = "answered.json"  # a URL by which one can tell whether this machine is cut off
WINDOW = 8  # images in work for each connection: those that wait for a busy host leave the connections to others

Positive = Annotated[int, Field(gt=0)]
Count = Callable[[bool], None]  # told of each image whether it was fetched

logger = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """One image that a list asks for."""

    key: str  # unlike any other's in the list
    urls: tuple[str, ...]  # of the same image, in order of preference
    fields: dict[str, Any]  # JSON; kept beside the image


class Crawl(Section):
    """How the images of a list are fetched: the block `crawl` of a data set in params.yaml."""

    mirror: str | None  # a tar among the data set's files that stands in for the network; null: the network
    connections: Positive  # at once
    per_host: Positive  # of these to one host
    attempts: Positive  # of a URL that times out, breaks off or is refused for now
    timeout_seconds: Annotated[float, Field(gt=0)]  # of one attempt
    max_bytes: Positive  # of one image
    part_size: Positive  # images of the list in one part


class Part(NamedTuple):
    """A finished part: its tar, and how many images are in it."""

    path: Path
    images: int


class Crawled(NamedTuple):
    """A fetched image, the fields of its `Wanted`, and where it lies."""

    key: str
    image: bytes
    fields: dict[str, Any]
    place: Place


def crawl(wanted: Callable[[], Iterator[Wanted]], folder: Path, options: Crawl, mirror: Path | None) -> dict[str, Any]:
    """Fetch all images of a list into `folder`/crawl, and say how many were wanted, fetched, and dead of which cause.

    Only what is not there yet is asked for. `mirror` is the path of `options.mirror`. Raises ValueError where two
    entries of a part have one key or one has no URL, and where nothing can be reached any more.
    """
    if (mirror is None) != (options.mirror is None):
        raise ValueError(f"crawl.mirror is {options.mirror!r}, but the mirror's path is {mirror}")
    target = folder / "crawl"
    target.mkdir(parents=True, exist_ok=True)
    (target / RECORD).unlink(missing_ok=True)
    identity = json.dumps([options.max_bytes, digest(mirror, "sha256") if mirror else None])
    try:
        with _counted() as count:
            records = asyncio.run(_fill(wanted(), options, mirror, _Run(target, identity, count)))
    except OSError as error:  # the machine's: the network's are causes of death
        raise ValueError(f"{target}: {error.strerror}; run this again to go on from here") from error
    _clear(target, len(records))
    dead: Counter[str] = Counter()
    for record in records:
        dead.update(record["dead"])
    totals = {key: sum(record[key] for record in records) for key in ("wanted", "fetched")}
    result = {**totals, "dead": dict(sorted(dead.items()))}
    write_json(target / RECORD, {**result, "parts": records})
    return result


def crawled(folder: Path) -> list[Part]:
    """The parts of a finished crawl. Raises ValueError that names the file if it is not finished, or one was cut."""
    target = folder / "crawl"
    if not (target / RECORD).is_file():
        raise ValueError(f"{target / RECORD} does not exist: fetch the data set first")
    parts = []
    for record in read_json(target / RECORD)["parts"]:
        path = target / record["name"]
        size = path.stat().st_size if path.exists() else 0
        if size != record["bytes"]:
            raise ValueError(f"{path} has {size} bytes, {RECORD} says {record['bytes']}: fetch the data set again")
        parts.append(Part(path, record["fetched"]))
    return parts


def read_part(part: Part) -> Iterator[Crawled]:
    """The images of a part in the order of the list, whatever the order in which they came.

    Raises ValueError that names the part where one is corrupt or missing.
    """
    from pipelines.sources.base import Place  # here, since the sources import this module

    name = str(part.path)
    with opened(part.path) as file:
        found = sorted(members(file, name, max_members=MAX_MEMBERS, max_bytes=MAX_BYTES))
        if len(found) != 2 * part.images:
            raise ValueError(f"{name} has {len(found)} members, {RECORD} speaks of {part.images} images")
        for one, other in zip(found[::2], found[1::2], strict=True):
            image, fields = (other, one) if one.name.endswith(".json") else (one, other)
            data, known = read_image(file, name, image, fields)
            yield Crawled(known["key"], data, known["fields"], Place(part.path, image.offset))


class _Run:
    """The parts of a crawl: those that are complete, and those in work, of which few are open at a time."""

    def __init__(self, target: Path, identity: str, count: Count) -> None:
        self.target, self.identity, self.count = target, identity, count
        self.records: dict[int, dict[str, Any]] = {}
        self.open: dict[int, OpenPart] = {}
        self.doubts = Doubts(target / ANSWERED, self._bury)
        self.leftovers = [path for path in target.iterdir() if path.suffix == ".part"]

    def images(self, wanted: Iterator[Wanted], part_size: int) -> Iterator[tuple[int, int]]:
        """Part and number of each image that is to be fetched, in the order of the list."""
        index = 0
        while items := list(islice(wanted, part_size)):
            self._check(index * part_size, items)
            text = "\n".join([self.identity, *(json.dumps(item) for item in items)])
            part_digest = hashlib.sha256(text.encode()).hexdigest()
            at = paths(self.target, index, part_digest)
            for path in self.leftovers:
                if path.name.startswith(f"{at.tar.stem}.") and path not in at:
                    path.unlink(missing_ok=True)
            if record := finished(at, part_digest):
                self.records[index] = {"name": at.tar.name, **record}
            else:
                part = self.open[index] = OpenPart(at, part_digest, index * part_size, items)
                waiting = sorted(part.waiting)
                if not waiting:
                    self._finish(index)
                yield from ((index, number) for number in waiting)
            index += 1

    async def bring(self, index: int, number: int, get: Get) -> None:
        """Fetch an image from the first of its URLs that has it, and note what came of it."""
        part = self.open[index]
        doubt = Doubt(index, number, [])
        for url in part.untried(number):
            asked = time.monotonic()
            try:
                image = await get(url)
            except DeadError as dead:
                if dead.cause in UNREACHABLE:  # or this machine is cut off: an answer from anywhere will tell
                    doubt.unreachable.append((url, dead.cause))
                    continue
                part.bury(number, url, dead.cause)
            else:
                part.add(number, url, image)
            self.doubts.heard_of(url, asked)
            if number in part.held:
                break
        if doubt.unreachable and number not in part.held:
            await self.doubts.add(doubt, get)
        else:
            self._close(index, number)

    def _bury(self, doubt: Doubt) -> None:
        for url, cause in doubt.unreachable:
            self.open[doubt.part].bury(doubt.number, url, cause)
        self._close(doubt.part, doubt.number)

    def _close(self, index: int, number: int) -> None:
        """Nothing more is to be done for an image, and with the last of them for its part."""
        part = self.open[index]
        self.count(number in part.held)
        part.waiting.discard(number)
        if not part.waiting:
            self._finish(index)

    def _finish(self, index: int) -> None:
        part = self.open.pop(index)
        record = self.records[index] = {"name": part.at.tar.name, **part.finish()}
        if not _console().is_terminal:
            dead = record["dead"] or "none"
            logger.info(f"{part.at.tar}: {record['fetched']} of {record['wanted']} images; dead: {dead}")

    def _check(self, first: int, items: list[Wanted]) -> None:
        keys = Counter(item.key for item in items)
        for number, item in enumerate(items, start=first):
            if not item.urls or keys[item.key] > 1:
                problem = "has the key of another" if item.urls else "has no URL"
                raise ValueError(f"{self.target}: image {number} of the list, {item.key!r}, {problem}")


async def _fill(wanted: Iterator[Wanted], options: Crawl, mirror: Path | None, run: _Run) -> list[dict[str, Any]]:
    """Complete all parts and return their records in order."""
    images = run.images(wanted, options.part_size)

    async def work(get: Get) -> None:
        for index, number in images:
            await run.bring(index, number, get)

    try:
        if mirror:
            with mirrored(mirror, options.max_bytes) as get:
                await work(get)  # one after the other: the parts' bytes are the same every time
        else:
            async with network(options) as get:
                async with asyncio.TaskGroup() as group:
                    for _ in range(WINDOW * options.connections):
                        group.create_task(work(get))
                await run.doubts.settle(get)
    except ExceptionGroup as errors:  # the first failure, which ended the others
        raise errors.exceptions[0] from None
    finally:
        for part in run.open.values():
            part.close()
    return [record for _, record in sorted(run.records.items())]


def _clear(target: Path, parts: int) -> None:
    """Remove what earlier lists, options and kills left beside the parts 0, 1, ... of this crawl."""
    ends = (".tar", ".json", ".dead.jsonl")
    for path in target.glob("part-*"):
        stem, _, end = path.name.partition(".")
        if f".{end}" not in ends or int(stem.removeprefix("part-")) >= parts:
            path.unlink()


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def _counted() -> Iterator[Count]:
    """A line with counts and rate on a terminal; yields the function that is told of each image."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    counts = Counter[bool]()
    started = time.monotonic()
    console = _console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
        task = display.add_task("crawl", total=None)

        def count(is_fetched: bool) -> None:
            counts[is_fetched] += 1
            if console.is_terminal:
                rate = counts.total() / max(time.monotonic() - started, 1e-3)
                told = f"{counts[True]:,} images, {counts[False]:,} dead, {rate:,.0f}/s"
                display.update(task, description=told)

        yield count
