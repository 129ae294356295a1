"""A look-alike of Stanford Dogs: its three archives, small, with pictures of `pipelines.samples.drawing` in the boxes.

The layout is the upstream one to the letter: a tar of images by breed, a tar of XML annotations without a suffix, and
MATLAB lists whose cells hold paths and whose labels count from 1. As upstream, an image may show several dogs, the
lists are not in the order of the archives, the test images are not spread evenly, and a few files are not what most
are: greyscale, CMYK, PNG named .jpg, turned by an EXIF tag. The breeds are made up ("Red disc").

All breeds but the last are classes of the sample of ImageNet (`pipelines.samples.imagenet`), under the same WNIDs, and
some images have the names of its training images, with other pictures. The last breed is a trap for whoever matches
classes by name: it is spelled as a class there that is something else.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pipelines.samples.drawing import HUES, SHAPES, Picture, draw
from pipelines.samples.writing import ODD_KINDS, add_to_tar, check_ranges, encode, open_tar

Rectangle = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax in pixels; the last two are not part of it

HIGHEST = 200  # number in an image's name, if there are not more images; the sample of ImageNet begins at 1 too
ASPECTS = (4 / 3, 4 / 3, 4 / 3, 3 / 4, 3 / 2, 1.0)  # width / height
TWO_DOGS = 0.2  # share of the images; chosen here

# Indented by tabs; `folder` lacks the n of the WNID. No file has a suffix, and no XML declaration.
ANNOTATION = """<annotation>
	<folder>{folder}</folder>
	<filename>{file}</filename>
	<source>
		<database>ImageNet database</database>
	</source>
	<size>
		<width>{width}</width>
		<height>{height}</height>
		<depth>3</depth>
	</size>
	<segment>0</segment>{objects}
</annotation>
"""
OBJECT = """
	<object>
		<name>{name}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>{0}</xmin>
			<ymin>{1}</ymin>
			<xmax>{2}</xmax>
			<ymax>{3}</ymax>
		</bndbox>
	</object>"""


class Breed(NamedTuple):
    """A class: its WNID, its name as in paths, and what is drawn for it."""

    wnid: str
    name: str
    shape: str
    hue: str

    @property
    def folder(self) -> str:
        """As in the archives."""
        return f"{self.wnid}-{self.name}"


class Entry(NamedTuple):
    """An image: `name` is its path without ".jpg", `label` counts from 1, `number` from 0 in its breed and split."""

    name: str
    label: int
    number: int
    is_test: bool


def write(folder: Path, *, breeds: int = 6, train: int = 40, test: int = 15, size: int = 128, seed: int = 0) -> None:
    """Write the archives of `breeds`, each with `train` training images and `test` to `test` + 2 test images.

    size: of the longer side, in pixels, about. The same options give the same bytes (of one version of libjpeg and
    zlib). Raises ValueError for options that leave no room for two of everything.
    """
    check_ranges(
        "stanford_dogs",
        breeds=(breeds, 2, len(SHAPES) * len(HUES) // 2),
        train=(train, len(ODD_KINDS), 10_000),
        test=(test, len(ODD_KINDS), 10_000),
        size=(size, 48, 1024),
    )
    dogs = breeds_of(breeds)
    entries = [entry for label, dog in enumerate(dogs, 1) for entry in entries_of(dog, label, train, test, seed)]
    with (
        (folder / "images.tar").open("wb") as image_file,
        open_tar(image_file) as images,
        (folder / "annotation.tar").open("wb") as annotation_file,
        open_tar(annotation_file) as annotations,
    ):
        for tar, root in ((images, "Images"), (annotations, "Annotation")):
            for name in (root, *(f"{root}/{breed.folder}" for breed in dogs)):
                add_to_tar(tar, name, b"", tarfile.DIRTYPE)
        for position in np.random.default_rng([seed, 2]).permutation(len(entries)):
            entry = entries[position]
            image, annotation = _image(entry, dogs[entry.label - 1], _kind(entry, breeds), size, seed)
            add_to_tar(images, f"Images/{entry.name}.jpg", image)
            add_to_tar(annotations, f"Annotation/{entry.name}", annotation.encode())
    lists = {
        "file_list": sorted(entries),
        "test_list": [entry for entry in entries if entry.is_test],
        "train_list": [entry for entry in entries if not entry.is_test],
    }
    with (folder / "lists.tar").open("wb") as file, open_tar(file) as tar:
        for name, rows in lists.items():
            add_to_tar(tar, f"{name}.mat", _mat(rows))


def breeds_of(count: int) -> list[Breed]:
    """In the order of their WNIDs. All but the last are every second class of the sample of ImageNet."""
    designs = [(shape, hue) for shape in SHAPES for hue in HUES]
    coats = ("{}", "flat-coated_{}")
    real = [
        Breed(f"n{90_000_000 + 1_357 * (index + 1)}", coats[index // 2 % 2].format(f"{hue}_{shape}"), shape, hue)
        for index, (shape, hue) in enumerate(designs[: 2 * (count - 1)])
        if index % 2 == 0
    ]
    real[0] = real[0]._replace(name=real[0].name.capitalize())
    return [*real, Breed("n90800001", "blue_disc", *designs[-1])]


def entries_of(breed: Breed, label: int, train: int, test: int, seed: int) -> Iterator[Entry]:
    """A breed's images in the order of the lists, which is none: numbers and splits are drawn."""
    count = train + test + label % 3
    numbers = np.random.default_rng([seed, 3, label]).permutation(max(HIGHEST, 2 * count))[:count] + 1
    for place, number in enumerate(numbers):
        is_test = place >= train
        yield Entry(f"{breed.folder}/{breed.wnid}_{number}", label, place - train * is_test, is_test)


