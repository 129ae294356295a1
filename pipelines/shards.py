"""The shards' format: what is written between `shard` and `reader`, and how either side checks it.

A shard is a plain WebDataset tar (https://github.com/webdataset/webdataset) that any tar reader opens: per sample
`00000000.jpg`, then `00000000.json`; the key is the sample's place in its split. Beside `train-000000.tar` lies
`train-000000.npy`, which says where each image begins, and beside them all `index.json`, written last: a folder
that has one is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

INDEX = "index.json"
OFFSETS = ("image_offset", "image_bytes", "fields_offset", "fields_bytes", "height", "width")

# NumPy reads an array's header with `ast`, which counts the depth of all threads as one in CPython 3.11 and raises
# SystemError where another thread comes between (https://github.com/python/cpython/issues/106905).
_PARSING = Lock()

BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE

_CONFIG = ConfigDict(extra="forbid", strict=True)
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=_CONFIG)
class Shard:
    """One tar: its name, samples, size and sha256, and the sha256 of its offsets."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+-[0-9]{6}\.tar$")]  # never a path out of the folder
    samples: Positive
    bytes: Positive
    sha256: Digest
    offsets_sha256: Digest

    @property
    def offsets_name(self) -> str:
        """Name of the shard's offsets, an int64 (samples, 6) array with the columns `OFFSETS`."""
        return self.name.removesuffix(".tar") + ".npy"

    @property
    def offsets_bytes(self) -> int:
        """Size of that file."""
        return len(_npy(np.zeros((0, len(OFFSETS)), np.int64))) + self.samples * len(OFFSETS) * 8


@dataclass(frozen=True, config=_CONFIG)
class Split:
    """A part of a data set, such as `train`: its samples, dealt to shards in shuffled order."""

    samples: Positive
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> Split:
        held = sum(shard.samples for shard in self.shards)
        if held != self.samples:
            raise ValueError(f"{self.samples} samples are claimed, but the shards hold {held}")
        return self


@dataclass(frozen=True, config=_CONFIG)
class Index:
    """What `index.json` says of a data set's shards. `skipped` and `reencoded` count images by cause."""

    dataset: str
    classes: tuple[str, ...]  # in label order; empty where a data set has none
    splits: dict[str, Split]  # none: the data set is not given
    skipped: dict[str, Positive]
    reencoded: dict[str, Positive]

    @property
    def digest(self) -> str:
        """sha256 of `index.json`, and with it of every byte of the data: it holds the shards' own digests."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The file itself; the same index always gives the same bytes."""
        return _INDEX.dump_json(self, indent=1) + b"\n"


_INDEX = TypeAdapter(Index)


def read_index(folder: Path) -> Index:
    """The index of the shards in `folder`. Raises ValueError that names the file if it is absent or not ours."""
    path = folder / INDEX
    try:
        text = path.read_bytes()
        index = _INDEX.validate_json(text)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: {folder} holds no finished shards") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
    if index.to_json() != text:
        raise ValueError(f"{path} was edited: it is not in the form in which it is written")
    return index


def read_given(folder: Path) -> Index:
    """As `read_index`. Raises ValueError that says how to give it, too, for a data set that is not given."""
    index = read_index(folder)
    if not index.splits:
        key = f"scales.{folder.absolute().parent.parent.name}.datasets.{index.dataset}.origin"  # see `paths.shards`
        raise ValueError(
            f"{folder} has no split: data set {index.dataset} is not given; say in params.yaml ({key}) where it is"
        )
    return index


def read_split(folder: Path, split: str) -> Split:
    """A split of the shards in `folder`. Raises ValueError that names those that there are, and as `read_given`."""
    splits = read_given(folder).splits
    if split not in splits:
        raise ValueError(f"{folder} has no split {split!r}; there are: {', '.join(sorted(splits))}")
    return splits[split]


def read_fields(folder: Path, shard: Shard) -> Iterator[dict[str, Any]]:
    """The JSON fields of each sample of a shard, in order. Raises as `verify`."""
    offsets = read_offsets(folder, shard)
    columns = [OFFSETS.index(name) for name in ("fields_offset", "fields_bytes")]
    with (
        (folder / shard.name).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar,
    ):
        for start, size in offsets[:, columns].tolist():
            yield json.loads(tar[start : start + size])


