"""The first pass of sharding: every image of a data set checked once, and noted where the second pass finds it.

Each unit of a source has a spool file with an entry for each image: where its bytes lie, and its JSON. An image that
goes into a shard as it came is read again from its archive, so that no second copy of the data set lies on disk
meanwhile; only images that were encoded anew, and those of compressed archives, wait in the spool. A unit that is done
has its findings beside its spool file: a later try takes them over.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.config import Sharding
from pipelines.images import BadImage, Checked, check
from pipelines.shards import Stored
from pipelines.sources.base import Sample, Source, Unit

ENTRY = np.dtype([("unit", "<u4"), ("size", "<u4"), ("offset", "<u8")])  # of an entry in the unit's spool file
Entries = npt.NDArray[np.void]  # (samples,) of ENTRY


class Checkup(NamedTuple):
    """What was found in a unit."""

    entries: dict[str, Entries]  # by split
    found: Counter[str]  # by split, bad images included
    skipped: Counter[str]  # by cause
    reencoded: Counter[str]  # by cause


def check_unit(source: Source, spool: Path, settings: Sharding, number: int, unit: Unit) -> Checkup:
    """In a worker: the images of a unit -> their entries in its spool, or what an earlier try has left of that."""
    findings = spool / f"{number:06d}.npz"
    if findings.exists():
        return _load(findings)
    entries: dict[str, list[tuple[int, int, int]]] = {}
    found, skipped, reencoded = Counter[str](), Counter[str](), Counter[str]()
    with spooled(spool, number).open("wb") as file:
        for sample in source.samples(unit):
            found[sample.split] += 1
            try:
                image = _checked(sample, settings, source)
            except BadImage as error:
                if settings.bad_images == "error":
                    archive = f"{sample.place.path}: " if sample.place else ""
                    raise ValueError(f"{archive}image {sample.name}: {error.cause}") from None
                skipped[error.cause] += 1
                continue
            if image.change:
                reencoded[image.change] += 1
            entry = _entry(sample, image)
            entries.setdefault(sample.split, []).append((number, len(entry), file.tell()))
            file.write(entry)
        file.flush()
        os.fsync(file.fileno())
    arrays = {split: np.array(rows, dtype=ENTRY) for split, rows in entries.items()}
    checkup = Checkup(arrays, found, skipped, reencoded)
    _save(checkup, findings)
    return checkup


def stored(spool: Path, key: int, unit: int, size: int, offset: int) -> Stored:
    """The sample of an entry, its bytes compared with those that were checked. Raises ValueError if they changed."""
    head, fields, image = _read(spooled(spool, unit), offset, size).split(b"\n", 2)
    where, height, width, sha256 = json.loads(head)
    if where:
        path, place, length = where
        image = _read(Path(path), place, length)
        if hashlib.sha256(image).hexdigest() != sha256:
            raise ValueError(f"{path} changed while it was sharded: other bytes at {place} than were checked")
    return Stored(key, image, fields, height, width)


def spooled(spool: Path, unit: int) -> Path:
    """A unit's spool file."""
    return spool / f"{unit:06d}"


def _checked(sample: Sample, settings: Sharding, source: Source) -> Checked:
    if sample.bad is not None:
        raise BadImage(sample.bad)
    if settings.stored_short_side is not None and "objects" in sample.fields:
        raise ValueError("shard.stored_short_side must be null where there are boxes: they are in pixels of the image")
    limits = (settings.max_pixels, settings.max_bytes, settings.stored_short_side)
    return check(sample.image, *limits, crop=sample.crop, upright=source.upright, bare=source.bare)


def _entry(sample: Sample, image: Checked) -> bytes:
    """Two lines of JSON, what `stored` needs and what goes into the shard, then the image if it is nowhere else."""
    in_place = sample.place if image.change is None else None
    where = [str(in_place.path), in_place.offset, len(image.image)] if in_place else None
    sha256 = hashlib.sha256(sample.image).hexdigest()
    fields = {"name": sample.name, "sha256": sha256, "width": image.width, "height": image.height, **sample.fields}
    head = json.dumps([where, image.height, image.width, sha256])
    return f"{head}\n{json.dumps(fields)}\n".encode() + (b"" if where else image.image)


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{path} changed while it was sharded: {len(data)} of {size} bytes at {offset}")
    return data


def _save(checkup: Checkup, path: Path) -> None:
    counts = json.dumps([checkup.found, checkup.skipped, checkup.reencoded])
    arrays: dict[str, Any] = {f"entries_{split}": rows for split, rows in checkup.entries.items()}
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        np.savez(file, counts=np.array(counts), **arrays)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _load(path: Path) -> Checkup:
    with np.load(path, allow_pickle=False) as content:
        found, skipped, reencoded = (Counter[str](counts) for counts in json.loads(str(content["counts"])))
        names = [name for name in content.files if name.startswith("entries_")]
        return Checkup({name.removeprefix("entries_"): content[name] for name in names}, found, skipped, reencoded)
