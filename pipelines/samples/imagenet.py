"""A look-alike of ILSVRC2012: the three upstream archives, small, with pictures of `pipelines.samples.drawing`.

The layout is the upstream one to the letter: inner tars, a MATLAB list of synsets with internal nodes, ground truth by
ILSVRC2012_ID. The synsets are not: identifiers and words are made up ("red disc"), so that nobody takes a result on
these pictures for one on ImageNet. As upstream, a few files are not what most are: greyscale, CMYK, PNG named .JPEG,
turned by an EXIF tag.

How hard it is: timm's mobilenetv1_100, six epochs over 1,080 pictures of 12 classes (SGD 0.05, batch 16), had 93 % of
240 others right at 56 x 56 pixels and 71 % at 32 x 32. Chance is 8 %.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.samples.drawing import HUES, SHAPES, draw
from pipelines.samples.writing import ODD_KINDS, add_to_tar, check_ranges, encode, open_tar

DEVKIT = "ILSVRC2012_devkit_t12"
ASPECTS = (4 / 3, 4 / 3, 4 / 3, 3 / 4, 3 / 2, 1.0)  # width / height: mostly 4:3, as upstream


class Synset(NamedTuple):
    """A class, or above `leaves` a group of them, as `meta.mat` lists it."""

    number: int  # ILSVRC2012_ID
    wnid: str
    words: str
    children: tuple[int, ...]
    height: int
    images: int


def write(folder: Path, *, classes: int = 12, train: int = 90, val: int = 20, size: int = 128, seed: int = 0) -> None:
    """Write the archives of `classes` * (`train` + `val`) pictures, about `size` pixels on the longer side.

    The same options give the same bytes (of one version of libjpeg and zlib). A picture depends on its class, number,
    `size` and `seed` alone. Raises ValueError for options that leave no room for two of everything.
    """
    _check(classes, train, val, size)
    leaves = _leaves(classes, train, seed)
    with (folder / "ILSVRC2012_img_train.tar").open("wb") as file, open_tar(file) as outer:
        for index, synset in enumerate(leaves):
            inner = io.BytesIO()
            with open_tar(inner) as tar:
                for number, image in _images(0, index, classes, train, size, seed):
                    add_to_tar(tar, f"{synset.wnid}_{number + 1}.JPEG", image)
            add_to_tar(outer, f"{synset.wnid}.tar", inner.getvalue())
    order = np.random.default_rng([seed, 2]).permutation(classes * val)
    pictures = [image for index in range(classes) for _, image in _images(1, index, classes, val, size, seed)]
    with (folder / "ILSVRC2012_img_val.tar").open("wb") as file, open_tar(file) as tar:
        for position, picture in enumerate(order):
            add_to_tar(tar, f"ILSVRC2012_val_{position + 1:08d}.JPEG", pictures[picture])
    truth = "\n".join(str(leaves[picture // val].number) for picture in order)  # as upstream, no final newline
    devkit = {"meta.mat": _meta([*leaves, *_groups(leaves)]), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    devkit_tar = io.BytesIO()
    with open_tar(devkit_tar) as tar:
        for name in (DEVKIT, f"{DEVKIT}/data"):
            add_to_tar(tar, name, b"", tarfile.DIRTYPE)
        for name, data in devkit.items():
            add_to_tar(tar, f"{DEVKIT}/data/{name}", data)
    (folder / f"{DEVKIT}.tar.gz").write_bytes(gzip.compress(devkit_tar.getvalue(), mtime=0))


def _check(classes: int, train: int, val: int, size: int) -> None:
    check_ranges(
        "imagenet",
        classes=(classes, 2, len(SHAPES) * len(HUES)),
        train=(train, -(-2 * len(ODD_KINDS) // max(classes, 1)), 10_000),
        val=(val, -(-len(ODD_KINDS) // max(classes, 1)), 10_000),
        size=(size, 32, 1024),
    )


def _design(index: int) -> tuple[str, str]:
    """Shape and colour family of a class."""
    return list(SHAPES)[index // len(HUES)], list(HUES)[index % len(HUES)]


def _leaves(classes: int, train: int, seed: int) -> list[Synset]:
    """The classes in order of their WNID, which is not the order of their ILSVRC2012_ID."""
    numbers = np.random.default_rng([seed, 3]).permutation(classes) + 1
    if numbers[0] == 1:
        numbers = np.roll(numbers, 1)
    return [
        Synset(int(number), f"n{90_000_000 + 1_357 * (index + 1)}", f"{hue} {shape}, {shape} in {hue}", (), 0, train)
        for index, number in enumerate(numbers)
        for shape, hue in [_design(index)]
    ]


def _groups(leaves: list[Synset]) -> list[Synset]:
    """Internal nodes: odd and even classes, and the root above both. No image carries their numbers."""
    first = len(leaves) + 1
    halves = [tuple(sorted(leaf.number for leaf in leaves[parity::2])) for parity in range(2)]
    return [
        Synset(first, "n90900001", "shape", (first + 1, first + 2), 2, 0),
        Synset(first + 1, "n90900002", "odd shape", halves[0], 1, 0),
        Synset(first + 2, "n90900003", "even shape", halves[1], 1, 0),
    ]


def _meta(synsets: list[Synset]) -> bytes:
    """`meta.mat` with the upstream fields, ordered by ILSVRC2012_ID."""
    from scipy.io import savemat

    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height",
              "num_train_images")  # fmt: skip
    rows = np.empty((len(synsets), 1), dtype=[(field, object) for field in fields])
    for row, node in zip(rows, sorted(synsets), strict=True):
        children = np.array([node.children], dtype=float)
        gloss = f"a made-up class: {node.words}"
        row[0] = (float(node.number), node.wnid, node.words, gloss, float(len(node.children)), children,
                  float(node.height), float(node.images))  # fmt: skip
    file = io.BytesIO()
    savemat(file, {"synsets": rows})  # type: ignore[arg-type]
    header = b"MATLAB 5.0 MAT-file".ljust(116)  # SciPy writes the time of day there
    return header + file.getvalue()[len(header) :]


def _images(split: int, index: int, classes: int, count: int, size: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """The encoded pictures 0..count of a class. `ODD_KINDS` are spread evenly over the split: twice in train."""
    step = classes * count // (len(ODD_KINDS) * (2 - split))
    for number in range(count):
        rng = np.random.default_rng([seed, split, index, number])
        long_side = size * rng.uniform(0.75, 1.25)
        aspect = ASPECTS[rng.integers(len(ASPECTS))]
        height, width = round(long_side / max(aspect, 1.0)), round(long_side * min(aspect, 1.0))
        picture = draw(rng, *_design(index), height, width)
        turn, rest = divmod(index * count + number, step)
        kind = ODD_KINDS[turn % len(ODD_KINDS)] if rest == 0 else "jpeg"
        yield number, encode(picture, kind, quality=int(rng.integers(75, 96)))
