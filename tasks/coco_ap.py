"""COCO's twelve figures of a detector (https://cocodataset.org/#detection-eval), and how sure its AP is.

hotcoco computes them, to the last bits as pycocotools does, COCO's own code. A category is COCO's sparse number, as in
the shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.base import Evaluation

if TYPE_CHECKING:
    from hotcoco import COCO

Floats = npt.NDArray[np.float64]
Table = npt.NDArray[np.void]

# image: its place in the order of evaluation. corners: x1, y1, x2, y2; box: x, y, width, height; both in pixels.
DETECTION = np.dtype([("image", "<i8"), ("category", "<i8"), ("corners", "<f8", 4), ("score", "<f8")])
OBJECT = np.dtype([("image", "<i8"), ("category", "<i8"), ("box", "<f8", 4), ("area", "<f8"), ("crowd", "?")])

SIZES = ("small", "medium", "large")  # areas up to 32², up to 96², and above, in square pixels
LIMITS = (1, 10, 100)  # detections of an image that count, of each category
ANY_AREA = [0.0, 1e10]  # pycocotools' bounds
IOU_50, IOU_75 = 0, 5  # places among the IoU thresholds .5, .55, ... .95
SPLITS = 200  # of the images into halves, for the interval
SEED = 0  # fixed, so that all nets are judged on the same halves of a test set


class CocoAP:
    """COCO's figures over all images that were taken in.

    metrics: "ap", at the IoU thresholds .5 to .95, 0 if there is no object; "ap_low" and "ap_high", its 95 % interval;
    "ap_50", "ap_75"; "ap_small", "ap_medium", "ap_large"; "ar_1", "ar_10", "ar_100", by how many detections of an image
    count; "ar_small", "ar_medium", "ar_large"; "samples", how many images. Figures are in [0, 1], means over the
    categories that have such objects; one that none has, -1 in pycocotools, is left out.
    arrays, of C categories, D detections and G objects: "ap" (C,), NaN for a category without objects; "objects" (C,)
    int64, how many, crowds not counted; "precision_50" and "precision_75" (101,), means over the categories at recalls
    of 0, 0.01, ... 1. For pictures "detection_image" (D,) int64, places in the order of evaluation; "detection_boxes"
    (D, 4) float32, x1, y1, x2, y2 in pixels; "detection_category" (D,) int64, places among the categories;
    "detection_score" (D,) float32; "object_image", "object_boxes" and "object_category" likewise; "object_crowd" (G,).

    Memory: 56 bytes a detection and 57 an object. For 5,000 images of 100 detections `compute` takes 0.27 GB more, and
    11 s, 10 of them for the interval.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        """categories: number and name, as the shards list COCO's: "1 person". Raises ValueError for others."""
        self.categories = np.array([category_number(category) for category in categories], np.int64)
        if (np.diff(self.categories) <= 0).any():
            raise ValueError(f"categories {self.categories.tolist()}: their numbers must ascend")
        self.image_ids: dict[int, None] = {}  # in the order of evaluation
        self.detections = [np.empty(0, DETECTION)]
        self.objects = [np.empty(0, OBJECT)]

    def update(
        self,
        image_ids: Sequence[int],
        detections: Sequence[Mapping[str, Tensor]],
        objects: Sequence[Sequence[Mapping[str, Any]]],
    ) -> None:
        """Take in N images.

        image_ids: COCO's. detections: of each image "boxes" (K, 4), x1, y1, x2, y2 in pixels of the image as it is
        stored, "scores" (K,) and "labels" (K,) int64, numbers of categories; where COCO has no category of a number,
        as of 12, nothing is counted. objects: of each image, as in the shards' JSON, "category", "box" (x, y, width,
        height in pixels), "area" in square pixels and "crowd". A detection that is not finite counts against the net,
        as an empty box with score 1.
        Raises ValueError for an image that came before and for objects of other categories.
        """
        assert len(image_ids) == len(detections) == len(objects), f"{len(image_ids)} images, {len(detections)} answers"
        for number, times in Counter(image_ids).items():
            if times > 1 or number in self.image_ids:
                raise ValueError(f"image {number} comes twice; each is to be evaluated once")
        first, known = len(self.image_ids), set(self.categories.tolist())
        for number, there in zip(image_ids, objects, strict=True):
            if strange := {thing["category"] for thing in there} - known:
                raise ValueError(f"image {number}: category {min(strange)} is none of {sorted(known)}")
        self.detections.append(_detections(first, detections))
        self.objects.append(_objects(first, objects))
        self.image_ids |= dict.fromkeys(image_ids)

    def compute(self) -> Evaluation:
        """All that was taken in."""
        detections, objects = np.concatenate(self.detections), np.concatenate(self.objects)
        detections = detections[np.isin(detections["category"], self.categories)]
        truth, found = self._datasets(detections, objects)
        precision, recall = _curves(truth, found)
        metrics = {"ap": 0.0, **_figures(precision, recall)}
        metrics["ap_low"], metrics["ap_high"] = _ap_interval(truth, found, sorted(self.image_ids), metrics["ap"])
        metrics["samples"] = len(self.image_ids)
        object_category = np.searchsorted(self.categories, objects["category"])
        arrays = {
            "ap": _means(precision[..., 0, -1], (0, 1)),
            "objects": np.bincount(object_category[~objects["crowd"]], minlength=len(self.categories)),
            "precision_50": _means(precision[IOU_50, ..., 0, -1], 1),
            "precision_75": _means(precision[IOU_75, ..., 0, -1], 1),
            "detection_image": detections["image"],
            "detection_boxes": detections["corners"].astype(np.float32),
            "detection_category": np.searchsorted(self.categories, detections["category"]),
            "detection_score": detections["score"].astype(np.float32),
            "object_image": objects["image"],
            "object_boxes": _corners(objects["box"]).astype(np.float32),
            "object_category": object_category,
            "object_crowd": objects["crowd"],
        }
        return Evaluation(metrics, arrays)

    def _datasets(self, detections: Table, objects: Table) -> tuple[COCO, COCO]:
        """What is there and what was found, as hotcoco has it."""
        # Here, because a model that only predicts does without it.
        from hotcoco import COCO

        image_ids, corners = np.array([*self.image_ids], np.int64), detections["corners"]
        truth = COCO.from_arrays(
            [{"id": number} for number in self.image_ids],
            [{"id": number, "name": str(number)} for number in self.categories.tolist()],
            image_ids[objects["image"]],
            objects["category"],
            objects["box"],
            area=objects["area"],
            iscrowd=objects["crowd"],
        )
        boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
        columns = image_ids[detections["image"]], boxes, detections["score"], detections["category"]
        return truth, truth.load_res(np.column_stack(columns))


