"""ILSVRC2012 as its organisers publish it (https://image-net.org/challenges/LSVRC/2012/): three archives.

`ILSVRC2012_img_train.tar` holds a tar per synset, `ILSVRC2012_img_val.tar` the validation images, the devkit the list
of synsets and the validation ground truth. A label is the rank of a leaf's WNID in sorted order, as everywhere in the
field; the devkit's ILSVRC2012_ID is another numbering, used by the ground truth alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipelines.archives import Member, members, opened, read
from pipelines.matlab import read_mat
from pipelines.sources.base import NoOptions, Place, Sample, Source

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT, META, TRUTH = "ILSVRC2012_devkit_t12.tar.gz", "meta.mat", "ILSVRC2012_validation_ground_truth.txt"

VAL_UNIT = 2_000  # images
MAX_IMAGES = 100_000  # in one archive; upstream: 50,000 in val, up to 1,300 in an inner tar
MAX_IMAGE_BYTES = 1 << 26  # upstream: 15 MB at most
MAX_TAR_BYTES = 1 << 33
MAX_DEVKIT_FILES, MAX_DEVKIT_BYTES = 1_000, 1 << 26


class Synset(NamedTuple):
    """A leaf of `meta.mat`: a class."""

    number: int  # ILSVRC2012_ID
    wnid: str
    words: str
    images: int  # in train


class TrainUnit(NamedTuple):
    """One inner tar, in place."""

    path: Path
    tar: Member
    wnid: str
    label: int
    images: int


class ValUnit(NamedTuple):
    """A slice of the validation images."""

    path: Path
    images: tuple[Member, ...]
    labels: tuple[int, ...]


def classes(folder: Path) -> list[str]:
    """The leaves as "WNID words", such as "n01440764 tench, Tinca tinca", in label order."""
    leaves, _ = _devkit(folder / DEVKIT)
    return [f"{leaf.wnid} {leaf.words}" for leaf in leaves]


def units(folder: Path, _options: NoOptions) -> list[TrainUnit | ValUnit]:
    """Inner tars by WNID, then slices of the validation images by name.

    Found from the archives' headers alone. Raises ValueError where train tar, val tar and devkit disagree.
    """
    leaves, truth = _devkit(folder / DEVKIT)
    return [*_train_units(folder / TRAIN, leaves), *_val_units(folder / VAL, leaves, truth)]


def samples(unit: TrainUnit | ValUnit) -> Iterator[Sample]:
    """The images of a unit with their labels, in the archive's order."""
    return _train_samples(unit) if isinstance(unit, TrainUnit) else _val_samples(unit)


def _train_units(path: Path, leaves: list[Synset]) -> list[TrainUnit]:
    with opened(path) as file:
        found = members(file, str(path), max_members=MAX_IMAGES, max_bytes=MAX_TAR_BYTES)
        tars = {member.name.removesuffix(".tar"): member for member in found}
    wnids = [leaf.wnid for leaf in leaves]
    if sorted(tars) != wnids:
        odd = sorted(set(tars) ^ set(wnids))
        raise ValueError(
            f"{path} holds {len(tars)} classes, {DEVKIT} lists {len(wnids)}; in one of them only: {', '.join(odd[:5])}"
        )
    return [TrainUnit(path, tars[leaf.wnid], leaf.wnid, label, leaf.images) for label, leaf in enumerate(leaves)]


def _val_units(path: Path, leaves: list[Synset], truth: list[int]) -> list[ValUnit]:
    with opened(path) as file:
        images = sorted(members(file, str(path), max_members=MAX_IMAGES, max_bytes=MAX_IMAGE_BYTES))
    if len(images) != len(truth):
        raise ValueError(f"{path} holds {len(images)} images, {TRUTH} of {DEVKIT} has {len(truth)} lines")
    label_of = {leaf.number: label for label, leaf in enumerate(leaves)}
    labels = [label_of[number] for number in truth]
    return [
        ValUnit(path, tuple(images[start : start + VAL_UNIT]), tuple(labels[start : start + VAL_UNIT]))
        for start in range(0, len(images), VAL_UNIT)
    ]


def _train_samples(unit: TrainUnit) -> Iterator[Sample]:
    archive = f"{unit.path}:{unit.tar.name}"
    found = 0
    with opened(unit.path) as file:
        images = members(file, archive, max_members=MAX_IMAGES, max_bytes=MAX_IMAGE_BYTES, within=unit.tar)
        for image in images:
            found += 1
            if not image.name.startswith(f"{unit.wnid}_"):
                raise ValueError(f"{archive}: member {image.name!r} is not an image of {unit.wnid}")
            place = Place(unit.path, image.offset)
            name = f"{unit.wnid}/{image.name}"
            yield Sample("train", name, read(file, archive, image), {"label": unit.label}, place)
    if found != unit.images:
        raise ValueError(f"{archive} holds {found} images, {META} of {DEVKIT} says {unit.images}")


def _val_samples(unit: ValUnit) -> Iterator[Sample]:
    with opened(unit.path) as file:
        for image, label in zip(unit.images, unit.labels, strict=True):
            place = Place(unit.path, image.offset)
            yield Sample("val", image.name, read(file, str(unit.path), image), {"label": label}, place)


def _devkit(path: Path) -> tuple[list[Synset], list[int]]:
    """The leaves sorted by WNID, and the ILSVRC2012_IDs of the validation images in order of their names."""
    wanted: dict[str, bytes] = {}
    with opened(path) as file:
        for member in members(file, str(path), max_members=MAX_DEVKIT_FILES, max_bytes=MAX_DEVKIT_BYTES):
            if PurePosixPath(member.name).name in (META, TRUTH):
                wanted[PurePosixPath(member.name).name] = read(file, str(path), member)
    for name in (META, TRUTH):
        if name not in wanted:
            raise ValueError(f"{path} has no member {name}")
    leaves = _leaves(wanted[META], f"{path}:{META}")
    lines = wanted[TRUTH].decode("ascii", "replace").split()
    numbers = {str(leaf.number) for leaf in leaves}
    for line, number in enumerate(lines, start=1):
        if number not in numbers:
            raise ValueError(f"{path}:{TRUTH} line {line}: {number!r} is not an ILSVRC2012_ID in 1..{len(leaves)}")
    return leaves, [int(number) for number in lines]


def _leaves(mat: bytes, where: str) -> list[Synset]:
    try:
        table = read_mat(mat, where)["synsets"]
        columns = {name: table[name].tolist() for name in (
            "ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images")}  # fmt: skip
        rows = list(zip(*columns.values(), strict=True))
        leaves = [Synset(int(number), str(wnid), str(words), int(images))
                  for number, wnid, words, children, images in rows if int(children) == 0]  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is not the devkit's list of synsets: {error!r}") from error
    if sorted(leaf.number for leaf in leaves) != list(range(1, len(leaves) + 1)):
        raise ValueError(f"{where}: the ILSVRC2012_IDs of the {len(leaves)} leaves are not 1..{len(leaves)}")
    if len({leaf.wnid for leaf in leaves}) != len(leaves):
        raise ValueError(f"{where}: two of the {len(leaves)} leaves have the same WNID")
    return sorted(leaves, key=lambda leaf: leaf.wnid)


SOURCE = Source(classes, units, samples)
