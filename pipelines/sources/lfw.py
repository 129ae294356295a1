"""Labeled Faces in the Wild as its authors publish it (http://vis-www.cs.umass.edu/lfw/): an archive and two lists.

The archive is one of three, with the same 13,233 images of 5,749 people under the same names: `lfw.tgz` as they were
found, `lfw-funneled.tgz` and `lfw-deepfunneled.tgz` aligned. All of it is one split, `test`: nothing here is trained on
it. `people.txt` lists the people of each of ten folds and how many images each has, `pairs.txt` the pairs of images, as
many genuine (one person) as impostor (two people) ones in each fold.

The 6,000 pairs of `pairs.txt` cannot tell a rate of false accepts below 1/3000. For 1e-4 every two images are compared,
which are 87,549,528 pairs: `count_pairs` says how many of them there must be of each kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.archives import Member, members, opened, read
from pipelines.sources.base import NoOptions, Pair, Sample, Source

# Archive -> its only folder (torchvision, datasets/lfw.py).
ARCHIVES = {"lfw.tgz": "lfw", "lfw-funneled.tgz": "lfw_funneled", "lfw-deepfunneled.tgz": "lfw-deepfunneled"}
PEOPLE, PAIRS = "people.txt", "pairs.txt"

UNIT = 2_000  # images; a gzip stream is read from its start for each unit
MAX_MEMBERS = 100_000  # upstream: 13,233 images in 5,749 folders
MAX_IMAGE_BYTES = 1 << 24  # upstream: about 15 kB, of 250 x 250 pixels
MAX_LIST_BYTES = 1 << 24  # upstream: 155 kB

_NUMBER = re.compile(r"[1-9][0-9]{0,3}")

People = dict[str, int]  # of a fold: name, such as "George_W_Bush" -> number of images


class PairCounts(NamedTuple):
    """Into how many pairs of two different images a set of images can be put."""

    genuine: int  # the same person on both
    impostor: int

    @property
    def total(self) -> int:
        return self.genuine + self.impostor


class Unit(NamedTuple):
    """A run of images in the archive's order."""

    path: Path
    images: tuple[Member, ...]


def classes(_folder: Path) -> list[str]:
    """None: people are told apart by `identity`."""
    return []


def units(folder: Path, _options: NoOptions) -> list[Unit]:
    """Runs of images in the archive's order.

    Raises ValueError unless there is one archive, it holds the images that `people.txt` counts, and `pairs.txt` speaks
    of these.
    """
    path, root = _archive(folder)
    people = read_people(folder / PEOPLE)
    read_pairs(folder / PAIRS, people)
    images = _images(path, root)
    _check_images(path, {member.name for member in images}, people)
    return [Unit(path, images[start : start + UNIT]) for start in range(0, len(images), UNIT)]


def samples(unit: Unit) -> Iterator[Sample]:
    """The images of a unit with the person's name, read in one pass over the archive."""
    with opened(unit.path) as file:
        for member in unit.images:
            image = read(file, str(unit.path), member)
            yield Sample("test", member.name, image, {"identity": member.name.split("/")[0]})


def read_people(path: Path) -> list[People]:
    """`people.txt`: the people of each fold and the number of their images.

    Raises ValueError that names the line for a count that is none or does not fit the rows, and for a name that comes
    twice.
    """
    lines = _lines(path)
    folds: list[People] = []
    seen: set[str] = set()
    for fold in range(_count(path, lines, "of folds")):
        people: People = {}
        for _ in range(_count(path, lines, f"of people in fold {fold + 1}")):
            line, cells = _next(path, lines, f"a person of fold {fold + 1}")
            if len(cells) != 2 or not _is_name(cells[0]) or not _NUMBER.fullmatch(cells[1]):
                raise ValueError(f"{path} line {line}: {cells} is not a name and a number of images in 1..9999")
            if cells[0] in seen:
                raise ValueError(f"{path} line {line}: {cells[0]} comes twice")
            seen.add(cells[0])
            people[cells[0]] = int(cells[1])
        folds.append(people)
    _check_end(path, lines)
    return folds


def read_pairs(path: Path, people: list[People]) -> list[Pair]:
    """`pairs.txt`: for each fold its genuine pairs, then as many impostor pairs. people: what `read_people` gives.

    Raises ValueError that names the line for a pair that is not of its kind, of an image or a person that `people` does
    not have, or with a person of another fold's pairs, for a pair that comes twice, and where the counts in the first
    line do not fit the rows, or the folds those of `people`.
    """
    lines = _lines(path)
    line, cells = _next(path, lines, "the numbers of folds and pairs")
    if len(cells) != 2 or not all(_NUMBER.fullmatch(cell) for cell in cells):
        raise ValueError(f"{path} line {line}: {cells} is not a number of folds and one of pairs in 1..9999")
    folds, count = map(int, cells)
    if folds != len(people):
        raise ValueError(f"{path} has {folds} folds, {PEOPLE} has {len(people)}")
    images = {name: number for fold in people for name, number in fold.items()}
    fold_of: dict[str, int] = {}
    pairs: dict[frozenset[str], Pair] = {}
    for fold, is_same in ((fold, is_same) for fold in range(folds) for is_same in (True, False)):
        for _ in range(count):
            line, cells = _next(path, lines, f"a pair of fold {fold + 1}")
            where = f"{path} line {line}"
            pair = _pair(where, cells, fold, is_same, images)
            for name in cells[:1] if is_same else cells[::2]:
                if fold_of.setdefault(name, fold) != fold:
                    raise ValueError(f"{where}: {name} is in fold {fold + 1} and in fold {fold_of[name] + 1}")
            if pairs.setdefault(frozenset(pair[1:3]), pair) is not pair:
                raise ValueError(f"{where}: the pair {pair.first}, {pair.second} comes twice")
    _check_end(path, lines)
    return list(pairs.values())


