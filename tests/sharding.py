"""Shards for tests: usual settings, the same bytes from any number of processes, and a reading with `tarfile` alone."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.config import Sharding
from pipelines.shard import write_shards
from pipelines.shards import Index
from pipelines.sources.base import Source


class Stored(NamedTuple):
    """A sample as it lies in a shard."""

    split: str
    key: str
    image: bytes
    fields: dict[str, Any]


def settings(samples: Mapping[str, int], **changes: object) -> Sharding:
    """Shards of 20 images, stored as they came, where a bad one is an error; `changes` replace any of that."""
    values = {
        "seed": 0, "samples_per_shard": 20, "stored_short_side": None, "max_pixels": 10**6, "max_bytes": 10**6,
        "bad_images": "error", "samples": samples,
    }  # fmt: skip
    return Sharding.model_validate({**values, **changes})


def digests(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def sharded(
    name: str, source: Source, raw: Path, folder: Path, settings: Sharding, processes: Iterable[int] = (1, 2)
) -> Index:
    """The index of the shards in `folder`, after each number of processes has written the same bytes there."""
    written = []
    for count in processes:
        shutil.rmtree(folder, ignore_errors=True)
        index = write_shards(name, source, raw, folder, settings, count)
        written.append(digests(folder))
        assert written[-1] == written[0], dict(written[-1].items() ^ written[0].items())
    return index


def stored(folder: Path, split: str = "*") -> dict[str, Stored]:
    """Name -> sample, in the order of the shards, each of which must hold pairs of an image and its fields."""
    found = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path, "r:") as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]
        for (name, image), (name_of_fields, text) in zip(members[::2], members[1::2], strict=True):
            key, fields = name.removesuffix(".jpg"), json.loads(text)
            assert (name, name_of_fields) == (f"{key}.jpg", f"{key}.json"), path
            assert fields["name"] not in found, f"{fields['name']} is stored twice"
            found[fields["name"]] = Stored(path.name.rpartition("-")[0], key, image, fields)
    return found
