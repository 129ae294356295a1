"""What a trained detector finds in a folder of images: `python -m pipelines.predict <run> <folder> <out>`.

The folder is searched at any depth for .jpg, .jpeg, .png, .bmp and .webp, but for hidden ones: names that begin with a
dot. Into <out>, which is made, it writes

  detections.json  COCO's results: image_id, category_id, bbox (x, y, width, height in pixels), score; an image's best
                   come first
  images.json      the images and categories that those numbers mean, so that pycocotools reads both by
                   COCO("images.json").loadRes("detections.json"). An image's id is the number that its name ends with,
                   as in COCO, if every name ends with one of its own; else they are 1, 2, ... in the order of the paths
  drawn/           the images with their boxes, as JPEG; small ones are enlarged

An image is seen as in evaluation: the run's central crop at the run's input size. Its pixels count as they are stored,
as for COCO's own boxes: an EXIF orientation is not obeyed. What is transparent is white.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.command import end_process, one_line_errors, stage_parser
from pipelines.config import Params, load
from pipelines.files import write_json
from pipelines.plan import row_folder, trained
from pipelines.progress import counted
from pipelines.section import parsed
from pipelines.training.run import Run

if TYPE_CHECKING:
    from torch import nn

    from pipelines.image_folder import Picture
    from pipelines.images import Pixels

log = logging.getLogger(__name__)

TASK = "object_detection"
JPEG_QUALITY = 90
SHORT, LONG = 320, 1600  # px: smaller images are drawn larger, by a whole factor, up to one of these sides


class Detection(NamedTuple):
    """corners: x1, y1, x2, y2 in pixels of the image as it is stored. category: COCO's number."""

    corners: tuple[float, float, float, float]
    category: int
    score: float


class Seen(NamedTuple):
    """A decoded image, and what the net sees of it: `view` (size, size, 3) is `crop`, top, left, height and width."""

    picture: Picture
    pixels: Pixels
    crop: tuple[int, int, int, int]
    view: Pixels


@dataclass(frozen=True)
class Detector:
    """A net, in evaluation mode, what it sees of an image, and the names of its labels; others are no detections.

    net: images (1, 3, size, size) in [-1, 1] -> (1, K, 6), rows of x1, y1, x2, y2 in [0, 1] of what it saw, score and
    label, best first; rows with score 0 say nothing.
    """

    net: nn.Module
    device: str
    size: int
    central_fraction: float
    antialias: bool
    categories: Mapping[int, str]


def predict(params: Params, scale: str, name: str, folder: Path, out: Path, draw_above: float, **given: Any) -> None:
    """Run a trained run's detector over a folder; `given` stands in for values of the run's `detection`.

    Raises ValueError where the run, the folder, a value or an image is not what is asked for; then there is no `out`.
    """
    run = detector_run(params, scale, name, given)
    if not 0 <= draw_above <= 1:
        raise ValueError(f"draw_above is {draw_above}; scores are between 0 and 1")
    check_out(folder, out)
    record = trained(params, scale, name)

    from pipelines.image_folder import find_pictures

    pictures = find_pictures(folder)
    detector = read_detector(run, row_folder(params, scale, name) / "weights.pt", record)
    predict_pictures(detector, pictures, out, draw_above, max(1, run.decode_threads))


def detector_run(params: Params, scale: str, name: str, given: Mapping[str, Any]) -> Run:
    """A run that detects objects, with the values that are given in place of its own. Raises ValueError for others."""
    detectors = [run for table in params.tables.values() if table.task == TASK for run in table.runs]
    table = params.table_of(name)
    if table is None or name not in detectors:
        found = "is unknown" if table is None else f"is of task {params.tables[table].task} and finds no objects"
        raise ValueError(f"run {name!r} {found}; those that do are: {', '.join(detectors) or 'none'}")
    run = params.runs(table, scale)[name]
    assert run.detection is not None, name
    values = {**run.detection.model_dump(), **given}
    return run.model_copy(update={"detection": parsed(type(run.detection), values, "")})


def check_out(folder: Path, out: Path) -> None:
    """Raise ValueError for a place where something is, and for one where the next search would find what was drawn."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; name another")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{out} is in {folder}, where what is drawn would be taken for an image next time; name another"
        )


def read_detector(run: Run, weights: Path, record: Mapping[str, Any]) -> Detector:
    """A run's net and what its record says of it, on the GPU where there is one."""
    import torch

    from pipelines.training.job import trained_net

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = trained_net(run, record["num_outputs"], weights)
    net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    named = (category.partition(" ") for category in record["classes"])  # "1 person"
    categories = {int(number): name for number, _, name in named}
    return Detector(net, device, run.input_size, run.augment.central_fraction, run.augment.antialias, categories)


