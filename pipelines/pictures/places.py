"""Geolocation: how far off photos are placed, how surely, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.figures import GREY, LINE_COLORS, draw
from pipelines.page import Picture
from pipelines.pictures.base import Details, Images
from pipelines.pictures.place_rows import chosen, photo_rows, read_photo
from pipelines.pictures.world import Cells, Floats, Map, cell_map, world
from pipelines.tables import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.base import Evaluation, TestSet

NAMES = ("street", "city", "region", "country", "continent")  # of tasks.place_errors.RADII_KM (PlaNet, section 3)
NEAREST, FURTHEST = 0.1, 20_015  # km, the ends of the axis of errors; the latter is the other side of the Earth
Arrays = dict[str, npt.NDArray[Any]]
WAYS = {  # of placing a photo: the prefix of its arrays, and what it is called
    "": "the likeliest cell",
    "hierarchical_": "going down the quadtree",
    "biggest_": "always the cell with most photos",
}


def place_details(evaluation: Evaluation, test_set: TestSet, images: Images) -> Details:
    """Maps of the cells and of what is predicted of some photos; errors and confidence of all, and a table of them.

    arrays and metrics: those of `tasks.place_errors.PlaceErrors`. What is not finite is left out of the pictures, and
    null in the table.
    """
    from tasks import s2

    arrays, places = evaluation.arrays, test_set.places
    assert places is not None, "the cells' positions are not known"
    cells = np.array([s2.from_token(token) for token in test_set.classes], dtype=np.uint64)
    assert len(cells) == len(places.photos), f"{len(cells)} classes, {len(places.photos)} places"
    shown = world(cells)
    caption = (
        f"The {len(cells):,} cells that the net chooses among, by the number of training photos in each, and where the "
        "test photos were taken. Cells too small for the map are dots."
    )
    pictures = [Picture("cells", "Cells", caption, "", cell_map(cells, places.photos, shown, arrays["truth"]))]
    caption = (
        "Share of the test photos that are placed no further away than so many km: at the position of the likeliest "
        "cell; at that of the cell found by going down S2's quadtree, each time to the likeliest quarter; and, as the "
        "baseline, always at that of the cell with most training photos."
    )
    pictures.append(Picture("errors", "Distance from the truth", caption, "", error_figure(arrays)))
    pictures.append(_reliability(arrays, evaluation.metrics["calibration_error"]))
    pictures.append(_examples(arrays, cells, shown, images))
    return Details(pictures, {"photos": photo_table(arrays, test_set)})


def photo_table(arrays: Arrays, test_set: TestSet) -> list[Record]:
    """A record for each test photo in the order of evaluation, `hit` 0 or 1; null for what is not finite."""
    columns = {
        **{axis: arrays["truth"][:, place] for place, axis in enumerate(("latitude", "longitude"))},
        **{f"decoded_{axis}": arrays["decoded"][:, place] for place, axis in enumerate(("latitude", "longitude"))},
        **{f"{way}error_km": arrays[f"{way}errors_km"] for way in WAYS},
        "confidence": arrays["confidence"],
    }
    values = np.stack(list(columns.values()), axis=1).astype(np.float64)
    records = []
    for photo, (row, hit, cell) in enumerate(zip(values, arrays["hit"], arrays["cell"], strict=True)):
        numbers = {name: float(value) if np.isfinite(value) else None for name, value in zip(columns, row, strict=True)}
        records.append(Record(photo=photo, **numbers, hit=int(hit), token=test_set.classes[cell]))
    return records


def error_figure(arrays: Arrays) -> dict[str, bytes]:
    """The share of photos by error on a logarithmic axis, a curve for each of WAYS, with lines at the paper's radii."""
    from tasks.place_errors import RADII_KM

    def plot(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter

        axes = figure.add_subplot()
        for name, km in zip(NAMES, RADII_KM, strict=True):
            axes.axvline(km, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{name}\n{km:,} km", (km, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
                textcoords="offset points", ha="center", va="bottom", color=GREY, fontsize=8,
            )  # fmt: skip
        for (way, label), style, color in zip(WAYS.items(), ("-", "--", ":"), LINE_COLORS[::2], strict=False):
            axes.plot(*shares(arrays[f"{way}errors_km"]), style, color=color, linewidth=1.8, label=label)
        axes.set(xscale="log", xlim=(NEAREST, FURTHEST), ylim=(0, 102))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set(xlabel="distance from the truth, km", ylabel="photos at most so far off, %")
        axes.legend(loc="upper left", fontsize=9, frameon=True, facecolor="white", edgecolor="none", framealpha=1)

    return draw(plot, 7, 4.2)


def shares(errors: Floats) -> tuple[Floats, Floats]:
    """Distances from NEAREST to FURTHEST km, and the per cent of errors that are not above each."""
    distances = np.geomspace(NEAREST, FURTHEST, 500)
    known = np.sort(errors[np.isfinite(errors)])
    return distances, 100 * np.searchsorted(known, distances, side="right") / len(errors)


class Bin(NamedTuple):
    """Photos of about the same confidence: its mean, least and greatest; the share of hits with its 95 % interval."""

    confidence: float
    least: float
    most: float
    share: float
    low: float
    high: float
    photos: int


def bins(confidence: Floats, hit: npt.NDArray[np.bool_]) -> list[Bin]:
    """Groups of about equally many photos, by rising confidence."""
    from tasks.imagenet import wilson_interval
    from tasks.place_errors import reliability_bins

    found = []
    for group in reliability_bins(confidence):
        of, hits = confidence[group].astype(np.float64), int(hit[group].sum())
        interval = wilson_interval(hits, len(group))
        found.append(Bin(of.mean(), of.min(), of.max(), hits / len(group), *interval, len(group)))
    return found


def reliability_figure(groups: Sequence[Bin]) -> dict[str, bytes]:
    """The share of hits by confidence, with the diagonal on which they are the same."""

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for group in groups:
            mean, least, most, share, low, high = (100 * value for value in group[:6])
            axes.plot([mean, mean], [low, high], color=LINE_COLORS[0], linewidth=1.5, alpha=0.45)
            axes.plot([least, most], [share, share], color=LINE_COLORS[0], linewidth=1.5, alpha=0.45)
            axes.plot(mean, share, "o", color=LINE_COLORS[0], markersize=6.5)
        axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="confidence, %", ylabel="photos in the predicted cell, %")

    return draw(plot, 5.6, 4.6)


