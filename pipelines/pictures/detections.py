"""Object detection: how well each category is found, how sure one can be, and what is found in some images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.figures import GREY, LINE_COLORS, draw
from pipelines.page import Picture
from pipelines.pictures.base import Details, Images
from pipelines.pictures.detection_examples import Arrays, at_equal_steps, example_photos, judge, least_score, ranked
from pipelines.tables import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.base import Evaluation, TestSet

LONG = 40  # of more categories the bars stand in two columns
CURVES = {"precision_50": "IoU .5", "precision_75": "IoU .75"}

Floats = npt.NDArray[np.floating]


def detection_details(evaluation: Evaluation, test_set: TestSet, images: Images) -> Details:
    """Some images with what is found in them, the AP of each category, precision over recall; a table of categories.

    arrays: those of `tasks.coco_ap.CocoAP`, and "image_sizes" (N, 2) int64, height and width in pixels of each test
    image in the order of evaluation. Classes are number and name: "1 person".
    """
    arrays = evaluation.arrays
    ap, objects = arrays["ap"], arrays["objects"]
    assert len(ap) == len(objects) == len(test_set.classes), f"{ap.shape}, {len(test_set.classes)} categories"
    names = [category.split(" ", 1)[1] for category in test_set.classes]
    caption = (
        "COCO's AP of each category, which is its mean over the IoU thresholds .5, .55, ... .95, and how many objects "
        "of it there are in the test images, crowds not counted. The dashed line is the mean of the categories."
    )
    if without := int(np.count_nonzero(~np.isfinite(ap))):
        caption += f" Without an AP, for want of objects: {without}."
    pictures = [
        *_examples(arrays, names, images),
        Picture("categories", "AP by category", caption, "", ap_figure(ap, objects, names)),
        Picture("precision_recall", "Precision and recall", _precision_caption(), "", precision_figure(arrays)),
    ]
    records = category_table(ap, objects, test_set.classes)
    return Details(pictures, {"categories": records} if records else {})


def category_table(ap: Floats, objects: npt.NDArray[np.int64], categories: Sequence[str]) -> list[Record]:
    """A record for each category in ascending number; the AP is null of one without objects."""
    records = []
    for category, precision, count in zip(categories, ap, objects, strict=True):
        number, name = category.split(" ", 1)
        reached = float(precision) if np.isfinite(precision) else None
        records.append(Record(category=int(number), name=name, objects=int(count), ap=reached))
    return records


def ap_figure(ap: Floats, objects: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, bytes]:
    """A bar for each category, the best first; those without an AP are last."""
    order = np.argsort(-ap, kind="stable")
    columns = np.array_split(order, 2) if len(order) > LONG else [order]
    mean = float(np.nanmean(ap)) if np.isfinite(ap).any() else None

    def plot(figure: Figure) -> None:
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, places in zip(panels, columns, strict=True):
            _bars(axes, 100 * ap[places], objects[places], [names[place] for place in places], len(columns[0]))
            if mean is not None:
                label = f"COCO AP {100 * mean:.1f} %"
                axes.axvline(100 * mean, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=label)
        if mean is not None:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", fontsize=9)

    return draw(plot, 7, 1.2 + 0.23 * len(columns[0]))


def _bars(axes: Axes, ap: Floats, objects: npt.NDArray[np.int64], names: Sequence[str], rows: int) -> None:
    """ap: in per cent. rows: how many there is room for."""
    axes.barh(range(len(ap)), np.nan_to_num(ap), height=0.7, color=LINE_COLORS[0])
    for row, count in enumerate(objects):
        axes.annotate(
            f"{count:,}", (1, row), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
            va="center", color=GREY, fontsize=8,
        )  # fmt: skip
    axes.annotate(
        "objects", (1, 1), xycoords="axes fraction", xytext=(6, 2), textcoords="offset points", ha="center",
        color=GREY, fontsize=8,
    )  # fmt: skip
    labels = [name if np.isfinite(value) else f"{name} (no AP)" for name, value in zip(names, ap, strict=True)]
    axes.set_yticks(range(len(ap)), labels, fontsize=9)
    axes.set(xlabel="AP, %", xlim=(0, 102), ylim=(rows - 0.4, -0.6))
    axes.grid(axis="y", visible=False)


def precision_figure(arrays: Arrays) -> dict[str, bytes]:
    """The curves of `CURVES` over recalls of 0, 0.01, ... 1; none where there are no objects."""

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (key, label), color in zip(CURVES.items(), LINE_COLORS, strict=False):
            precision = 100 * arrays[key]
            if np.isfinite(precision).all():
                shown = f"{label}: mean {precision.mean():.1f} %"
                axes.plot(np.linspace(0, 100, len(precision)), precision, color=color, linewidth=1.8, label=shown)
        axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="recall, %", ylabel="precision, %")
        if axes.lines:
            axes.legend(loc="upper right", fontsize=9)

    return draw(plot, 5.6, 4.2)


def _precision_caption() -> str:
    return (
        "Going down the scores of a category's detections, the share of its objects that are found so far (recall) and "
        "the share of the detections that are right (precision, the best at that recall or a higher one), as the mean "
        "of the categories. A detection is right if its box and an object's have an IoU of at least .5 or .75: the "
        "area that both cover, over the area that either does. The mean along a curve is the AP at its threshold."
    )


def _examples(arrays: Arrays, names: Sequence[str], images: Images) -> list[Picture]:
    judged = judge(arrays)
    least = least_score(arrays, judged)
    chosen = at_equal_steps(ranked(arrays, judged, least))
    if not chosen:
        return []
    files = example_photos(chosen, arrays, judged, least, names, images)
    drawn = (
        f"Drawn are detections that score at least {least:.3g}, from which on their F1 in all test images is highest"
        if math.isfinite(least)
        else "There are no detections to be drawn"
    )
    caption = (
        f"{len(chosen)} of the test images, at equal steps from that with the highest F1 to that with the lowest. "
        "F1 is twice the objects that are found over the sum of all objects and all detections; a detection finds an "
        f"object of its category at an IoU of at least .5, or is false. {drawn}, each with its category and score. "
        "Dashed is what is there, with a name if it is missed. In what is marked as a crowd nothing counts as false."
    )
    return [Picture("detections", "What is found in images", caption, "", files)]
