"""A look-alike of CelebA: the zip of aligned faces and three of its lists, small, with `pipelines.samples.faces`.

The layout is the upstream one to the letter: the lists' header or lack of one, padding and ends of lines (upstream's
sizes in bytes give these away: https://github.com/tensorflow/datasets, celeb_a/checksums.tsv), the 40 attributes in
their order, the splits as runs of image numbers with people of their own. The two lists that nothing here reads are
left out. Of the attributes those of `faces.DRAWN` can be seen in the pictures; the rest come by chance, so that no net
can learn them.

How upstream packs its zip is not published: here images are stored and packed by turns. Unlike upstream, where all are
plain RGB JPEGs, a few files are greyscale, CMYK, PNG named .jpg, or turned by an EXIF tag.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.samples.faces import DRAWN, choose_look, draw_face, kind_at, make_person
from pipelines.samples.writing import add_to_zip, check_ranges, encode

# fmt: off
ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)
# fmt: on
BY_CHANCE = 0.35  # share of the images that have an attribute which is not drawn
HELD_OUT = 0.15  # share of the people that are in val, and in test too


class Entry(NamedTuple):
    """An image: the person, which of that person's images it is (from 0 on), and its split's number (0, 1, 2)."""

    person: int
    number: int
    part: int


def write(folder: Path, *, people: int = 40, images: int = 20, size: int = 109, seed: int = 0) -> None:
    """Write the zip and the lists of `people`, each with `images` - 1 to `images` + 1 pictures, every tenth with one.

    size: height in pixels, 218 upstream; the width is 178/218 of it. The same options give the same bytes (of one
    version of libjpeg and zlib). A picture depends on its person, number, `size` and `seed` alone. Raises ValueError
    for options that leave no room for two of everything.
    """
    check_ranges("celeba", people=(people, 6, 10_000), images=(images, 4, 1_000), size=(size, 32, 1024))
    entries = _entries(people, images, seed)
    looks: list[frozenset[str]] = []
    with (folder / "img_align_celeba.zip").open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        add_to_zip(archive, "img_align_celeba/", b"")
        for number, entry in enumerate(entries, start=1):
            image, look = _image(entry, kind_at(number - 1, len(entries)), size, seed)
            looks.append(look)
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            add_to_zip(archive, f"img_align_celeba/{number:06d}.jpg", image, method)
    identities = np.random.default_rng([seed, 3]).permutation(2 * people) + 1  # not 1..people in order, as upstream
    header = f"{len(entries)}\r\n{' '.join(ATTRIBUTES)} \r\n"
    attributes = _rows([_signs(look) for look in looks])
    people_on = _rows([str(identities[entry.person]) for entry in entries])
    parts = _rows([str(entry.part) for entry in entries])
    (folder / "list_attr_celeba.txt").write_bytes((header + "\r\n".join([*attributes, ""])).encode())
    (folder / "identity_CelebA.txt").write_bytes("\n".join(people_on).encode())
    (folder / "list_eval_partition.txt").write_bytes("\r\n".join([*parts, ""]).encode())


def _rows(values: list[str]) -> list[str]:
    return [f"{number:06d}.jpg {value}" for number, value in enumerate(values, start=1)]


def _signs(look: frozenset[str]) -> str:
    """As upstream: all but the first two characters wide."""
    first, *rest = (1 if name in look else -1 for name in ATTRIBUTES)
    return " ".join([f"{first}", *(f"{sign:2d}" for sign in rest)])


def _entries(people: int, images: int, seed: int) -> list[Entry]:
    """All images: those of train, of val, of test; within a split in an order that is drawn."""
    held_out = max(2, round(HELD_OUT * people))
    first_of = (0, people - 2 * held_out, people - held_out, people)
    entries: list[Entry] = []
    for part in range(3):
        persons = range(first_of[part], first_of[part + 1])
        counts = {person: 1 if person % 10 == 1 else images + person % 3 - 1 for person in persons}
        these = [Entry(person, number, part) for person, count in counts.items() for number in range(count)]
        order = np.random.default_rng([seed, 2, part]).permutation(len(these))
        entries.extend(these[place] for place in order)
    return entries


def _image(entry: Entry, kind: str, size: int, seed: int) -> tuple[bytes, frozenset[str]]:
    """The file, and the attributes that the lists shall name."""
    person = make_person(np.random.default_rng([seed, 0, entry.person]))
    rng = np.random.default_rng([seed, 1, entry.person, entry.number])
    look = choose_look(rng, person)
    picture = draw_face(rng, person, look, size, round(size * 178 / 218), tall=0.3, turn=4.0)
    others = frozenset(name for name in ATTRIBUTES if name not in DRAWN and rng.uniform() < BY_CHANCE)
    return encode(picture, kind, quality=int(rng.integers(75, 96))), look | others
