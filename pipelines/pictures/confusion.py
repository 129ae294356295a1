"""Dog breeds: which are told apart, and which are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.figures import GREY, LINE_COLORS, draw
from pipelines.page import Picture
from pipelines.pictures.base import Details, Images, readable
from pipelines.tables import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.base import Evaluation, TestSet

NUMBERED = 12  # a map of more classes has no numbers in its cells
NAMED = 30  # a map of more has no names on its axes
LISTED, ENDS = 40, 15  # of more classes than LISTED, so many best and so many worst are named
TICKS = (0, 1, 5, 20, 50, 100)  # per cent

Counts = npt.NDArray[np.int64]  # (C, C): rows are the true classes, columns the predicted ones


class Breed(NamedTuple):
    """How a class fared. The accuracy and the ends of its 95 % interval are in [0, 1]; null, 0 and 1 of no samples."""

    name: str
    samples: int
    correct: int
    accuracy: float | None
    low: float
    high: float


def dog_details(evaluation: Evaluation, test_set: TestSet, _: Images) -> Details:
    """A map of `arrays["confusion"]`, (C, C) int64 with the true classes as rows, and the accuracy of each class."""
    counts = evaluation.arrays["confusion"]
    assert counts.shape == (len(test_set.classes),) * 2, f"{counts.shape}, {len(test_set.classes)} classes"
    breeds = [breed(name, counts, label) for label, name in enumerate(test_set.classes)]
    caption = (
        "Of each true breed's images, how many were taken for which breed, in per cent. The scale of the colours is "
        "that of square roots, so that rare mistakes show."
    )
    if len(breeds) > NAMED:
        caption += " Breeds are numbered from 0 in the order of the data set's labels."
    pictures = [Picture("confusion", "Breeds taken for one another", caption, "", confusion_figure(counts, breeds))]
    caption = "With 95 % Wilson intervals; the dashed line is the accuracy over all images."
    if without := sum(breed.samples == 0 for breed in breeds):
        caption += f" Left out for want of images: {without}."
    pictures.append(Picture("per_class", "Accuracy by breed", caption, "", accuracy_figure(breeds)))
    tables = {"per_class": per_class_table(counts, breeds), "confusion": confusion_table(counts, test_set.classes)}
    return Details(pictures, {name: records for name, records in tables.items() if records})


def breed(name: str, counts: Counts, label: int) -> Breed:
    """How class `label` fared."""
    from tasks.imagenet import wilson_interval

    samples, correct = int(counts[label].sum()), int(counts[label, label])
    return Breed(name, samples, correct, correct / samples if samples else None, *wilson_interval(correct, samples))


def per_class_table(counts: Counts, breeds: Sequence[Breed]) -> list[Record]:
    """A record for each class in label order; `most_confused_with` is null where nothing was confused."""
    wrong = counts * ~np.eye(len(counts), dtype=np.bool_)
    records = []
    for label, (name, *numbers) in enumerate(breeds):
        other = int(wrong[label].argmax())
        confused = int(wrong[label, other])
        shown = dict(zip(("samples", "correct", "accuracy", "low", "high"), numbers, strict=True))
        mistaken = breeds[other].name if confused else None
        records.append(Record({"class": name, **shown, "most_confused_with": mistaken, "confused": confused}))
    return records


def confusion_table(counts: Counts, classes: Sequence[str]) -> list[Record]:
    """The pairs that were confused, the most frequent first."""
    pairs = [(int(true), int(predicted)) for true, predicted in np.argwhere(counts) if true != predicted]
    pairs.sort(key=lambda pair: -counts[pair])
    return [Record(true=classes[a], predicted=classes[b], count=int(counts[a, b])) for a, b in pairs]


def confusion_figure(counts: Counts, breeds: Sequence[Breed]) -> dict[str, bytes]:
    """Shares of each row as colours; a class without samples is grey."""
    size = len(breeds)
    with np.errstate(invalid="ignore"):
        shares = 100 * counts / counts.sum(axis=1, keepdims=True)

    def plot(figure: Figure) -> None:
        import matplotlib
        from matplotlib.colors import PowerNorm

        axes = figure.add_subplot()
        colors = matplotlib.colormaps["Blues"].with_extremes(bad="#cccccc")
        shown = axes.imshow(shares, cmap=colors, norm=PowerNorm(0.5, 0, 100), interpolation="none")
        axes.grid(visible=False)
        axes.set(xlabel="predicted breed", ylabel="true breed")
        if size <= NAMED:
            names = [readable(breed.name) for breed in breeds]
            slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
            font = 9 if size <= NUMBERED else 8
            axes.set_xticks(range(size), names, fontsize=font, **(slanted if size <= NUMBERED else {"rotation": 90}))
            axes.set_yticks(range(size), names, fontsize=font)
        if size <= NUMBERED:
            for row, column in np.argwhere(counts):
                share = shares[row, column]
                color = "white" if share > 30 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=color)
        bar = figure.colorbar(shown, shrink=0.7, ticks=TICKS, label="of the true breed's images, %")
        bar.outline.set_visible(False)

    return draw(plot, 7, 5.6 if size <= NUMBERED else 6)


def accuracy_figure(breeds: Sequence[Breed]) -> dict[str, bytes]:
    """Classes by accuracy: all of them named, or those at the ends below a panel of all."""
    ranked = sorted((breed for breed in breeds if breed.samples), key=lambda breed: -breed.correct / breed.samples)
    all_named = len(ranked) <= LISTED
    rows: list[Breed | None] = [*ranked] if all_named else [*ranked[:ENDS], None, *ranked[-ENDS:]]
    mean = 100 * sum(breed.correct for breed in ranked) / max(sum(breed.samples for breed in ranked), 1)
    tall = 0.9 + 0.23 * len(rows)

    def plot(figure: Figure) -> None:
        if all_named:
            below = figure.add_subplot()
        else:
            above, below = figure.subplots(2, height_ratios=[2.4, tall])
            _all(above, ranked, mean)
        _named(below, rows, len(ranked) - 2 * ENDS)
        below.axvline(mean, color=GREY, linewidth=1, linestyle=(0, (4, 3)))

    return draw(plot, 7, tall if all_named else tall + 2.4)


def _all(axes: Axes, ranked: Sequence[Breed], mean: float) -> None:
    """A point for each class by its rank."""
    for rank, breed in enumerate(ranked, start=1):
        axes.plot([rank, rank], [100 * breed.low, 100 * breed.high], color=LINE_COLORS[0], linewidth=1, alpha=0.4)
        axes.plot(rank, 100 * breed.correct / breed.samples, "o", color=LINE_COLORS[0], markersize=3)
    axes.axhline(mean, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlabel=f"rank among {len(ranked)} breeds", ylabel="accuracy, %", xlim=(0, len(ranked) + 1), ylim=(0, 102))
    axes.grid(axis="x", visible=False)


def _named(axes: Axes, rows: Sequence[Breed | None], between: int) -> None:
    """A row for each class, with its counts at the right; null stands for those `between`."""
    labels = []
    for row, breed in enumerate(rows):
        if breed is None:
            labels.append(f"({between} more)")
            continue
        labels.append(readable(breed.name))
        axes.plot([100 * breed.low, 100 * breed.high], [row, row], color=LINE_COLORS[0], linewidth=1.5, alpha=0.45)
        axes.plot(100 * breed.correct / breed.samples, row, "o", color=LINE_COLORS[0], markersize=6)
        axes.annotate(
            f"{breed.correct}/{breed.samples}", (1, row), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", color=GREY, fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set(xlabel="accuracy, %", xlim=(0, 102), ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