def _image(entry: Entry, breed: Breed, kind: str, size: int, seed: int) -> tuple[bytes, str]:
    """The file and its annotation."""
    rng = np.random.default_rng([seed, entry.is_test, entry.label, entry.number])
    long_side = size * rng.uniform(0.75, 1.25)
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    width, height = round(long_side * min(aspect, 1.0)), round(long_side / max(aspect, 1.0))
    boxes = _boxes(rng, width, height)
    picture = _meadow(rng, height, width)
    for left, top, right, bottom in boxes:
        picture[top:bottom, left:right] = draw(rng, breed.shape, breed.hue, bottom - top, right - left)
    if kind == "turned":  # boxes are those of the picture as it is stored: turned to the left
        boxes = [(top, width - right, bottom, width - left) for left, top, right, bottom in boxes]
        width, height = height, width
    objects = "".join(OBJECT.format(*box, name=breed.name) for box in boxes)
    wnid, file = breed.wnid.removeprefix("n"), entry.name.split("/")[1]
    annotation = ANNOTATION.format(folder=wnid, file=file, width=width, height=height, objects=objects)
    return encode(picture, kind, quality=int(rng.integers(75, 96))), annotation


def _kind(entry: Entry, breeds: int) -> str:
    """ "jpeg", but each of `ODD_KINDS` once in each split, for the breeds in turn."""
    is_odd = entry.number < len(ODD_KINDS) and entry.number % breeds == entry.label - 1
    return ODD_KINDS[entry.number] if is_odd else "jpeg"


def _boxes(rng: np.random.Generator, width: int, height: int) -> list[Rectangle]:
    """One box, or two side by side; some end at the image's edge."""
    halves = [(0, width // 2), (width // 2, width)] if rng.uniform() < TWO_DOGS else [(0, width)]
    spans = [(_span(rng, *half), _span(rng, 0, height)) for half in halves]
    return [(left, top, right, bottom) for (left, right), (top, bottom) in spans]


def _span(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    """Most of the way from `low` to `high`."""
    length = round((high - low) * rng.uniform(0.6, 0.95))
    start = low + round((high - low - length) * float(np.clip(rng.uniform(-0.2, 1.2), 0.0, 1.0)))
    return start, start + length


def _meadow(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Soft patches of dull green and brown: a coarse random grid, stretched."""
    grid = np.array([100, 110, 70]) + rng.uniform(-40, 40, size=(3, 4, 1)) + rng.uniform(-15, 15, size=(3, 4, 3))
    soft = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(soft, 0, 255).astype(np.uint8)


def _mat(rows: list[Entry]) -> bytes:
    """A list with the upstream fields: columns of cells that hold paths, and of labels."""
    from scipy.io import savemat

    files, names = (np.empty((len(rows), 1), dtype=object) for _ in range(2))
    files[:, 0] = [f"{entry.name}.jpg" for entry in rows]
    names[:, 0] = [entry.name for entry in rows]
    labels = np.array([[entry.label] for entry in rows], dtype=np.uint8)
    file = io.BytesIO()
    columns = {"file_list": files, "annotation_list": names, "labels": labels}
    savemat(file, columns, do_compression=True)  # type: ignore[arg-type]
    header = b"MATLAB 5.0 MAT-file".ljust(116)  # SciPy writes the time of day there
    return header + file.getvalue()[len(header) :]
