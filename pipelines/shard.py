"""Archives -> shards: every image checked once, samples shuffled by a seed, dealt to WebDataset tars with an index.

Two passes, each spread over processes. The first reads the archives in order, unit by unit, checks each image and
notes its entry in the unit's spool file: where its bytes lie, and its JSON. The second takes the entries of one shard
at a time, in the order that the seed gives, and copies the bytes. An image that goes in as it came is read again from
its archive, so that no second copy of the data set lies on disk meanwhile; only images that were encoded anew, and
those of compressed archives, wait in the spool.

The result depends on archives, source and settings alone, not on the number of processes. Memory: one shard's worth
of buffers per process, and 48 bytes per sample in the parent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from pipelines import paths
from pipelines.command import run_stage
from pipelines.config import Params, Sharding
from pipelines.files import locked
from pipelines.images import BadImage, Checked, check
from pipelines.section import parsed
from pipelines.shards import INDEX, Index, Shard, Split, Stored, write_shard
from pipelines.sources import SOURCES
from pipelines.sources.base import Sample, Source, Unit

logger = logging.getLogger(__name__)

Entries = npt.NDArray[np.int64]  # (samples, 3): unit, offset and size of the entry in the unit's spool
Map = Callable[..., Iterable[Any]]  # the built-in one, or a pool's: results come in the order of the arguments


T = TypeVar("T")


class Plan(NamedTuple):
    """What goes into a shard: `entries`, in order, under the keys from `first` on."""

    split: str
    name: str
    first: int
    entries: Entries


class Checkup(NamedTuple):
    """What the first pass found in a unit."""

    entries: dict[str, Entries]  # by split
    found: Counter[str]  # by split, bad images included
    skipped: Counter[str]  # by cause
    reencoded: Counter[str]  # by cause


def shard(params: Params, scale: str, name: str) -> None:
    """The stage: the fetched archives of a data set -> its folder of shards."""
    settings = params.dataset(name, scale).shard
    if name not in SOURCES:
        raise ValueError(f"data set {name!r} has no source; there are: {', '.join(sorted(SOURCES))}")
    raw = paths.raw(scale, name)
    check_fetched(raw)
    target = paths.shards(scale, name)
    with locked(target.parent):
        index = write_shards(name, SOURCES[name], raw, target, settings)
    for split, held in index.splits.items():
        logger.info(f"{target}: {held.samples} samples of {split} in {len(held.shards)} shards")
    logger.info(f"{target}: encoded anew {index.reencoded or 'none'}, skipped {index.skipped or 'none'}")


def check_fetched(raw: Path) -> None:
    """Pass if the archives that the manifest lists are there in full. Raises ValueError that names the file."""
    manifest = raw / "manifest.json"
    try:
        files = json.loads(manifest.read_bytes())["files"]
    except FileNotFoundError:
        raise ValueError(f"{manifest} does not exist: fetch the data set first") from None
    for file in files:
        path = raw / file["name"]
        size = path.stat().st_size if path.exists() else 0
        if size != file["bytes"]:
            raise ValueError(f"{path} has {size} bytes, {manifest} says {file['bytes']}: fetch it again")


def write_shards(
    dataset: str, source: Source, raw: Path, target: Path, settings: Sharding, processes: int | None = None
) -> Index:
    """Write the shards of the archives in `raw` and return their index.

    `target` appears, or is replaced, in one step when all is written; until then the work lies beside it.
    `processes`: how many share the work, by default as many as there are CPUs; with 1 this process does it all.
    Raises ValueError for archives that are not as their source wants them, for a bad image if `settings.bad_images`
    is "error", and for another number of samples than `settings.samples` asks for.
    """
    classes, units = source.classes(raw), source.units(raw, parsed(source.options, settings.options, "shard.options"))
    part, old = (target.with_name(f"{target.name}.{end}") for end in ("part", "old"))
    _remove(part, old)  # of a run that was killed
    spool = part / "spool"
    spool.mkdir(parents=True)
    try:
        with _pool(processes or os.cpu_count() or 1) as run:
            checkups = run(partial(_check_unit, source, spool, settings), range(len(units)), units)
            entries, skipped, reencoded = _gather(_progress(checkups, len(units), "check"), dataset, settings)
            plans = _deal(entries, settings)
            shards = list(_progress(run(partial(_write_shard, spool, part), plans), len(plans), "write"))
        shutil.rmtree(spool)
        index = Index(dataset, tuple(classes), _splits(plans, shards), skipped, reencoded)
        (part / INDEX).write_bytes(index.to_json())
        for path in part.iterdir():
            _flush(path)
        if target.exists():
            target.rename(old)
        part.rename(target)
    except BaseException:
        _remove(part)
        raise
    _remove(old)
    return index


def _check_unit(source: Source, spool: Path, settings: Sharding, number: int, unit: Unit) -> Checkup:
    """First pass, in a worker: the images of a unit -> their entries in its spool."""
    entries: dict[str, list[tuple[int, int, int]]] = {}
    found, skipped, reencoded = Counter[str](), Counter[str](), Counter[str]()
    with _spooled(spool, number).open("wb") as file:
        for sample in source.samples(unit):
            found[sample.split] += 1
            try:
                image = _checked(sample, settings, source.upright)
            except BadImage as error:
                if settings.bad_images == "error":
                    archive = f"{sample.place.path}: " if sample.place else ""
                    raise ValueError(f"{archive}image {sample.name}: {error.cause}") from None
                skipped[error.cause] += 1
                continue
            if image.change:
                reencoded[image.change] += 1
            entry = _entry(sample, image)
            entries.setdefault(sample.split, []).append((number, file.tell(), len(entry)))
            file.write(entry)
    arrays = {split: np.array(rows, dtype=np.int64) for split, rows in entries.items()}
    return Checkup(arrays, found, skipped, reencoded)


def _checked(sample: Sample, settings: Sharding, upright: bool) -> Checked:
    if settings.stored_short_side is not None and "objects" in sample.fields:
        raise ValueError("shard.stored_short_side must be null where there are boxes: they are in pixels of the image")
    limits = (settings.max_pixels, settings.max_bytes, settings.stored_short_side)
    return check(sample.image, *limits, crop=sample.crop, upright=upright)


def _entry(sample: Sample, image: Checked) -> bytes:
    """Two lines of JSON, what `_stored` needs and what goes into the shard, then the image if it is nowhere else."""
    in_place = sample.place if image.change is None else None
    where = [str(in_place.path), in_place.offset, len(image.image)] if in_place else None
    known = {"name": sample.name, "sha256": hashlib.sha256(sample.image).hexdigest()}
    fields = {**known, "width": image.width, "height": image.height, **sample.fields}
    head = json.dumps([where, image.height, image.width])
    return f"{head}\n{json.dumps(fields)}\n".encode() + (b"" if where else image.image)


def _stored(key: int, entry: bytes) -> Stored:
    """The inverse of `_entry`."""
    head, fields, image = entry.split(b"\n", 2)
    where, height, width = json.loads(head)
    return Stored(key, _read(Path(where[0]), *where[1:]) if where else image, fields, height, width)


def _gather(
    checkups: Iterable[Checkup], dataset: str, settings: Sharding
) -> tuple[dict[str, Entries], dict[str, int], dict[str, int]]:
    """The units' findings together, in the units' order. Raises ValueError if the number of samples is not right."""
    entries: dict[str, list[Entries]] = {}
    found, skipped, reencoded = Counter[str](), Counter[str](), Counter[str]()
    for checkup in checkups:
        for split, rows in checkup.entries.items():
            entries.setdefault(split, []).append(rows)
        found += checkup.found
        skipped += checkup.skipped
        reencoded += checkup.reencoded
    for split in sorted({*found, *settings.samples}):
        if settings.samples.get(split, 0) not in (None, found[split]):
            raise ValueError(
                f"data set {dataset}: the archives hold {found[split]} samples of split {split!r}, "
                f"shard.samples in params.yaml says {settings.samples.get(split, 0)}"
            )
    together = {split: np.concatenate(rows) for split, rows in sorted(entries.items())}
    return together, dict(sorted(skipped.items())), dict(sorted(reencoded.items()))


def _deal(entries: dict[str, Entries], settings: Sharding) -> list[Plan]:
    """Every shard's share: each split permuted by the seed, then cut."""
    plans = []
    for split, rows in entries.items():
        shuffled = rows[np.random.Generator(np.random.PCG64(settings.seed)).permutation(len(rows))]
        for number, first in enumerate(range(0, len(rows), settings.samples_per_shard)):
            share = shuffled[first : first + settings.samples_per_shard]
            plans.append(Plan(split, f"{split}-{number:06d}", first, share))
    return plans


