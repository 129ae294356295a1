"""Archives -> shards: every image checked once, samples shuffled by a seed, dealt to WebDataset tars with an index.

    python -m pipelines.shard imagenet [--scale paper]
    python -m pipelines.shard imagenet --inspect     # draws a contact sheet of what was written

Two passes, each spread over processes, of this machine or of the Ray cluster that RAY_ADDRESS names. The first reads
the archives in order, unit by unit, and checks each image (`checkup`). The second takes the entries of one shard at a
time, in the order that the seed gives, and copies the bytes. The work gathers in `<dataset>.part`: units and shards
that are done are not done again when a killed stage is started anew.

The result depends on archives, source and settings alone, not on the number of processes. Memory: one shard's worth
of buffers per process, and some 26 bytes per sample in the parent.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pipelines import paths
from pipelines.checkup import ENTRY, Checkup, Entries, check_unit, stored
from pipelines.command import one_line_errors, stage_parser
from pipelines.config import Params, Sharding, load
from pipelines.download import require_space
from pipelines.files import locked, read_json, write_json
from pipelines.manifest import MANIFEST, check_fetched
from pipelines.pool import pool
from pipelines.section import parsed
from pipelines.shards import INDEX, Index, Shard, Split, read_index, write_shard
from pipelines.sources import SOURCES
from pipelines.sources.base import Source, Unit
from pipelines.training.rows import code_digest, fingerprint

logger = logging.getLogger(__name__)

CODE = Path(__file__).parent
READING = ("archives", "checkup", "crawl", "crawl_part", "images", "matlab", "shard", "shards", "zips")
IDENTITY = "work.json"  # what an unfinished folder is made of
T = TypeVar("T")


class Plan(NamedTuple):
    """What goes into a shard: `entries`, in order, under the keys from `first` on."""

    split: str
    name: str
    first: int
    entries: Entries


def shard(params: Params, scale: str, name: str) -> None:
    """The stage: the fetched archives of a data set -> its folder of shards; an index alone if it is not given."""
    dataset = params.dataset(name, scale)
    settings, is_given = dataset.shard, dataset.origin is not None
    if name not in SOURCES:
        raise ValueError(f"data set {name!r} has no source; there are: {', '.join(sorted(SOURCES))}")
    raw = paths.raw(scale, name)
    check_fetched(raw, is_given, f"python -m pipelines.fetch {name} --scale {scale}")
    target = paths.shards(scale, name)
    with locked(target.parent):
        if not is_given:
            write_no_shards(name, raw, target, settings)
            logger.info(f"{target}: {name} is not given (origin: null), there are no samples")
            return
        _require_space(raw, target, settings)
        index = write_shards(name, SOURCES[name], raw, target, settings)
    for split, held in index.splits.items():
        logger.info(f"{target}: {held.samples} samples of {split} in {len(held.shards)} shards")
    logger.info(f"{target}: encoded anew {index.reencoded or 'none'}, skipped {index.skipped or 'none'}")


def _require_space(raw: Path, target: Path, settings: Sharding) -> None:
    """Raises ValueError where images that are stored as they came will not find room."""
    if settings.stored_short_side is None:
        images = raw / "crawl" if (raw / "crawl").exists() else raw  # beside what was crawled lie lists alone
        size = sum(path.stat().st_size for path in images.rglob("*") if path.is_file())
        held = sum(path.stat().st_size for path in _part(target).rglob("*") if path.is_file())
        require_space({target: max(0, size - held)})


def write_shards(
    dataset: str, source: Source, raw: Path, target: Path, settings: Sharding, processes: int | None = None
) -> Index:
    """Write the shards of the archives in `raw` and return their index.

    `target` appears, or is replaced, in one step when all is written; until then the work lies beside it, where another
    call for the same archives and settings finds it. `processes`: how many share the work; None: all that there are;
    with 1 this process does it all. Raises ValueError for archives that are not as their source wants them, for a bad
    image if `settings.bad_images` is "error", and for another number of samples than `settings.samples` asks for.
    """
    raw, target = raw.absolute(), target.absolute()  # workers may have another folder
    classes = source.classes(raw)
    units = source.units(raw, parsed(source.options, settings.options, "shard.options"))
    fill = partial(_fill, dataset, source, units, classes, settings, processes)
    return _write(target, _identity(dataset, raw, settings), fill)


def write_no_shards(dataset: str, raw: Path, target: Path, settings: Sharding) -> Index:
    """Write the index of a data set that is not given, which has no splits; `target` appears as with `write_shards`."""
    index = Index(dataset, (), {}, {}, {})
    return _write(target.absolute(), _identity(dataset, raw, settings), partial(_write_index, index))


def _write(target: Path, identity: str, fill: Callable[[Path], None]) -> Index:
    """Have the folder of the work filled, index last, where an earlier try has not done so, and move it to `target`."""
    part, old = _part(target), target.with_name(f"{target.name}.old")
    _begin(part, identity)
    _remove(old)  # of a run that was killed
    if not (part / INDEX).exists():
        fill(part)
    index = _finish(part)
    if target.exists():
        target.rename(old)
    part.rename(target)
    _remove(old)
    return index


def _fill(
    dataset: str,
    source: Source,
    units: list[Unit],
    classes: list[str],
    settings: Sharding,
    processes: int | None,
    part: Path,
) -> None:
    """Write all shards, and the index when they are there."""
    spool = part / "spool"
    spool.mkdir(exist_ok=True)
    try:
        with pool(processes) as run:
            checkups = run(partial(check_unit, source, spool, settings), range(len(units)), units)
            entries, skipped, reencoded = _gather(_progress(checkups, len(units), "check"), dataset, settings)
            count = sum(_shards_of(len(rows), settings) for rows in entries.values())
            written = run(partial(_write_shard, spool, part), _deal(entries, settings))
            shards = list(_progress(written, count, "write"))
    except ValueError:  # the next try will be about other archives or settings
        _remove(part)
        raise
    _write_index(Index(dataset, tuple(classes), _splits(entries, shards), skipped, reencoded), part)


def _write_index(index: Index, part: Path) -> None:
    fresh = part / f"{INDEX}.new"
    fresh.write_bytes(index.to_json())
    _flush(fresh)
    fresh.replace(part / INDEX)


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _identity(dataset: str, raw: Path, settings: Sharding) -> str:
    """A digest of all that the shards depend on."""
    manifest = raw / MANIFEST  # has the checksums of archives and crawl
    archives = (
        read_json(manifest)
        if manifest.exists()
        else {
            path.relative_to(raw).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(raw.rglob("*"))
            if path.is_file()
        }
    )
    code = code_digest([*(CODE / f"{name}.py" for name in READING), *(CODE / "sources").glob("*.py")])
    return fingerprint(dataset=dataset, archives=archives, settings=settings.model_dump(), code=code)


def _begin(part: Path, identity: str) -> None:
    """Make the folder of the work, or keep one that an earlier try at the same has left."""
    record = part / IDENTITY
    if record.exists() and read_json(record) == identity:
        logger.info(f"{part}: going on from what is done")
        return
    _remove(part)
    part.mkdir(parents=True)
    write_json(record, identity)


def _finish(part: Path) -> Index:
    """Leave what belongs to the shards alone; the identity goes last, so that a kill in between costs nothing."""
    _remove(part / "spool")
    for record in part.glob("*.shard.json"):
        record.unlink()
    (part / IDENTITY).unlink()
    return read_index(part)


def _gather(
    checkups: Iterable[Checkup], dataset: str, settings: Sharding
) -> tuple[dict[str, Entries], dict[str, int], dict[str, int]]:
    """The units' findings together, in the units' order. Raises ValueError if the number of samples is not right."""
    entries: dict[str, bytearray] = {}  # which grow in place: no second copy of them is made
    found, skipped, reencoded = Counter[str](), Counter[str](), Counter[str]()
    for checkup in checkups:
        for split, rows in checkup.entries.items():
            entries.setdefault(split, bytearray()).extend(rows.tobytes())
        found += checkup.found
        skipped += checkup.skipped
        reencoded += checkup.reencoded
    for split in sorted({*found, *settings.samples}):
        if settings.samples.get(split, 0) not in (None, found[split]):
            raise ValueError(
                f"data set {dataset}: the archives hold {found[split]} samples of split {split!r}, "
                f"shard.samples in params.yaml says {settings.samples.get(split, 0)}"
            )
    if not entries:  # an index without splits is that of a data set that is not given
        raise ValueError(f"data set {dataset}: the archives hold no image that can be stored")
    together: dict[str, Entries] = {split: np.frombuffer(rows, ENTRY) for split, rows in sorted(entries.items())}
    return together, dict(sorted(skipped.items())), dict(sorted(reencoded.items()))


def _shards_of(samples: int, settings: Sharding) -> int:
    return -(-samples // settings.samples_per_shard)


def _deal(entries: dict[str, Entries], settings: Sharding) -> Iterator[Plan]:
    """Every shard's share: each split permuted by the seed, then cut."""
    for split, rows in entries.items():
        order: npt.NDArray[Any] = np.random.Generator(np.random.PCG64(settings.seed)).permutation(len(rows))
        for number in range(_shards_of(len(rows), settings)):
            first = number * settings.samples_per_shard
            share = rows[order[first : first + settings.samples_per_shard]]
            yield Plan(split, f"{split}-{number:06d}", first, share)


