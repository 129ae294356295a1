"""Noisy dogs from the web: Goldfinch's image searches for the breeds of Stanford Dogs, crawled.

From Stanford Dogs itself come the labels (`lists.tar`) and the test images (`images.tar`), of which no copy may be
trained on. What is left out, as Krause et al. did (arXiv 1511.06789): images that answer more than one breed's query,
what is dead, and near-duplicates of test images. `wanted` makes the list for `pipelines.crawl`; then `select` decides,
writes `selection.json` and counts. The labels that remain are as noisy as the search was.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from pipelines.archives import Member, opened, read
from pipelines.crawl import RECORD, Part, Wanted, crawled, read_part
from pipelines.files import digest, read_json, write_json
from pipelines.images import BadImage, check
from pipelines.near_duplicates import Hashes, near, phash
from pipelines.pool import pool
from pipelines.section import Section
from pipelines.sources import stanford_dogs
from pipelines.sources.base import Sample, Source
from pipelines.sources.goldfinch import BREEDS, URLS, Mask, Numbers, breeds_of, is_first, labels_of_ids, lines, sift

SELECTION = "selection.json"

MAX_PIXELS, MAX_BYTES = 64_000_000, 1 << 26  # as in params.yaml: what is larger is left out here, and counted
TESTS = 500  # images that one worker hashes


class Options(Section):
    """`shard.options` of params.yaml.

    near_duplicate_bits: an image whose perceptual hash differs from a test image's in so many of 64 bits or fewer is
    taken for a copy of it. Of 1,500 pictures of `pipelines.samples.drawing`, at 128 to 500 pixels, the copies at half
    and double size, and those of JPEG quality 50, were at most 4 bits away; at 0.3 of the size and quality 50, 98.6 %
    were within 6. Of the 1.1 million pairs of different pictures, the nearest were 10 apart. Mirrored copies are not
    found, nor cropped ones: a margin of 5 % moves a hash by 12 bits. For hashes drawn at random, 6 bits would meet 0.01
    of the 2.6 billion pairs of 300,000 images and 8,580 test images.
    """

    near_duplicate_bits: Annotated[int, Field(ge=0, le=32)] = 6


class Unit(NamedTuple):
    """A part of the crawl, and which of its images are kept."""

    part: Part
    keys: tuple[str, ...]


class Hashed(NamedTuple):
    """What `select` knows of a part's images: those that can be read, and why others cannot."""

    keys: list[str]
    labels: list[int]
    digests: list[bytes]
    hashes: Hashes
    bad: Counter[str]


def classes(folder: Path) -> list[str]:
    """Those of Stanford Dogs, in the same order."""
    return stanford_dogs.classes(folder)


def units(folder: Path, options: Options) -> list[Unit]:
    """The parts of the crawl. Raises ValueError where `select` has not been called for this crawl and these options."""
    path = folder / SELECTION
    if not path.is_file():
        raise ValueError(f"{path} does not exist: fetch the data set first")
    selection = read_json(path)
    if selection["made_of"] != _made_of(folder, options):
        raise ValueError(f"{path} was made of another crawl or with other options: fetch the data set again")
    kept = selection["kept"]
    return [Unit(part, tuple(kept[part.path.name])) for part in crawled(folder) if kept[part.path.name]]


def samples(unit: Unit) -> Iterator[Sample]:
    """The images of a part that are kept, in the list's order; a name is the breed's WNID and the line's number."""
    keys = set(unit.keys)
    for key, image, fields, place in read_part(unit.part):
        if key in keys:
            keys.remove(key)
            yield Sample("train", key, image, {"label": fields["label"]}, place)
    if keys:
        raise ValueError(f"{unit.part.path} has no image {min(keys)!r}, which {SELECTION} keeps")


def wanted(folder: Path, _options: Options) -> Iterator[Wanted]:
    """The images of the list that answer the query of one breed alone, and that breed is one of Stanford Dogs'."""
    breeds, labels = classes(folder), _labels(folder)
    keep, _ = sift(folder / URLS, labels)
    for line, is_kept in zip(lines(folder / URLS), keep, strict=True):
        if is_kept:
            label = labels[line.breed]
            yield Wanted(f"{breeds[label][:9]}/{line.number:07d}", line.urls, {"label": label})


