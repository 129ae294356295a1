"""CelebA as its authors publish it (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html): a zip and lists in plain text.

`img_align_celeba.zip` holds the aligned faces as `img_align_celeba/000001.jpg` and so on. `list_attr_celeba.txt` begins
with the number of images and a line of 40 names, then has a row of -1 and 1 for each image; `identity_CelebA.txt` says
who is on each image, `list_eval_partition.txt` in which split it is, both without a header. Row k of each list is image
k. Two more lists are not read: `list_landmarks_align_celeba.txt`, since nothing here needs landmarks, and
`list_bbox_celeba.txt`, whose boxes are those of the images before they were aligned and cropped, so that they do not
fit these (https://github.com/pytorch/vision/issues/9008).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.sources.base import NoOptions, Place, Sample, Source
from pipelines.zips import ZipMember, read_zip, zip_members

IMAGES, ATTRIBUTES = "img_align_celeba.zip", "list_attr_celeba.txt"
IDENTITIES, PARTITION = "identity_CelebA.txt", "list_eval_partition.txt"
SPLITS = {"0": "train", "1": "val", "2": "test"}  # upstream: 162,770, 19,867 and 19,962 images
NUM_ATTRIBUTES = 40

UNIT = 1_000  # images
MAX_IMAGES = 1_000_000  # upstream: 202,599; their numbers have six digits
MAX_IMAGE_BYTES = 1 << 24  # upstream: about 7 kB, of 178 x 218 pixels
MAX_LINE = 1 << 12  # bytes; upstream: 466

_IMAGE = re.compile(r"img_align_celeba/([0-9]{6}\.jpg)")
_COUNT = re.compile(r"[1-9][0-9]{0,5}")
_IDENTITY = re.compile(r"[1-9][0-9]{0,8}")
_BITS = {"-1": 0, "1": 1}


class Unit(NamedTuple):
    """A run of images, in place, with what the lists say of each."""

    path: Path
    first: int  # number of the first image
    images: tuple[ZipMember, ...]
    attributes: tuple[bytes, ...]  # of each image, one byte for each attribute: 0 or 1
    identities: tuple[str, ...]
    splits: tuple[str, ...]


def classes(folder: Path) -> list[str]:
    """The names of the 40 attributes, such as "Eyeglasses", in the order of the list's columns."""
    _, names = _header(folder / ATTRIBUTES, _words(folder / ATTRIBUTES))
    return names


def units(folder: Path, _options: NoOptions) -> list[Unit]:
    """Runs of images by number, whatever their splits.

    Found from the lists and the zip's directory. Raises ValueError unless all of them have a row or an image for each
    of the images that the list of attributes counts in its first line.
    """
    attributes = _attributes(folder / ATTRIBUTES)
    identities = _column(folder / IDENTITIES, len(attributes))
    for row, identity in enumerate(identities, start=1):
        if not _IDENTITY.fullmatch(identity):
            raise ValueError(f"{folder / IDENTITIES} line {row}: {identity!r} is not the number of a person")
    partition = _column(folder / PARTITION, len(attributes))
    for row, part in enumerate(partition, start=1):
        if part not in SPLITS:
            raise ValueError(f"{folder / PARTITION} line {row}: {part!r} is not one of {', '.join(SPLITS)}")
    images = _images(folder / IMAGES, len(attributes))
    found = []
    for start in range(0, len(images), UNIT):
        here = slice(start, start + UNIT)
        splits = tuple(SPLITS[part] for part in partition[here])
        rows = tuple(attributes[here]), tuple(identities[here]), splits
        found.append(Unit(folder / IMAGES, start + 1, tuple(images[here]), *rows))
    return found


def samples(unit: Unit) -> Iterator[Sample]:
    """The images of a unit with their attributes and the person's number, by the images' numbers."""
    rows = zip(unit.images, unit.attributes, unit.identities, unit.splits, strict=True)
    with unit.path.open("rb") as file:
        for number, (member, attributes, identity, split) in enumerate(rows, start=unit.first):
            image, offset = read_zip(file, str(unit.path), member)
            place = None if offset is None else Place(unit.path, offset)
            yield Sample(split, _name(number), image, {"attributes": list(attributes), "identity": identity}, place)


def _name(number: int) -> str:
    return f"{number:06d}.jpg"


def _images(path: Path, count: int) -> list[ZipMember]:
    """The images 1..`count` in their order. What is no image is passed over."""
    members = zip_members(path, max_members=MAX_IMAGES, max_bytes=MAX_IMAGE_BYTES)
    found = {match[1]: member for member in members if (match := _IMAGE.fullmatch(member.name))}
    wanted = [_name(number) for number in range(1, count + 1)]
    odd = sorted(found.keys() ^ set(wanted))
    if odd:
        raise ValueError(
            f"{path} holds {len(found)} images, {ATTRIBUTES} lists {count}; in one of them only: {', '.join(odd[:5])}"
        )
    return [found[name] for name in wanted]


def _attributes(path: Path) -> list[bytes]:
    """For each image, one byte for each attribute: 0 or 1."""
    lines = _words(path)
    count, names = _header(path, lines)
    rows: list[bytes] = []
    for line, words in lines:
        if len(words) != 1 + len(names) or not _BITS.keys() >= set(words[1:]):
            raise ValueError(f"{path} line {line}: not an image and {len(names)} values of -1 or 1: {_shown(words)}")
        rows.append(bytes(_BITS[word] for word in words[1:]))
        _check_name(path, line, words[0], len(rows))
    if len(rows) != count:
        raise ValueError(f"{path} has {len(rows)} rows, its first line says {count}")
    return rows


def _header(path: Path, lines: Iterator[tuple[int, list[str]]]) -> tuple[int, list[str]]:
    """The number of images and the attributes' names: the first two lines."""
    _, words = next(lines, (1, []))
    if len(words) != 1 or not _COUNT.fullmatch(words[0]):
        raise ValueError(f"{path} line 1: not a number of images: {_shown(words)}")
    _, names = next(lines, (2, []))
    if len(names) != NUM_ATTRIBUTES or len(set(names)) != len(names):
        raise ValueError(
            f"{path} line 2: {len(set(names))} names of attributes, there should be {NUM_ATTRIBUTES}: {_shown(names)}"
        )
    return int(words[0]), names


def _column(path: Path, count: int) -> list[str]:
    """What a list without a header, of `count` rows, says of each image."""
    values: list[str] = []
    for line, words in _words(path):
        if len(words) != 2:
            raise ValueError(f"{path} line {line}: not an image and one value: {_shown(words)}")
        values.append(words[1])
        _check_name(path, line, words[0], len(values))
    if len(values) != count:
        raise ValueError(f"{path} has {len(values)} rows, {ATTRIBUTES} has {count}")
    return values


def _check_name(path: Path, line: int, name: str, number: int) -> None:
    if name != _name(number):
        raise ValueError(
            f"{path} line {line}: {name!r} stands where {_name(number)!r} should: upstream leaves none out"
        )


def _words(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every line's number, from 1 on, and what stands in it between runs of blanks.

    Some lists have CR LF and some LF at the ends of their lines, and the last line of some has neither.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=1):
                yield number, line.decode("ascii", "replace").split()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None


def _shown(words: list[str]) -> str:
    text = " ".join(words)
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


SOURCE = Source(classes, units, samples)
