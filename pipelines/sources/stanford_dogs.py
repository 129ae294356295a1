"""Stanford Dogs as its authors publish it (http://vision.stanford.edu/aditya86/ImageNetDogs/): three archives.

`images.tar` holds `Images/<WNID>-<breed>/<WNID>_<number>.jpg`, `annotation.tar` the same tree under `Annotation/`, with
an XML file of boxes in place of each image, and `lists.tar` three MATLAB lists: all images, and the two splits. A label
is the rank of the breed's WNID, which the lists' own labels, counted from 1, must confirm. A breed's name decides
nothing: what is spelled "cardigan" is a dog here and a garment in ImageNet.

Every image is one of ImageNet's and has ImageNet's name, so that a net that was trained there may have seen test images
of this data set: `pipelines.dogs_overlap` tells how many and which.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

from PIL import Image

from pipelines.archives import Member, members, opened, read
from pipelines.images import OTHER_FORMATS, PILLOW_ERRORS
from pipelines.matlab import read_mat
from pipelines.section import Section
from pipelines.sources.base import Box, Place, Sample, Source

IMAGES, ANNOTATIONS, LISTS = "images.tar", "annotation.tar", "lists.tar"
ALL, TRAIN, TEST = "file_list.mat", "train_list.mat", "test_list.mat"

UNIT = 1_000  # images
MAX_IMAGES = 100_000  # upstream: 20,580
MAX_IMAGE_BYTES = 1 << 26
MAX_XML_BYTES = 1 << 16  # upstream: about 0.5 kB
MAX_LIST_BYTES = 1 << 20  # upstream: 0.5 MB for all three
MAX_LIST_FILES = 100

_NAME = r"(?P<name>(?P<wnid>n[0-9]{8})-[\w-]+/(?P=wnid)_[0-9]+)"  # "n02085620-Chihuahua/n02085620_7"
_LISTED, _IMAGE, _ANNOTATION = (
    re.compile(form, re.ASCII) for form in (rf"{_NAME}\.jpg", rf"Images/{_NAME}\.jpg", rf"Annotation/{_NAME}")
)
_PIXELS = re.compile(r"-?[0-9]{1,6}")

Labels = dict[str, int]  # by the image's name, without ".jpg"


class Options(Section):
    """`shard.options` of params.yaml."""

    crop_to_box: bool = False  # keep the part of each image that `crop` gives


class Unit(NamedTuple):
    """A slice of a split's images, in place."""

    folder: Path
    split: str
    labels: tuple[int, ...]
    images: tuple[Member, ...]
    annotations: tuple[Member, ...]  # empty: whole images are kept


def classes(folder: Path) -> list[str]:
    """The breeds as "WNID name", such as "n02085620 Chihuahua", in label order."""
    breeds, _ = lists(folder / LISTS)
    return breeds


def units(folder: Path, options: Options) -> list[Unit]:
    """Slices of train, then of test, each in its list's order.

    Found from the lists and the archives' headers alone. Raises ValueError unless lists, images and annotations speak
    of the same images.
    """
    _, splits = lists(folder / LISTS)
    listed = {name for labels in splits.values() for name in labels}
    images = _members(folder / IMAGES, _IMAGE, MAX_IMAGE_BYTES, listed)
    annotations = _members(folder / ANNOTATIONS, _ANNOTATION, MAX_XML_BYTES, listed)
    found = []
    for split, labels in splits.items():
        for start in range(0, len(labels), UNIT):
            names = list(labels)[start : start + UNIT]
            boxes = [annotations[name] for name in names] if options.crop_to_box else []
            here = [images[name] for name in names]
            found.append(Unit(folder, split, tuple(labels[name] for name in names), tuple(here), tuple(boxes)))
    return found