def count_pairs(people: list[People]) -> PairCounts:
    """How many pairs all images make: n(n - 1)/2 genuine ones of a person with n images, and the rest.

    For the people.txt of LFW: 13,233 images, so that both together are 87,549,528.
    """
    counts = [count for fold in people for count in fold.values()]
    genuine = sum(count * (count - 1) // 2 for count in counts)
    return PairCounts(genuine, sum(counts) * (sum(counts) - 1) // 2 - genuine)


def _archive(folder: Path) -> tuple[Path, str]:
    there = [name for name in ARCHIVES if (folder / name).exists()]
    if len(there) != 1:
        what = " and ".join(there) or "no archive"
        raise ValueError(f"{folder} holds {what}: it must hold one of {', '.join(ARCHIVES)}")
    return folder / there[0], ARCHIVES[there[0]]


def _images(path: Path, root: str) -> tuple[Member, ...]:
    """What the archive holds, named "<person>/<person>_<number>.jpg", by its headers."""
    form = re.compile(rf"{root}/([^/]+/[^/]+\.jpg)")
    with opened(path) as file:
        every = members(file, str(path), max_members=MAX_MEMBERS, max_bytes=MAX_IMAGE_BYTES)
        # What is no image is passed over: lfw-funneled.tgz has lists of pairs too.
        found = [member._replace(name=match[1]) for member in every if (match := form.fullmatch(member.name))]
        while file.read(1 << 20):  # to the stream's end, where gzip compares its checksum
            pass
    return tuple(found)


def _check_images(path: Path, found: set[str], people: list[People]) -> None:
    wanted = {_image(name, number) for fold in people for name, count in fold.items() for number in range(1, count + 1)}
    odd = ", ".join(sorted(found ^ wanted)[:5])
    if odd:
        raise ValueError(f"{path} holds {len(found)} images, {PEOPLE} counts {len(wanted)}; in one of them only: {odd}")


def _image(name: str, number: int) -> str:
    return f"{name}/{name}_{number:04d}.jpg"


def _pair(where: str, cells: list[str], fold: int, is_same: bool, images: People) -> Pair:
    if len(cells) != (3 if is_same else 4):
        form = "name, number, number" if is_same else "name, number, name, number"
        raise ValueError(f"{where}: {cells} is not {form}, as a{' genuine' if is_same else 'n impostor'} pair is")
    sides = [(cells[0], cells[1]), (cells[0], cells[2]) if is_same else (cells[2], cells[3])]
    for name, number in sides:
        if name not in images:
            raise ValueError(f"{where}: {name!r} is not in {PEOPLE}")
        if not _NUMBER.fullmatch(number) or int(number) > images[name]:
            raise ValueError(f"{where}: {number!r} is not an image of {name} in 1..{images[name]}")
    if sides[0] == sides[1] or (sides[0][0] == sides[1][0]) != is_same:
        kind = "two images of one person" if is_same else "images of two people"
        raise ValueError(f"{where}: {cells} is not {kind}")
    first, second = (_image(name, int(number)) for name, number in sides)
    return Pair(fold, first, second, is_same)


def _is_name(text: str) -> bool:
    """Whether it can be a folder of the archive."""
    return bool(text) and "/" not in text and text not in (".", "..")


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every line's number, from 1 on, and its cells between tabs."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.stat().st_size > MAX_LIST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, allowed are {MAX_LIST_BYTES}")
    text = path.read_bytes().decode("utf-8", "replace")
    yield from ((number, line.strip().split("\t")) for number, line in enumerate(text.splitlines(), start=1))


def _next(path: Path, lines: Iterator[tuple[int, list[str]]], what: str) -> tuple[int, list[str]]:
    found = next(lines, None)
    if found is None:
        raise ValueError(f"{path} is cut: it ends where {what} should stand")
    return found


def _count(path: Path, lines: Iterator[tuple[int, list[str]]], what: str) -> int:
    line, cells = _next(path, lines, f"the number {what}")
    if len(cells) != 1 or not _NUMBER.fullmatch(cells[0]):
        raise ValueError(f"{path} line {line}: {cells} is not the number {what} in 1..9999")
    return int(cells[0])


def _check_end(path: Path, lines: Iterator[tuple[int, list[str]]]) -> None:
    for line, cells in lines:
        if cells != [""]:
            raise ValueError(f"{path} line {line}: {cells} is more than the counts before it announce")


def _pairs(folder: Path) -> list[Pair]:
    return read_pairs(folder / PAIRS, read_people(folder / PEOPLE))


SOURCE = Source(classes, units, samples, pairs=_pairs)