def category_number(category: str) -> int:
    number = category.split(" ")[0]
    if not number.isdecimal():
        raise ValueError(f"category {category!r} does not begin with its number, as '1 person' does")
    return int(number)


def _detections(first: int, found: Sequence[Mapping[str, Tensor]]) -> Table:
    """A batch's, whose first image has the place `first`."""
    boxes, scores, labels = (torch.cat([image[key] for image in found]) for key in ("boxes", "scores", "labels"))
    table = np.empty(len(scores), DETECTION)
    table["image"] = np.repeat(np.arange(first, first + len(found)), [len(image["scores"]) for image in found])
    table["category"] = labels.cpu().numpy()
    table["corners"] = corners = boxes.double().cpu().numpy()
    table["score"] = scores.double().cpu().numpy()
    # pycocotools has a box that is not a number match whatever there is, and hotcoco refuses such a score.
    broken = ~(np.isfinite(corners).all(axis=1) & np.isfinite(table["score"]))
    table["corners"][broken], table["score"][broken] = 0.0, 1.0
    crossed = (table["corners"][:, 2:] < table["corners"][:, :2]).any(axis=1)
    assert not crossed.any(), f"x2 < x1 or y2 < y1 in {corners[crossed].tolist()}"
    return table


def _objects(first: int, there: Sequence[Sequence[Mapping[str, Any]]]) -> Table:
    rows = [
        (image, thing["category"], tuple(thing["box"]), thing["area"], thing["crowd"])
        for image, things in enumerate(there, start=first)
        for thing in things
    ]
    return np.array(rows, OBJECT)


def _corners(boxes: Floats) -> Floats:
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def _curves(truth: COCO, found: COCO) -> tuple[Floats, Floats]:
    """Precision (thresholds, recalls, categories, areas, limits) and recall (thresholds, categories, areas, limits).

    Areas are all, then `SIZES`. NaN where there is no object.
    """
    from hotcoco import COCOeval

    evaluator = COCOeval(truth, found, "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval is not None
    precision, recall = (np.asarray(evaluator.eval[name]) for name in ("precision", "recall"))
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


def _figures(precision: Floats, recall: Floats) -> dict[str, float]:
    """The twelve, but for those that are not defined."""
    parts = {
        "ap": precision[..., 0, -1],
        "ap_50": precision[IOU_50, ..., 0, -1],
        "ap_75": precision[IOU_75, ..., 0, -1],
        **{f"ap_{size}": precision[..., area, -1] for area, size in enumerate(SIZES, start=1)},
        **{f"ar_{limit}": recall[..., 0, place] for place, limit in enumerate(LIMITS)},
        **{f"ar_{size}": recall[..., area, -1] for area, size in enumerate(SIZES, start=1)},
    }
    return {name: float(np.nanmean(values)) for name, values in parts.items() if np.isfinite(values).any()}


def _means(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """As np.nanmean, and NaN without a warning where there is nothing else."""
    defined = np.isfinite(values).sum(axis=axis)
    return np.where(defined > 0, np.nansum(values, axis=axis) / np.maximum(defined, 1), np.nan)


def _ap_interval(truth: COCO, found: COCO, image_ids: Sequence[int], estimate: float) -> tuple[float, float]:
    """The 95 % interval of AP, within [0, 1]; (0, 1) where there is none.

    The images are split into halves at random, `SPLITS` times. The AP of a half spreads about that of all as much as
    that of all spreads about the truth, and is as much above it on average, since AP from few objects is too high: so
    the quantiles of the halves are mirrored at the estimate. Halves are subsamples, in which no image comes twice
    (https://en.wikipedia.org/wiki/Resampling_(statistics)#Subsampling): hotcoco takes an image or leaves it. In
    simulated test sets of 80 and of 400 images with 4 categories it held the true value in 88 % and 91 % of them,
    where the quantiles themselves did in 79 % and 85 %.
    """
    from hotcoco import COCOeval

    evaluator = COCOeval(truth, found, "bbox")
    evaluator.params.area_rng, evaluator.params.area_rng_lbl = [ANY_AREA], ["all"]
    evaluator.params.max_dets = [LIMITS[-1]]
    evaluator.evaluate()
    rng = np.random.default_rng(SEED)
    halves = {}
    for number in range(SPLITS):
        shuffled, middle = rng.permutation(image_ids).tolist(), len(image_ids) // 2
        halves[f"{number}, first"], halves[f"{number}, second"] = shuffled[:middle], shuffled[middle:]
    slices = evaluator.slice_by(halves)
    reached = [ap for name in halves if (ap := slices[name]["AP"]) >= 0]
    if len(image_ids) < 2 or not reached:
        return 0.0, 1.0
    low, high = (2 * estimate - np.quantile(reached, (0.975, 0.025))).clip(0, 1)
    return float(low), float(high)