def predict_pictures(
    detector: Detector, pictures: Sequence[Picture], out: Path, draw_above: float, threads: int
) -> None:
    """Write what a detector finds in the pictures into `out`: all of it or, where an error is raised, nothing.

    draw_above: the score from which boxes are drawn. So many threads decode ahead of the net and draw behind it; what
    they hold is a few images, however many there are.
    """
    from pipelines.training.reader import ahead

    images, count = [], 0
    with (
        _made(out) as folder,
        (folder / "detections.json").open("w") as file,
        counted("images", len(pictures)) as advance,
        ThreadPoolExecutor(threads) as pool,
    ):
        seen = ahead(pool, partial(_look, detector), pictures, threads + 1)
        found = ((image, _find(detector, image)) for image in seen)
        for image, detections in ahead(pool, partial(_draw, detector, folder, draw_above), found, threads + 1):
            number, (height, width) = image.picture.number, image.pixels.shape[:2]
            images.append({"id": number, "file_name": image.picture.name, "width": width, "height": height})
            for detection in detections:  # a line each: there may be millions
                file.write(f"{',' if count else '['}\n{_result(number, detection)}")
                count += 1
            advance(1)
        file.write("\n]\n" if count else "[]\n")
        categories = [{"id": number, "name": name} for number, name in detector.categories.items()]
        write_json(folder / "images.json", {"images": images, "categories": categories, "annotations": []})
    log.info("%s: %d detections", out, count)


def _look(detector: Detector, picture: Picture) -> Seen:
    import numpy as np

    from pipelines.image_folder import read_pixels
    from pipelines.training.decode import crop_resized
    from tasks.augment import central_crops

    pixels = read_pixels(picture.path)
    heights, widths = np.array(pixels.shape[:2])[:, None]
    top, left, height, width = central_crops(heights, widths, detector.central_fraction)[0].tolist()
    view = np.empty((detector.size, detector.size, 3), np.uint8)
    crop_resized(pixels, (top, left, height, width), detector.antialias, view)
    return Seen(picture, pixels, (top, left, height, width), view)


def _find(detector: Detector, seen: Seen) -> list[Detection]:
    """What the net finds in one image.

    It sees one at a time: convolutions of another batch size may add up in another order and differ in the last bits,
    and what is found in an image must not depend on the others of its folder.
    """
    import torch

    from tasks.augment import normalise

    with torch.inference_mode():
        rows = detector.net(normalise(torch.from_numpy(seen.view)[None].to(detector.device)))[0].cpu()
    top, left, height, width = seen.crop
    found = []
    for (x1, y1, x2, y2), score, label in zip(
        rows[:, :4].tolist(), rows[:, 4].numpy(), rows[:, 5].tolist(), strict=True
    ):
        if score > 0 and label in detector.categories:
            corners = (left + width * x1, top + height * y1, left + width * x2, top + height * y2)
            found.append(Detection(corners, int(label), float(str(score))))  # in the fewest digits that a float32 needs
    return found


def _draw(
    detector: Detector, folder: Path, draw_above: float, found: tuple[Seen, list[Detection]]
) -> tuple[Seen, list[Detection]]:
    """Write a picture with its boxes, and hand on what it was given."""
    import cv2
    import numpy as np
    import simplejpeg

    from pipelines.pictures.boxes import Box, colour_of, draw_boxes

    seen, detections = found
    height, width = seen.pixels.shape[:2]
    by = max(1, min(SHORT // min(height, width), LONG // max(height, width)))
    larger = np.asarray(cv2.resize(seen.pixels, (by * width, by * height), interpolation=cv2.INTER_CUBIC), np.uint8)
    boxes = []
    for corners, category, score in detections:
        if score >= draw_above:
            x1, y1, x2, y2 = (by * value for value in corners)
            label = f"{detector.categories[category]} {score:.2f}"
            boxes.append(Box((x1, y1, x2, y2), label, colour_of(category)))
    target = folder / "drawn" / seen.picture.drawn
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(simplejpeg.encode_jpeg(draw_boxes(larger, boxes), JPEG_QUALITY, colorsubsampling="444"))
    return found


def _result(number: int, detection: Detection) -> str:
    """One of COCO's results, to hundredths of a pixel."""
    x1, y1, x2, y2 = detection.corners
    box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    found = {"image_id": number, "category_id": detection.category, "bbox": box, "score": detection.score}
    return json.dumps(found)


@contextmanager
def _made(out: Path) -> Iterator[Path]:
    """A fresh folder to write into, which becomes `out` at the end, or is gone after an error."""
    target = out.resolve()
    fresh = target.with_name(f".{target.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        fresh.replace(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser(__doc__)
    parser.add_argument("run", help=f"a trained run of params.yaml, of a table of task {TASK}")
    parser.add_argument("folder", type=Path, help="holds the images")
    parser.add_argument("out", type=Path, help="a folder that is made: not there yet, or empty")
    own = "(default: the run's own, in params.yaml)"
    parser.add_argument("--score-threshold", type=float, help=f"above which a box counts, 0 to 1 {own}")
    parser.add_argument("--nms-iou", type=float, help=f"by which two boxes of a category overlap at most, 0 to 1 {own}")
    parser.add_argument("--max-detections", type=int, help=f"of an image {own}")
    parser.add_argument("--draw-above", type=float, default=0.3, help="score from which boxes are drawn (default: 0.3)")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = vars(_parser().parse_args(argv))
    name, scale = arguments.pop("run"), arguments.pop("scale")
    given = {key: value for key, value in arguments.items() if value is not None}
    with one_line_errors():
        params = load()
        predict(params, scale or params.scale, name, **given)


if __name__ == "__main__":
    main()
    end_process()
