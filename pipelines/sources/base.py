"""What a source is: the functions through which the code that shards sees an upstream data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from pipelines.section import Section

if TYPE_CHECKING:
    from pipelines.crawl import Wanted

Unit = Any  # a source's own picklable description of a piece of its archives


class Object(TypedDict):
    """A thing in an image, for detection. box: x, y, width and height in pixels; crowd: it is a group of many."""

    category: int
    box: list[float]
    area: float  # of the segment, in square pixels
    crowd: bool


class Fields(TypedDict, total=False):
    """What is known of a sample beside its image: one schema for all data sets, of which each fills in its part."""

    label: int  # index into the data set's classes
    attributes: list[int]  # 0 or 1, one for each of the data set's classes
    identity: str  # of a person; equal strings are the same one
    latitude: float  # degrees
    longitude: float
    image_id: int  # upstream's number of the image, by which detections are evaluated
    objects: list[Object]  # empty where there is nothing of the categories in the image


class Place(NamedTuple):
    """Where an image lies uncompressed in an archive, so that it can be read again by its offset."""

    path: Path
    offset: int


class Box(NamedTuple):
    """A part of an image, in pixels of it as it is stored upstream."""

    top: int
    left: int
    height: int
    width: int


class Sample(NamedTuple):
    """One upstream image with what is known of it."""

    split: str
    name: str  # as upstream, such as "n01440764/n01440764_10026.JPEG"
    image: bytes
    fields: Fields  # goes into the shard's JSON
    place: Place | None = None  # None where the archive is compressed
    crop: Box | None = None  # all that is kept of the image; None: the whole
    bad: str | None = None  # why the image is of no use, where the source knows what no decoder can


class Pair(NamedTuple):
    """Two images that a publisher has compared, by their names as samples, such as "Zico/Zico_0002.jpg"."""

    fold: int  # from 0 on
    first: str
    second: str
    is_same: bool  # the same person is on both


class NoOptions(Section):
    """`shard.options` of a source that has nothing to choose."""


class Source(NamedTuple):
    """A data set's layout, as functions of the folder that holds its archives.

    They raise ValueError, naming the file, where the archives contradict each other or their layout.
    """

    classes: Callable[[Path], list[str]]  # names in label order; [] where a data set has none
    units: Callable[[Path, Any], list[Unit]]  # (folder, options) -> independent pieces of work, in a fixed order
    samples: Callable[[Unit], Iterator[Sample]]  # reads one piece; runs in a worker process
    options: type[Section] = NoOptions  # what `shard.options` of params.yaml may say; given to `units`
    upright: bool = True  # False: EXIF turns are not applied, since boxes are those of the picture as it is stored
    bare: bool = False  # True: images lose what is written in them beside the picture, such as who took it and when
    wanted: Callable[[Path, Any], Iterator[Wanted]] | None = None  # images to be fetched by URL: see pipelines.crawl
    select: Callable[[Path, Any], dict[str, Any]] | None = None  # decides what of them is kept, and counts the rest
    pairs: Callable[[Path], list[Pair]] | None = None  # which images are compared where the data are a test