def read_offsets(folder: Path, shard: Shard) -> npt.NDArray[np.int64]:
    """Where a shard's samples lie, (samples, 6), once its bytes are known to be right. Raises as `verify`."""
    verify(folder, shard)
    path = folder / shard.offsets_name
    try:
        offsets: npt.NDArray[np.int64] = load_array(path)
    except ValueError as error:  # as of a pickle
        raise ValueError(f"{path} holds no offsets: {error}") from None
    if offsets.shape != (shard.samples, len(OFFSETS)):
        raise ValueError(f"{path} has shape {offsets.shape}, the index says {shard.samples} samples")
    return offsets


def load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> Any:
    """`numpy.load` of an array that holds no objects, which several threads may call. Raises ValueError for others."""
    with _PARSING:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def verify(folder: Path, shard: Shard) -> None:
    """Pass if the tar and its offsets are the bytes that the index promises. Raises ValueError naming the file."""
    path = folder / shard.name
    size = _size(path)
    if size != shard.bytes:
        raise ValueError(f"{path} has {size} bytes, the index says {shard.bytes}: it is cut or was replaced")
    offsets = folder / shard.offsets_name
    _size(offsets)
    for file, expected in ((path, shard.sha256), (offsets, shard.offsets_sha256)):
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise ValueError(f"{file} has sha256 {found}, the index says {expected}: it is corrupt")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist, but the index lists it") from None


class Stored(NamedTuple):
    """One sample as it goes into a shard. `fields`: its JSON, encoded; height and width of `image` in pixels."""

    key: int
    image: bytes
    fields: bytes
    height: int
    width: int


def write_shard(folder: Path, name: str, samples: Iterable[Stored]) -> Shard:
    """Write `<name>.tar` and `<name>.npy`, and say what was written.

    The bytes are those that the standard library's `tarfile` writes in USTAR format, with time, owner and group 0:
    they depend on the samples alone.
    """
    digest = hashlib.sha256()
    offsets: list[tuple[int, ...]] = []
    position = 0
    with (folder / f"{name}.tar").open("wb") as file:
        for key, image, fields, height, width in samples:
            chunk = b"".join(_member(b"%08d.jpg" % key, image) + _member(b"%08d.json" % key, fields))
            image_offset = position + BLOCK
            fields_offset = image_offset + _padded(len(image)) + BLOCK
            offsets.append((image_offset, len(image), fields_offset, len(fields), height, width))
            digest.update(chunk)
            file.write(chunk)
            position += len(chunk)
        end = bytes(-(position + 2 * BLOCK) % RECORD + 2 * BLOCK)
        digest.update(end)
        file.write(end)
    table = _npy(np.array(offsets, dtype=np.int64).reshape(-1, len(OFFSETS)))
    (folder / f"{name}.npy").write_bytes(table)
    return Shard(
        name=f"{name}.tar",
        samples=len(offsets),
        bytes=position + len(end),
        sha256=digest.hexdigest(),
        offsets_sha256=hashlib.sha256(table).hexdigest(),
    )


def _npy(table: npt.NDArray[np.int64]) -> bytes:
    file = io.BytesIO()
    np.save(file, table, allow_pickle=False)
    return file.getvalue()


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _template() -> bytes:
    info = tarfile.TarInfo("\0")  # patched below: name, size and checksum differ from member to member
    info.mode = 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)


# Fields of a header: name 0-99, mode, uid, gid 100-123, size 124-135, mtime 136-147, checksum 148-155 (POSIX ustar).
_TEMPLATE = _template()
_OWNER, _TIME, _REST = _TEMPLATE[100:124], _TEMPLATE[136:148], _TEMPLATE[156:]
_FIXED_SUM = sum(_OWNER + _TIME + _REST) + 8 * ord(" ")  # a checksum counts itself as blanks


def _member(name: bytes, payload: bytes) -> tuple[bytes, ...]:
    """Header, payload and padding. Only the three fields that differ are made: a fraction of `tarfile`'s cost."""
    size = b"%011o\0" % len(payload)
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(name) + sum(size))
    return (name.ljust(100, b"\0"), _OWNER, size, _TIME, checksum, _REST, payload, bytes(-len(payload) % BLOCK))
