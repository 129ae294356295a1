"""Faces without labels: cut from the photos of YFCC100M, for a small net to learn what a large one says of them.

Where the faces are is told by a file of boxes, or found by OpenCV's YuNet (`cv2.FaceDetectorYN`) with weights among the
data set's files, such as https://github.com/opencv/opencv_zoo, models/face_detection_yunet, which are not part of this.

The shards keep the number of the photo that a face is from; not who took it, nor where. Faces are people: what is made
of them must not be used to identify or judge anyone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pipelines.crawl import Crawled, Part, Wanted, crawled, read_part
from pipelines.images import BadImage, check
from pipelines.section import Fraction, Positive
from pipelines.sources.base import Box, Sample, Source
from pipelines.sources.yfcc100m import (
    Listing,
    image_urls,
    is_placeholder,
    note_passed,
    passed,
    pseudonym,
    rows,
    split_of,
)

MAX_PIXELS, MAX_BYTES = 64_000_000, 1 << 26  # of an image in which faces are looked for; the bucket's have 500 x 500
OVERLAP = 0.3  # boxes of YuNet that share more of their area are one face: OpenCV's own default
CANDIDATES = 5_000  # also OpenCV's


class Options(Listing):
    """`shard.options` of params.yaml."""

    boxes: str | None  # a data set's file with a line for each face: photo, left, top, width, height, between tabs
    detector: str | None  # or one with the weights of YuNet (ONNX)
    min_confidence: Fraction  # of the detector
    margin: Annotated[float, Field(ge=0)]  # added on each side of a box, as a share of its width or height
    min_side: Positive  # pixels of a box; smaller faces are bad images

    @model_validator(mode="after")
    def _has_one_way(self) -> Options:
        if (self.boxes is None) == (self.detector is None):
            raise ValueError("just one of boxes and detector must be given")
        return self


class Unit(NamedTuple):
    """A part of the crawl, and how faces are cut from it."""

    part: Part
    detector: Path | None
    options: Options


class Boxes(NamedTuple):
    """All boxes, those of a photo together: `photos`, which rises, has an entry for each of the rows of `boxes`.

    24 bytes to a box. photos: an `array`, since `bisect` is three times as fast on it as on NumPy's.
    """

    photos: array[int]
    boxes: npt.NDArray[np.int32]  # (faces, 4): left, top, width, height in pixels


def classes(_folder: Path) -> list[str]:
    """None: the faces have no labels."""
    return []


def wanted(folder: Path, options: Options) -> Iterator[Wanted]:
    """The photos to fetch, in the order of the list: those with a large enough box, or all if a detector shall look.

    Raises ValueError that names the file for a list, or boxes, that are none, and for boxes of photos that are not in
    the list.
    """
    boxes = read_boxes(folder / options.boxes) if options.boxes else None
    seen = np.zeros(len(boxes.photos) if boxes else 0, bool)
    passed_over = Counter[str]()
    for row in rows(folder / options.metadata, options.rows):
        if row.is_video:
            passed_over["video"] += 1
            continue
        fields: dict[str, Any] = {"uploader": pseudonym(row.uploader)}
        if boxes:
            first, last = _range(boxes.photos, row.photo)
            seen[first:last] = True
            fields["boxes"] = boxes.boxes[first:last].tolist()
            if not any(_is_large(box, options.min_side) for box in fields["boxes"]):
                passed_over["faces too small" if fields["boxes"] else "no face"] += 1
                continue
        yield Wanted(str(row.photo), image_urls(row, options), fields)
    note_passed(folder, passed_over)
    if boxes and not seen.all():
        strange = sorted({photo for photo, is_seen in zip(boxes.photos, seen, strict=True) if not is_seen})
        told = ", ".join(map(str, strange[:5]))
        raise ValueError(
            f"{folder / str(options.boxes)} has boxes of {len(strange)} photos that are not in the list: {told}"
        )


def read_boxes(path: Path) -> Boxes:
    """The boxes of a file, whatever the order of its lines.

    Raises ValueError that names file and line for one that is not five whole numbers, or has no area, and for a cut
    file; and the photo for a box that comes twice.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    photos, boxes = array("q"), array("i")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                photo, *box = (int(value) for value in line.split(b"\t"))
                if len(box) != 4 or min(box[2:]) <= 0 or not line.endswith(b"\n"):
                    raise ValueError  # noqa: TRY301
                photos.append(photo)
                boxes.extend(box)
            except (ValueError, OverflowError):
                told = line.decode("utf-8", "replace")
                raise ValueError(
                    f"{path} line {number}: {told!r:.80} is not a photo, left, top, width, height, between tabs"
                ) from None
    ids, table = np.frombuffer(photos, np.int64), np.frombuffer(boxes, np.int32).reshape(-1, 4)
    order = np.lexsort((*table.T[::-1], ids))  # of any order of lines the same faces in the same order
    ids, table = ids[order], table[order]
    twice = np.flatnonzero((ids[1:] == ids[:-1]) & (table[1:] == table[:-1]).all(axis=1))
    if len(twice):
        raise ValueError(f"{path}: photo {ids[twice[0]]} has the box {table[twice[0]].tolist()} twice")
    return Boxes(array("q", ids.tobytes()), table)