def select(folder: Path, options: Options, processes: int | None = None) -> dict[str, Any]:
    """Choose from what was crawled, write that to `selection.json`, and return the counts of all that was left out.

    processes: as `pipelines.pool.pool`. Held of each image: key, label, hash and digest, about 300 bytes.
    """
    _, counts = sift(folder / URLS, _labels(folder))
    parts, tests = crawled(folder), stanford_dogs.images_of(folder, "test")
    pieces = [tests[start : start + TESTS] for start in range(0, len(tests), TESTS)]
    with pool(processes) as run:
        test_hashes = np.concatenate(list(run(partial(_hash_tests, folder / stanford_dogs.IMAGES), pieces)))
        found = list(run(_hash_part, parts))
    labels = np.array([label for part in found for label in part.labels], dtype=np.int64)
    is_across, is_again = _same_bytes([digest for part in found for digest in part.digests], labels)
    hashes = np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in found)])
    is_near = near(hashes, test_hashes, options.near_duplicate_bits) & ~is_across & ~is_again
    keep = iter((~(is_across | is_again | is_near)).tolist())
    kept = {
        part.path.name: [key for key in hashed.keys if next(keep)] for part, hashed in zip(parts, found, strict=True)
    }
    crawl = read_json(folder / "crawl" / RECORD)
    result = {
        **counts, "wanted": crawl["wanted"], "dead": crawl["dead"],
        "bad": dict(sorted(sum((part.bad for part in found), Counter[str]()).items())),
        "bytes_of_several_breeds": int(is_across.sum()), "bytes_again": int(is_again.sum()),
        "near_duplicates": int(is_near.sum()), "kept": sum(map(len, kept.values())),
    }  # fmt: skip
    write_json(folder / SELECTION, {"made_of": _made_of(folder, options), "counts": result, "kept": kept})
    return {**result, "digest": digest(folder / SELECTION, "sha256")}


def _labels(folder: Path) -> dict[str, int]:
    """Freebase id -> label."""
    return labels_of_ids(folder / BREEDS, [breed[10:] for breed in classes(folder)])


def _hash_tests(path: Path, tests: list[Member]) -> Hashes:
    hashes = []
    with opened(path) as file:
        for member in tests:
            try:
                hashes.append(_hash(read(file, str(path), member)))
            except BadImage as error:
                raise ValueError(f"{path}: test image {member.name}: {error.cause}") from None
    return np.array(hashes, dtype=np.uint64)


def _hash(image: bytes) -> np.uint64:
    """Of the picture as it would be trained on: upright, in whatever format it came."""
    return phash(check(image, MAX_PIXELS, MAX_BYTES).image)


def _hash_part(part: Part) -> Hashed:
    found = Hashed([], [], [], np.empty(0, np.uint64), Counter())
    hashes = []
    for key, image, fields, _ in read_part(part):
        try:
            hashes.append(_hash(image))
        except BadImage as error:
            found.bad[error.cause] += 1
            continue
        found.keys.append(key)
        found.labels.append(fields["label"])
        found.digests.append(hashlib.sha256(image).digest())
    return found._replace(hashes=np.array(hashes, dtype=np.uint64))


def _same_bytes(digests: list[bytes], labels: Numbers) -> tuple[Mask, Mask]:
    """Which images are, byte for byte, those of several breeds; and which of the others come again in their breed."""
    number_of: dict[bytes, int] = {}
    numbers = np.array([number_of.setdefault(digest, len(number_of)) for digest in digests], dtype=np.int64)
    is_across = breeds_of(numbers, labels) > 1
    return is_across, ~is_across & ~is_first(numbers)


def _made_of(folder: Path, options: Options) -> dict[str, Any]:
    """What a selection depends on."""
    return {"crawl": digest(folder / "crawl" / RECORD, "sha256"), **options.model_dump()}


SOURCE = Source(classes, units, samples, Options, wanted=wanted, select=select)