def _write_shard(spool: Path, folder: Path, plan: Plan) -> Shard:
    """Second pass, in a worker: the entries of a shard -> the shard, or what an earlier try has written of it."""
    record = folder / f"{plan.name}.shard.json"
    if record.exists():
        return Shard(**read_json(record))
    samples = (
        stored(spool, key, unit, size, offset)
        for key, (unit, size, offset) in enumerate(plan.entries.tolist(), start=plan.first)
    )
    shard = write_shard(folder, plan.name, samples)
    for name in (shard.name, shard.offsets_name):
        _flush(folder / name)
    write_json(record, asdict(shard))
    return shard


def _splits(entries: dict[str, Entries], shards: list[Shard]) -> dict[str, Split]:
    of = {split: tuple(shard for shard in shards if shard.name.rpartition("-")[0] == split) for split in entries}
    return {split: Split(sum(shard.samples for shard in held), held) for split, held in of.items()}


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
    parser = stage_parser(__doc__)
    parser.add_argument("dataset", help="a dataset of params.yaml")
    parser.add_argument("--inspect", action="store_true", help="draw a contact sheet of the shards instead")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        params = load()
        scale = arguments.scale or params.scale
        if arguments.inspect:
            from pipelines.contact_sheet import inspect

            inspect(paths.shards(scale, arguments.dataset), paths.contact_sheet(scale, arguments.dataset))
        else:
            shard(params, scale, arguments.dataset)


if __name__ == "__main__":
    main()