def units(folder: Path, options: Options) -> list[Unit]:
    """The parts of the crawl. Raises ValueError that names the weights of the detector if they are absent."""
    detector = folder / options.detector if options.detector else None
    if detector and not detector.exists():
        raise ValueError(f"{detector} does not exist: the weights of the face detector")
    return [Unit(part, detector, options) for part in crawled(folder)]


def samples(unit: Unit) -> Iterator[Sample]:
    """The faces of a part, each with the part of its photo that shows it, margin included; `image_id` is the photo.

    Boxes are those of the photo as it is stored, before a turn that EXIF may ask for. Too small faces, and what Flickr
    shows in place of a photo, are marked as bad.
    """
    options = unit.options
    detector = _Detector(unit.detector, options.min_confidence) if unit.detector else None
    for photo in read_part(unit.part):
        split = split_of(photo.fields["uploader"], options.val_share, options.seed)
        bad = "placeholder" if is_placeholder(photo.image) else None
        try:
            boxes = photo.fields["boxes"] if detector is None else [] if bad else detector.faces(photo.image)
        except BadImage as error:
            boxes, bad = [], error.cause
        if bad:
            yield _sample(photo, split, 0, None, bad)
            continue
        for number, box in enumerate(boxes):
            is_large = _is_large(box, options.min_side)
            yield _sample(photo, split, number, _crop(box, options.margin), None if is_large else "face too small")


def _sample(photo: Crawled, split: str, number: int, crop: Box | None, bad: str | None) -> Sample:
    name = f"{photo.key}_{number}.jpg"
    return Sample(split, name, photo.image, {"image_id": int(photo.key)}, photo.place, crop, bad)


def _range(photos: array[int], photo: int) -> tuple[int, int]:
    first = bisect_left(photos, photo)
    last = first
    while last < len(photos) and photos[last] == photo:
        last += 1
    return first, last


def _is_large(box: list[int], min_side: int) -> bool:
    return min(box[2:]) >= min_side


def _crop(box: list[int], margin: float) -> Box:
    """The box with its margin; what sticks out of the photo is left out when it is cut."""
    left, top, width, height = box
    across, down = round(margin * width), round(margin * height)
    return Box(top - down, left - across, height + 2 * down, width + 2 * across)


class _Detector:
    """YuNet."""

    def __init__(self, weights: Path, min_confidence: float) -> None:
        import cv2

        try:
            self._net = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), min_confidence, OVERLAP, CANDIDATES)
        except cv2.error as error:
            raise ValueError(f"{weights} is not a face detector that OpenCV can read: {error}") from None

    def faces(self, image: bytes) -> list[list[int]]:
        """Boxes (left, top, width, height) in pixels of the image as it is stored, from left to right.

        Raises BadImage for what is no image, or too large to be looked at.
        """
        import simplejpeg

        jpeg = check(image, MAX_PIXELS, MAX_BYTES, upright=False).image
        pixels = simplejpeg.decode_jpeg(jpeg, "BGR")
        self._net.setInputSize((pixels.shape[1], pixels.shape[0]))
        _, found = self._net.detect(pixels)  # (faces, 15): box, ten coordinates of landmarks, confidence
        return sorted([round(float(value)) for value in face[:4]] for face in ([] if found is None else found))


SOURCE = Source(classes, units, samples, Options, wanted=wanted, select=passed, bare=True)
