"""A look-alike of Goldfinch's searches for dogs, with the web that they lead to in a tar, and Stanford Dogs beside it.

The lists are in the upstream form to the letter; breeds, ids and hosts are made up. Stanford Dogs is the one which
`pipelines.samples.stanford_dogs` writes with the same options: its test images are the very ones of which copies
are found here. `mirror.tar` stands in for the network (see `pipelines.transport.mirrored`).

As on the web, of what the searches found for each breed: one picture in eight shows another breed, some lie at several
URLs of which the first is gone, some are gone altogether, pages in place of images, empty, answer another breed's query
too, come again, or are copies of test images; and a few are grey, CMYK, PNG or turned.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import cv2
import numpy as np
import simplejpeg

from pipelines.samples import stanford_dogs
from pipelines.samples.drawing import Picture, draw
from pipelines.samples.stanford_dogs import Breed
from pipelines.samples.writing import ODD_KINDS, add_to_tar, check_ranges, encode, open_tar

NOISE = 8  # one picture in so many shows another breed
PAGE = b"<!DOCTYPE html>\n<html><head><title>Not found</title></head><body>Sorry, this is gone.</body></html>\n"
COPIES = 2  # of test images, for each breed
FOREIGN = "/m/09toy9"  # a breed that was searched for, but is not among Stanford Dogs'


class Found(NamedTuple):
    """A line of the list: the id of the breed that was searched for, URLs, and what lies at each (None: nothing)."""

    breed: str
    urls: tuple[str, ...]
    bodies: tuple[bytes | None, ...]


def write(
    folder: Path,
    *,
    breeds: int = 6,
    train: int = 40,
    test: int = 15,
    size: int = 128,
    web: int = 30,
    seed: int = 0,
) -> None:
    """Write both lists, the mirror and Stanford Dogs' archives; all but `web` are options of that sample.

    web: images of each breed that are to be kept, beside which are 16 lines of those that are not. The same
    options give the same bytes (of one version of libjpeg and OpenCV). Raises ValueError for options that leave no room
    for two of everything.
    """
    check_ranges("web_dogs", web=(web, 2 * len(ODD_KINDS), 10_000), test=(test, len(ODD_KINDS) + COPIES, 10_000))
    stanford_dogs.write(folder, breeds=breeds, train=train, test=test, size=size, seed=seed)
    dogs = stanford_dogs.breeds_of(breeds)
    ids = [f"/m/0toy{index:02d}" for index in np.random.default_rng([seed, 4]).permutation(breeds)]
    names = [dog.name.lower().replace("-", "_") for dog in dogs]
    joined = sorted(f"{name},{breed_id}\n" for name, breed_id in zip(names, ids, strict=True))
    (folder / "sdog_classes.txt").write_text("".join(joined))
    with tarfile.open(folder / "images.tar") as tar:
        tests = [list(_plain_tests(tar, dog, label, train, test, seed)) for label, dog in enumerate(dogs, start=1)]
    found = [
        line for index in range(breeds) for line in _search(index, dogs, ids, tests[index][:COPIES], size, web, seed)
    ]
    order = np.random.default_rng([seed, 5]).permutation(len(found))
    with (folder / "dog_urls.txt").open("w") as file:
        file.writelines(",".join([found[place].breed, *found[place].urls]) + "\n" for place in order)
    held = {url: body for line in found for url, body in zip(line.urls, line.bodies, strict=True) if body is not None}
    with (folder / "mirror.tar").open("wb") as mirror, open_tar(mirror) as tar:
        for url, body in sorted(held.items()):
            add_to_tar(tar, quote(url, safe=""), body)


def _plain_tests(tar: tarfile.TarFile, dog: Breed, label: int, train: int, test: int, seed: int) -> Iterator[Picture]:
    """The test pictures of a breed, but those of `ODD_KINDS`."""
    for entry in stanford_dogs.entries_of(dog, label, train, test, seed):
        if entry.is_test and entry.number >= len(ODD_KINDS):
            file = tar.extractfile(f"Images/{entry.name}.jpg")
            assert file is not None
            yield simplejpeg.decode_jpeg(file.read())


def _search(
    index: int, dogs: list[Breed], ids: list[str], tests: list[Picture], size: int, web: int, seed: int
) -> Iterator[Found]:
    """All that was found for breed `index`, and what makes some of it ambiguous."""
    ours, other = ids[index], ids[(index + 1) % len(ids)]
    images = _images(index, dogs, size, web, seed)
    good = list(islice(images, web))
    for number, image in enumerate(good):
        here, there = _url(index, number), _url(index, number, host=7)
        if number % 3 == 0:
            yield Found(ours, (there, here), (None, image))
        elif number % 5 == 0:
            yield Found(ours, (here, there), (image, image))
        else:
            yield Found(ours, (here,), (image,))
    url = (_url(index, number) for number in count(web))
    yield Found(ours, (next(url),), (None,))
    yield Found(ours, (next(url), next(url)), (None, PAGE))
    for body in (PAGE, b"", b"no such picture", good[2][: len(good[2]) // 2]):
        yield Found(ours, (next(url),), (body,))
    yield Found(ours, (_url(index, 0),), (good[0],))  # listed again
    yield Found(ours, (next(url),), (good[1],))  # the same bytes elsewhere
    for breed, image in ((ours, shared := next(images)), (other, shared)):
        yield Found(breed, (next(url),), (image,))
    first, second, third = (next(url) for _ in range(3))
    image = next(images)
    yield Found(ours, (first,), (image,))  # ambiguous by way of the next two
    yield Found(ours, (first, second), (image, image))
    yield Found(FOREIGN if index % 2 else other, (second,), (image,))
    yield Found(FOREIGN, (third,), (next(images),))
    half = cv2.resize(tests[0], None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    yield Found(ours, (next(url),), (encode(np.asarray(half, dtype=np.uint8), quality=80),))
    yield Found(ours, (next(url),), (encode(tests[1], quality=60),))


def _images(index: int, dogs: list[Breed], size: int, web: int, seed: int) -> Iterator[bytes]:
    """Pictures of a breed as files, for ever; one in NOISE shows another breed, and of every kind there are some."""
    for number in count():
        rng = np.random.default_rng([seed, 6, index, number])
        is_noise = number % NOISE == NOISE - 1
        dog = dogs[(index + 1 + int(rng.integers(len(dogs) - 1))) % len(dogs) if is_noise else index]
        height, width = (round(size * rng.uniform(0.6, 1.1)) for _ in range(2))
        kind, turn = divmod(number, max(web // len(ODD_KINDS), 1))
        is_odd = turn == index % 2 and 0 < number < web and kind < len(ODD_KINDS)
        picture = draw(rng, dog.shape, dog.hue, height, width)
        yield encode(picture, ODD_KINDS[kind] if is_odd else "jpeg", quality=int(rng.integers(75, 96)))


def _url(index: int, number: int, host: int | None = None) -> str:
    """Where image `number` of a breed lies: at one of six hosts, or at the one that is given."""
    at = (index + number) % 6 if host is None else host
    comma = ",l" if number == 1 else ""
    return f"http://photos{at}.example.org/breed{index}/{number}{comma}.jpg"
