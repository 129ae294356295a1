"""Goldfinch's lists (https://github.com/google/goldfinch, README.md): URLs by breed, and the names of the breeds.

`dog_urls.txt` has a line for each image of an image search: the Freebase id of the breed that was searched for, and the
URLs at which the same image lies. `sdog_classes.txt` joins the 120 breeds of Stanford Dogs to those ids.
"""

from __future__ import annotations

import csv
import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

URLS, BREEDS = "dog_urls.txt", "sdog_classes.txt"

_ID = re.compile(r"/m/[0-9a-z_]+", re.ASCII)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE | re.ASCII)
_HTTP = re.compile(r"https?://", re.IGNORECASE)

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Line(NamedTuple):
    """An image of the list: the id of the breed that was searched for, and where it lies."""

    number: int  # from 1
    breed: str
    urls: tuple[str, ...]


def labels_of_ids(path: Path, breeds: list[str]) -> dict[str, int]:
    """Freebase id -> rank in `breeds`, the names of Stanford Dogs, among which names are unique.

    The names are compared in lower case, with "_" for "-" and blanks. Raises ValueError that lists the names which only
    one side has, and where a name or an id comes twice.
    """
    ours = [re.sub("[ -]", "_", breed.lower()) for breed in breeds]
    twice = sorted(name for name, count in Counter(ours).items() if count > 1)
    if twice:
        raise ValueError(f"{path}: these breeds of Stanford Dogs cannot be told apart by name: {', '.join(twice)}")
    theirs: dict[str, str] = {}
    for number, fields in _rows(path):
        if len(fields) != 2 or not _ID.fullmatch(fields[1]):
            raise ValueError(f"{path} line {number}: {','.join(fields)!r:.80} is not <breed>,<Freebase id>")
        if fields[0] in theirs or fields[1] in theirs.values():
            raise ValueError(f"{path} line {number}: {fields[0]!r} or {fields[1]!r} comes twice")
        theirs[fields[0]] = fields[1]
    if theirs.keys() != set(ours):
        odd = {path: theirs.keys() - set(ours), "Stanford Dogs": set(ours) - theirs.keys()}
        told = "; ".join(f"only in {file}: {', '.join(sorted(names))}" for file, names in odd.items() if names)
        raise ValueError(f"{path.name} names other breeds than Stanford Dogs; {told}")
    return {theirs[name]: label for label, name in enumerate(ours)}


def lines(path: Path) -> Iterator[Line]:
    """The list, one line at a time. A comma belongs to a URL unless another URL follows it.

    URLs of other schemes than http and https are left out: image search has "x-raw-image:///..." for pictures within
    documents. A line may have none left.
    """
    for number, fields in _rows(path):
        breed, *parts = fields
        urls: list[str] = []
        for part in parts:
            if _URL.match(part):
                urls.append(part)
            elif urls:
                urls[-1] += f",{part}"
            else:
                raise ValueError(f"{path} line {number}: {part!r} is not a URL")
        if not _ID.fullmatch(breed) or not urls:
            raise ValueError(f"{path} line {number}: {','.join(fields)!r:.80} is not <Freebase id>,<URL>[,<URL>...]")
        yield Line(number, breed, tuple(dict.fromkeys(url for url in urls if _HTTP.match(url))))


def sift(path: Path, labels: dict[str, int]) -> tuple[Mask, dict[str, int]]:
    """Which lines of the list are wanted, given the labels of the breeds' ids, and how many are left out, and why.

    Lines that share a URL, or are joined by others that do, are one image. It is ambiguous if they are of several
    breeds, be these among `labels` or not; of one breed, its first line counts. Memory: about 100 bytes for each URL.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    number_of = dict(labels)
    breeds, rows, urls = array("q"), array("q"), array("Q")
    for line in lines(path):
        rows.extend([len(breeds)] * len(line.urls))
        breeds.append(number_of.setdefault(line.breed, len(number_of)))
        urls.extend(int.from_bytes(hashlib.blake2b(url.encode(), digest_size=8).digest()) for url in line.urls)
    count = len(breeds)
    unique, of_row = np.unique(np.array(urls, dtype=np.uint64), return_inverse=True)
    size = count + len(unique)
    edges = (np.ones(len(of_row), np.int8), (np.array(rows, dtype=np.int64), count + of_row))
    images = connected_components(coo_matrix(edges, shape=(size, size)), directed=False)[1][:count].astype(np.int64)
    breed = np.array(breeds, dtype=np.int64)
    is_ours = breed < len(labels)
    is_ambiguous = is_ours & (breeds_of(images, breed) > 1)
    is_again = is_ours & ~is_ambiguous & ~is_first(images)
    is_nowhere = is_ours & (np.bincount(np.array(rows, dtype=np.int64), minlength=count) == 0)
    masks = {"other_breeds": ~is_ours, "ambiguous": is_ambiguous, "listed_again": is_again, "without_url": is_nowhere}
    counts = {"listed": count, **{key: int(mask.sum()) for key, mask in masks.items()}}
    return is_ours & ~is_ambiguous & ~is_again & ~is_nowhere, counts


def breeds_of(groups: Numbers, breeds: Numbers) -> Numbers:
    """For each row, how many breeds there are among the rows of its group; groups are numbered from 0."""
    pairs = np.unique(np.stack([groups, breeds], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=1)[groups]


def is_first(groups: Numbers) -> Mask:
    """For each row, whether it is the first of its group."""
    found = np.zeros(len(groups), dtype=np.bool_)
    found[np.unique(groups, return_index=True)[1]] = True
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line, which may stand in quotes, and its number from 1."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError:
                text = line.decode("latin-1")  # a URL with such a byte is most likely dead; the list is not
            try:
                fields = next(csv.reader([text.rstrip("\r\n")]))
            except csv.Error as error:
                raise ValueError(f"{path} line {number} is not comma-separated text: {error!r}") from None
            if not fields:
                raise ValueError(f"{path} line {number} is empty")
            yield number, fields