def _write_shard(spool: Path, folder: Path, plan: Plan) -> Shard:
    """Second pass, in a worker: the entries of a shard -> the shard."""
    samples = (
        _stored(key, _read(_spooled(spool, unit), offset, size))
        for key, (unit, offset, size) in enumerate(plan.entries.tolist(), start=plan.first)
    )
    return write_shard(folder, plan.name, samples)


def _splits(plans: list[Plan], shards: list[Shard]) -> dict[str, Split]:
    names = dict.fromkeys(plan.split for plan in plans)
    of = {name: tuple(shard for plan, shard in zip(plans, shards, strict=True) if plan.split == name) for name in names}
    return {name: Split(sum(shard.samples for shard in of[name]), of[name]) for name in names}


def _spooled(spool: Path, unit: int) -> Path:
    return spool / f"{unit:06d}"


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{path} changed while it was sharded: {len(data)} of {size} bytes at {offset}")
    return data


@contextmanager
def _pool(processes: int) -> Iterator[Map]:
    """A `map` over that many processes. They are spawned: a fork would copy the locks of the parent's threads."""
    if processes == 1:
        yield map
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start_worker) as pool:
        yield pool.map


def _start_worker() -> None:
    cv2.setNumThreads(1)
    Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when the parent was killed: it would work on, beside the next run, and then wait for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _progress(results: Iterable[T], total: int, what: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(results, what, total, console=console, disable=not console.is_terminal)


def _flush(path: Path) -> None:
    """Wait until the file is on the disk, so that no crash leaves a finished folder with empty files."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def main(argv: list[str] | None = None) -> None:
    run_stage(shard, "dataset", __doc__, argv)


if __name__ == "__main__":
    main()