def samples(unit: Unit) -> Iterator[Sample]:
    """The images of a unit with their labels and, if asked for, the part to keep, in the list's order."""
    path, boxes = unit.folder / IMAGES, unit.folder / ANNOTATIONS
    with opened(path) as file, opened(boxes) as box_file:
        for number, (label, member) in enumerate(zip(unit.labels, unit.images, strict=True)):
            image, part = read(file, str(path), member), None
            if unit.annotations:
                annotation = unit.annotations[number]
                part = crop(read(box_file, str(boxes), annotation), f"{boxes}:{annotation.name}", _size(image))
            name = member.name.removeprefix("Images/")
            yield Sample(unit.split, name, image, {"label": label}, Place(path, member.offset), part)


def images_of(folder: Path, split: str) -> list[Member]:
    """The images of a split, in the order of their archive. Raises ValueError as `units`."""
    _, splits = lists(folder / LISTS)
    listed = {name for labels in splits.values() for name in labels}
    images = _members(folder / IMAGES, _IMAGE, MAX_IMAGE_BYTES, listed)
    return sorted((images[name] for name in splits[split]), key=lambda member: member.offset)


def crop(xml: bytes, where: str, size: tuple[int, int] | None = None) -> Box:
    """The smallest part of an image that holds all boxes of its annotation, which has the form of PASCAL VOC.

    A box reaches from xmin and ymin up to, not including, xmax and ymax. What of it sticks out of the image is cut off:
    tensorflow/datasets, stanford_dogs.py, does so. Raises ValueError that names `where` for what is not XML or has a
    DTD (whose entities could unfold to gigabytes), for an object without a box, a box without area or outside the
    image, no number where there should be one, and an annotation of an image whose size is not `size` (width, height).
    """
    try:
        text = xml.decode()
        if "<!" in text:
            raise ValueError(f"{where} has a DTD, a comment or a CDATA section; upstream's have none")
        root = ElementTree.fromstring(text)  # noqa: S314  without a DTD, and of at most MAX_XML_BYTES
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise ValueError(f"{where} is not XML: {error}") from None
    things, boxes = root.findall("object"), root.findall("object/bndbox")
    if not boxes or len(boxes) < len(things):
        raise ValueError(f"{where} has {len(things)} objects and {len(boxes)} boxes")
    width, height = (_pixels(root, f"size/{key}", where) for key in ("width", "height"))
    if size and size != (width, height):
        raise ValueError(f"{where} speaks of {width} x {height} pixels, the image has {size[0]} x {size[1]}")
    edges = [_edges(box, width, height, where) for box in boxes]
    left, top = (min(edge[axis] for edge in edges) for axis in (0, 1))
    right, bottom = (max(edge[axis] for edge in edges) for axis in (2, 3))
    return Box(top, left, bottom - top, right - left)


