"""Face attributes: how well each is found, and images at both ends of the ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.figures import GREY, LINE_COLORS, draw
from pipelines.page import Picture
from pipelines.pictures.base import Details, Images, readable
from pipelines.pictures.photo_grid import Row, Tile, photo_grid
from pipelines.tables import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.base import Evaluation, TestSet

BEST, WORST = 4, 2  # attributes whose images are shown
SHOWN = 5  # images at each end of a ranking

Floats = npt.NDArray[np.floating]


def attribute_details(evaluation: Evaluation, test_set: TestSet, images: Images) -> Details:
    """The average precision of each attribute beside chance, and the images it ranks first and last.

    arrays: "ap" and "prevalence" (A,) in [0, 1], the AP NaN where it is not defined; "scores" (N, A) probabilities;
    "labels" (N, A) uint8. A random ranking's AP is the prevalence.
    """
    ap, prevalence = evaluation.arrays["ap"], evaluation.arrays["prevalence"]
    assert len(ap) == len(prevalence) == len(test_set.classes), f"{ap.shape}, {len(test_set.classes)} attributes"
    names = [readable(name) for name in test_set.classes]
    caption = "Average precision (AP) of each attribute, and its prevalence, which is the AP of guessing."
    pictures = [Picture("attributes", "Attributes by AP", caption, "", ap_figure(ap, prevalence, names))]
    if chosen := examples(ap, prevalence):
        rows = [
            Row(
                f"{names[place]}: AP {ap[place]:.3f}, by chance {prevalence[place]:.3f}",
                ends(evaluation.arrays["scores"][:, place], evaluation.arrays["labels"][:, place]),
            )
            for place in chosen
        ]
        caption = (
            "Attributes whose AP is furthest above chance, then those where it is least. ✓ and green: has the "
            "attribute, among the highest scores, or lacks it, among the lowest. ✗ and orange: the other way round."
        )
        files = photo_grid(("highest scores", "lowest scores"), rows, images)
        pictures.append(Picture("attribute_examples", "What is ranked first and last", caption, "", files))
    return Details(pictures, {"attributes": attribute_table(ap, prevalence, test_set.classes)})


def attribute_table(ap: Floats, prevalence: Floats, names: Sequence[str]) -> list[Record]:
    """A record for each attribute in the data set's order; the AP is null where it is not defined."""
    return [
        Record(attribute=name, prevalence=float(share), ap=None if np.isnan(precision) else float(precision))
        for name, share, precision in zip(names, prevalence, ap, strict=True)
    ]


def examples(ap: Floats, prevalence: Floats) -> list[int]:
    """The attributes worth a look: those furthest above chance, then those least so. None whose AP is not defined."""
    gains = ap - prevalence
    ranked = [int(place) for place in np.argsort(-gains, kind="stable") if np.isfinite(gains[place])]
    return ranked if len(ranked) <= BEST + WORST else ranked[:BEST] + ranked[-WORST:]


def ends(scores: Floats, labels: npt.NDArray[np.uint8]) -> tuple[list[Tile], list[Tile]]:
    """The images with the highest scores, the highest first, and with the lowest, the lowest first: none is in both."""
    ranked = np.argsort(-scores, kind="stable")
    highest = ranked[: min(SHOWN, (len(ranked) + 1) // 2)]
    lowest = ranked[: len(highest) - 1 : -1][:SHOWN]
    return (
        [Tile(int(place), f"{scores[place]:.2f}", bool(labels[place])) for place in highest],
        [Tile(int(place), f"{scores[place]:.2f}", not labels[place]) for place in lowest],
    )


def ap_figure(ap: Floats, prevalence: Floats, names: Sequence[str]) -> dict[str, bytes]:
    """A row for each attribute, the best AP first; those without an AP are last and have their prevalence alone."""
    order = np.argsort(-ap, kind="stable")
    rows = np.arange(len(order))

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.hlines(rows, prevalence[order], ap[order], color=LINE_COLORS[0], linewidth=1.5, alpha=0.35)
        axes.plot(prevalence[order], rows, "|", color=GREY, markersize=10, markeredgewidth=2, label="prevalence")
        axes.plot(ap[order], rows, "o", color=LINE_COLORS[0], markersize=6.5, label="AP")
        if np.isfinite(ap).any():
            mean = float(np.nanmean(ap))
            axes.axvline(mean, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=f"mean AP {mean:.3f}")
        labels = [names[place] + ("" if np.isfinite(ap[place]) else " (no AP)") for place in order]
        axes.set_yticks(rows, labels, fontsize=9)
        axes.set(xlabel="average precision", xlim=(0, 1.02), ylim=(len(rows) - 0.4, -0.6))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper center", ncols=3, fontsize=9)

    return draw(plot, 7, 1.2 + 0.22 * len(names))