def _reliability(arrays: Arrays, calibration_error: float) -> Picture:
    groups = bins(arrays["confidence"], arrays["hit"])
    counts = sorted({group.photos for group in groups})
    caption = (
        "The net's confidence, which is the largest probability, and the share of photos that were taken in that cell. "
        f"Each point is a group of {' or '.join(f'{count:,}' for count in counts)} photos of about the same "
        "confidence: its mean and its range, and the share with its 95 % Wilson interval. On the dashed line "
        "confidence is what it says; the mean distance from it, the expected calibration error, is "
        f"{100 * calibration_error:.1f} points."
    )
    return Picture("reliability", "Confidence and truth", caption, "", reliability_figure(groups))


def _examples(arrays: Arrays, cells: Cells, shown: Map, images: Images) -> Picture:
    numbers = chosen(arrays["errors_km"])
    photos = [read_photo(arrays, number, len(cells)) for number in numbers]
    caption = (
        f"{len(photos)} of the test photos, at equal steps from the one with the smallest error to the one with the "
        "largest. Left map: the world. Right map: what is around the true place, distances from it as they are, with "
        "circles at the paper's radii, the outermost being the next above the error, as far as there is one. Cells too "
        "small for a map are dots, if they have 0.1 % or more, the larger the likelier. White cells have less than "
        f"0.01 %, or are not among the {arrays['top_cells'].shape[1]:,} likeliest."
    )
    return Picture("places", "Photos and where they are placed", caption, "", photo_rows(photos, cells, shown, images))