def _edges(box: ElementTree.Element, width: int, height: int, where: str) -> tuple[int, int, int, int]:
    """xmin, ymin, xmax and ymax, cut to the image."""
    left, top, right, bottom = (_pixels(box, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
    cut = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise ValueError(f"{where}: box {left}, {top}, {right}, {bottom} covers nothing of {width} x {height} pixels")
    return cut


def _pixels(element: ElementTree.Element, key: str, where: str) -> int:
    text = (element.findtext(key) or "").strip()
    if not _PIXELS.fullmatch(text):
        raise ValueError(f"{where}: {element.tag}/{key} {text!r} is not a number of pixels")
    return int(text)


def _size(image: bytes) -> tuple[int, int] | None:
    """Width and height from the header. None where it is broken, as `pipelines.images.check` will find too."""
    try:
        with Image.open(io.BytesIO(image), formats=("JPEG", *OTHER_FORMATS)) as opened_image:
            return opened_image.size
    except (*PILLOW_ERRORS, Image.DecompressionBombError):
        return None


def _members(path: Path, form: re.Pattern[str], max_bytes: int, listed: set[str]) -> dict[str, Member]:
    """What an archive holds for each listed image. What is neither image nor annotation is passed over."""
    with opened(path) as file:
        every = members(file, str(path), max_members=MAX_IMAGES, max_bytes=max_bytes)
        found = {match["name"]: member for member in every if (match := form.fullmatch(member.name))}
    if found.keys() != listed:
        raise ValueError(
            f"{path} has {len(found)} members for the {len(listed)} images of {LISTS}; in one of them only: "
            f"{_first(found.keys() ^ listed)}"
        )
    return found


def lists(path: Path) -> tuple[list[str], dict[str, Labels]]:
    """The breeds as "WNID name" in label order, and the labels of each split's images, in its list's order."""
    mats: dict[str, bytes] = {}
    with opened(path) as file:
        for member in members(file, str(path), max_members=MAX_LIST_FILES, max_bytes=MAX_LIST_BYTES):
            mats[str(PurePosixPath(member.name))] = read(file, str(path), member)
    for name in (ALL, TRAIN, TEST):
        if name not in mats:
            raise ValueError(f"{path} has no member {name}")
    every, train, test = (_list(mats[name], f"{path}:{name}") for name in (ALL, TRAIN, TEST))
    if train.keys() & test.keys():
        raise ValueError(f"{path}: in {TRAIN} and in {TEST} too: {_first(train.keys() & test.keys())}")
    both = train.keys() | test.keys()
    if every.keys() != both:
        raise ValueError(
            f"{path}: {ALL} has {len(every)} images, {TRAIN} and {TEST} have {len(both)}; in one of them only: "
            f"{_first(every.keys() ^ both)}"
        )
    breeds = _breeds(every, f"{path}:{ALL}")
    rank_of = {breed[:9]: rank for rank, breed in enumerate(breeds)}
    for name, numbers in ((ALL, every), (TRAIN, train), (TEST, test)):
        _check_numbers(numbers, rank_of, f"{path}:{name}")
    return breeds, {
        split: {image: number - 1 for image, number in numbers.items()}
        for split, numbers in (("train", train), ("test", test))
    }


def _list(mat: bytes, where: str) -> dict[str, int]:
    """A list's images and the numbers of their breeds, from 1 on."""
    try:
        table = read_mat(mat, where, squeeze=False)
        files, names = ([str(cell.item()) for cell in table[key].ravel()] for key in ("file_list", "annotation_list"))
        numbers = table["labels"].ravel().tolist()
    except (LookupError, ValueError, AttributeError) as error:
        raise ValueError(f"{where} is not a list of images: {error!r}") from error
    if not len(files) == len(names) == len(numbers):
        raise ValueError(f"{where} has {len(files)} images, {len(names)} annotations and {len(numbers)} labels")
    rows: dict[str, int] = {}
    for row, (file, name, number) in enumerate(zip(files, names, numbers, strict=True), start=1):
        match = _LISTED.fullmatch(file)
        if not match or match["name"] != name:
            raise ValueError(f"{where} row {row}: {file!r} and {name!r} are not <WNID>-<breed>/<WNID>_<number>[.jpg]")
        if name in rows:
            raise ValueError(f"{where} row {row}: {file} comes twice")
        rows[name] = number
    return rows


def _breeds(images: Iterable[str], where: str) -> list[str]:
    name_of: dict[str, str] = {}
    for image in images:
        wnid, name = image.split("/")[0].split("-", 1)
        if name_of.setdefault(wnid, name) != name:
            raise ValueError(f"{where}: {wnid} is called {name_of[wnid]!r} and {name!r}")
    return [f"{wnid} {name.replace('_', ' ')}" for wnid, name in sorted(name_of.items())]


def _check_numbers(numbers: dict[str, int], rank_of: dict[str, int], where: str) -> None:
    """Pass if the list has images of every breed, and numbers the breeds by their WNIDs."""
    for image, number in numbers.items():
        rank = rank_of[image[:9]] + 1
        if number != rank:
            raise ValueError(f"{where}: {image} has label {number}, its WNID is number {rank} of {len(rank_of)}")
    lacking = rank_of.keys() - {image[:9] for image in numbers}
    if lacking:
        raise ValueError(f"{where} has no image of {_first(lacking)}")


def _first(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:5])


SOURCE = Source(classes, units, samples, Options)
