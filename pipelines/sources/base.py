"""What a source is: the three functions through which the code that shards sees an upstream data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Unit = Any  # a source's own picklable description of a piece of its archives


class Place(NamedTuple):
    """Where an image lies uncompressed in an archive, so that it can be read again by its offset."""

    path: Path
    offset: int


class Sample(NamedTuple):
    """One upstream image with what is known of it."""

    split: str
    name: str  # as upstream, such as "n01440764/n01440764_10026.JPEG"
    image: bytes
    fields: dict[str, Any]  # goes into the shard's JSON: label, boxes, ...
    place: Place | None = None  # None where the archive is compressed


class Source(NamedTuple):
    """A data set's layout, as functions of the folder that holds its archives.

    They raise ValueError, naming the file, where the archives contradict each other or their layout.
    """

    classes: Callable[[Path], list[str]]  # names in label order; [] where a data set has none
    units: Callable[[Path], list[Unit]]  # independent pieces of work, in a fixed order
    samples: Callable[[Unit], Iterator[Sample]]  # reads one piece; runs in a worker process
