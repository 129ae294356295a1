"""A look-alike of Labeled Faces in the Wild: `lfw.tgz`, `people.txt` and `pairs.txt`, small, with drawn faces.

The layout is the upstream one to the letter: one folder for each person, names with underscores, hyphens or of one
word, folds of people, tabs in the lists, as many genuine as impostor pairs. A third of the people have one image only,
upstream more. The people are made up ("Ada_Aardvark"). Unlike upstream, where all images are plain RGB JPEGs, a few are
greyscale, CMYK, PNG named .jpg, or turned by an EXIF tag.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np

from pipelines.samples.faces import choose_look, draw_face, kind_at, make_person
from pipelines.samples.writing import add_to_tar, check_ranges, encode, open_tar

FIRST = ("Ada", "Bo", "Cleo", "Dai-lin", "Edo", "Flo", "Gus", "Ha-na", "Ivo", "Jo_Ann", "Kai", "Lea", "Moe", "Nia")
LAST = ("Aardvark", "Bobcat", "Caracal", "Dormouse", "Ermine", "Ferret-Gnu", "Gecko", "Heron_Jr", "Ibex", "Jackal")

Fold = dict[str, int]  # name -> number of images


def write(
    folder: Path, *, folds: int = 10, people: int = 6, images: int = 6, pairs: int = 20, size: int = 125, seed: int = 0
) -> None:
    """Write the archive and the lists of `folds`, each of `people` with `pairs` genuine and as many impostor pairs.

    images: as many has a person on average, about, but every third has one. size: of either side in pixels, 250
    upstream. The same options give the same bytes (of one version of libjpeg and zlib). Raises ValueError
    for options that leave no room for two of everything, or for so many different pairs.
    """
    check_ranges(
        "lfw",
        folds=(folds, 2, 20),
        people=(people, 3, len(_names()) // max(folds, 1)),
        images=(images, 3, 100),
        pairs=(pairs, 1, images * images),
        size=(size, 32, 1024),
    )
    listed = _folds(folds, people, images, seed)
    everyone = sorted((name, count) for fold in listed for name, count in fold.items())
    file = io.BytesIO()
    with open_tar(file) as tar:
        add_to_tar(tar, "lfw", b"", tarfile.DIRTYPE)
        place, total = 0, sum(count for _, count in everyone)
        for number, (name, count) in enumerate(everyone):
            add_to_tar(tar, f"lfw/{name}", b"", tarfile.DIRTYPE)
            for image in range(count):
                data = _image(number, image, kind_at(place, total), size, seed)
                add_to_tar(tar, f"lfw/{name}/{name}_{image + 1:04d}.jpg", data)
                place += 1
    (folder / "lfw.tgz").write_bytes(gzip.compress(file.getvalue(), mtime=0))
    blocks = ["\n".join([f"{len(fold)}", *(f"{name}\t{count}" for name, count in fold.items())]) for fold in listed]
    (folder / "people.txt").write_text("\n".join([f"{folds}", *blocks, ""]), "ascii")
    rows = [row for number, fold in enumerate(listed) for row in _pairs(fold, pairs, [seed, 4, number])]
    (folder / "pairs.txt").write_text("\n".join([f"{folds}\t{pairs}", *rows, ""]), "ascii")


def _names() -> list[str]:
    """Of one word or more."""
    return [*LAST, *(f"{first}_{last}" for first in FIRST for last in LAST)]


def _folds(folds: int, people: int, images: int, seed: int) -> list[Fold]:
    """The people of each fold, by name. The first two have `images` and one more, every third has one."""
    rng = np.random.default_rng([seed, 2])
    names = _names()
    order = rng.permutation(len(names))
    listed = []
    for fold in range(folds):
        counts = [1 if rank % 3 == 2 else images + rank if rank < 2 else int(rng.integers(2, 2 * images - 1))
                  for rank in range(people)]  # fmt: skip
        here = [names[place] for place in order[fold * people : (fold + 1) * people]]
        listed.append(dict(sorted(zip(here, counts, strict=True))))
    return listed


def _pairs(fold: Fold, count: int, seed: list[int]) -> list[str]:
    """`count` genuine and as many impostor pairs of a fold, all different, by name."""
    rng = np.random.default_rng(seed)
    images = [(name, number) for name, total in fold.items() for number in range(1, total + 1)]
    every = list(combinations(images, 2))
    rows = []
    for is_same in (True, False):
        these = [pair for pair in every if (pair[0][0] == pair[1][0]) == is_same]
        chosen = sorted(these[place] for place in rng.permutation(len(these))[:count])
        for (first, number), (second, other) in chosen:
            rows.append(f"{first}\t{number}\t{other}" if is_same else f"{first}\t{number}\t{second}\t{other}")
    return rows


def _image(person: int, number: int, kind: str, size: int, seed: int) -> bytes:
    """Less aligned than CelebA's: smaller in the picture, more turned."""
    who = make_person(np.random.default_rng([seed, 0, person]))
    rng = np.random.default_rng([seed, 1, person, number])
    picture = draw_face(rng, who, choose_look(rng, who), size, size, tall=0.26, turn=8.0)
    return encode(picture, kind, quality=int(rng.integers(75, 96)))
