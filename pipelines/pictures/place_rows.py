"""Photos, each beside maps of where a net takes it to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.figures import GREY, draw
from pipelines.pictures.base import Images
from pipelines.pictures.photo_grid import DPI
from pipelines.pictures.world import HEIGHT, NOWHERE, Cells, Floats, Map, around, frame, graticule, paint, sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

PHOTOS = 6
# All in pixels of the PNG.
SIDE, TALL, GAP, MARGIN = 192, 270, 26, 16  # of a photo, of its maps, between and around them
KEY, TITLE, SPACE = 104, 38, 22  # heights: of what explains the colours, of a row's title, below a row
LEAST = 1e-4  # probability: the end of the scale of colours
SEEN = 9  # pixels without which a cell is shown as a dot
TRUTH: dict[str, Any] = {"color": "#009E73", "marker": "*", "markersize": 13}
DECODED: dict[str, Any] = {"color": "#0072B2", "marker": "X", "markersize": 7.5}
EDGE: dict[str, Any] = {"linestyle": "", "markeredgecolor": "white", "markeredgewidth": 0.8}
OUTLINE = 200  # grey
DOTS = ((1e-3, 9), (1e-2, 20), (1e-1, 44))  # probability from which on, area in square points


class Photo(NamedTuple):
    """A test photo. probabilities: (C,), 0 of cells that are not among the likeliest. decoded: NaN where nowhere."""

    number: int
    truth: Floats
    decoded: Floats
    probabilities: Floats
    error: float
    confidence: float
    hit: bool


def chosen(errors: Floats) -> list[int]:
    """PHOTOS of the photos, or all where there are fewer, at equal steps from the smallest error to the largest."""
    order = np.argsort(np.where(np.isfinite(errors), errors, np.inf), kind="stable")
    ranks = np.linspace(0, len(order) - 1, min(PHOTOS, len(order))).round().astype(np.int64)
    return [int(photo) for photo in order[ranks]]


def read_photo(arrays: dict[str, npt.NDArray[Any]], number: int, cells: int) -> Photo:
    """One photo of an evaluation's arrays, with the probabilities of all cells."""
    probabilities = np.zeros(cells)
    probabilities[arrays["top_cells"][number]] = np.nan_to_num(arrays["top_probabilities"][number], posinf=0, neginf=0)
    return Photo(
        number=number,
        truth=arrays["truth"][number],
        decoded=arrays["decoded"][number],
        probabilities=probabilities,
        error=float(arrays["errors_km"][number]),
        confidence=float(arrays["confidence"][number]),
        hit=bool(arrays["hit"][number]),
    )


def photo_rows(photos: Sequence[Photo], cells: Cells, whole: Map, images: Images) -> dict[str, bytes]:
    """{".png": ..., ".svg": ...} of a row for each photo: itself, the world, and the surroundings of the true place.

    whole: the cells' `world`.
    """
    pictures = images([photo.number for photo in photos])
    step = HEIGHT // TALL
    whole = whole._replace(raster=whole.raster[::step, ::step])
    width = 2 * MARGIN + SIDE + 3 * TALL + 2 * GAP
    height = KEY + (TITLE + TALL + SPACE) * len(photos)

    def plot(figure: Figure) -> None:
        figure.set_layout_engine("none")
        shades = _shades()
        _key(figure, shades)
        for row, (photo, picture) in enumerate(zip(photos, pictures, strict=True)):
            top = KEY + (TITLE + TALL + SPACE) * row
            middle = 1 - (top + TITLE / 2) / height
            figure.text(MARGIN / width, middle, title(photo), fontsize=9.5, fontweight="bold", va="center")
            _put(frame(figure, MARGIN, top + TITLE, SIDE, SIDE), picture, photo)
            left = MARGIN + SIDE + GAP
            axes = frame(figure, left, top + TITLE, 2 * TALL, TALL)
            _map(axes, whole, photo, cells, shades)
            graticule(axes)
            axes = frame(figure, left + 2 * TALL + GAP, top + TITLE, TALL, TALL)
            shown = around(photo.truth, 1.15 * ring(photo.error), cells, TALL)
            _map(axes, shown, photo, cells, shades)
            _rings(axes, shown.extent[1])

    return draw(plot, width / DPI, height / DPI)


def title(photo: Photo) -> str:
    """How far off the photo is placed, and how surely."""
    if not np.isfinite([photo.error, photo.confidence, *photo.decoded]).all():
        return "placed nowhere: the net's outputs are no numbers"
    off = f"{photo.error:,.{1 if photo.error < 10 else 0}f} km off, confidence {100 * photo.confidence:.1f} %"
    return f"{off}, in {'the right' if photo.hit else 'another'} cell"


def ring(error: float) -> float:
    """The radius in km that is to be seen around the truth: the next of the paper's above the error, or the largest."""
    from tasks.place_errors import RADII_KM

    return next((km for km in RADII_KM[1:] if error <= km), RADII_KM[-1])


def _shades() -> ScalarMappable:
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    return ScalarMappable(LogNorm(LEAST, 1), matplotlib.colormaps["magma_r"].with_extremes(under="white"))


def _key(figure: Figure, shades: ScalarMappable) -> None:
    """What the colours and the marks mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter

    wide, high = figure.get_size_inches() * DPI
    below = frame(figure, MARGIN + SIDE + GAP, 14, 1.6 * TALL, 16)
    bar = figure.colorbar(shades, cax=below, orientation="horizontal", label="probability of the cell, %")
    bar.set_label("probability of the cell, %", fontsize=8.5)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    bar.ax.tick_params(labelsize=8, length=3, width=0.6)
    bar.ax.minorticks_off()
    handles = [
        Line2D([], [], **TRUTH, **EDGE, label="where it was taken"),
        Line2D([], [], **DECODED, **EDGE, label="where it is placed"),
        Patch(facecolor=NOWHERE, edgecolor=GREY, linewidth=0.6, label="no cell"),
    ]
    figure.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1 - MARGIN / wide, 1 - 8 / high), ncols=2, fontsize=8.5,
        borderaxespad=0, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


def _put(axes: Axes, picture: npt.NDArray[np.uint8], photo: Photo) -> None:
    """The photo above its number and place."""
    axes.imshow(picture, interpolation="lanczos")
    axes.set(xticks=[], yticks=[])
    latitude, longitude = photo.truth
    place = f"{abs(latitude):.2f}°{'S' if latitude < 0 else 'N'}, {abs(longitude):.2f}°{'W' if longitude < 0 else 'E'}"
    axes.set_xlabel(f"photo {photo.number}\n{place}", fontsize=8, color=GREY)


def _map(axes: Axes, shown: Map, photo: Photo, cells: Cells, shades: ScalarMappable) -> None:
    """The probabilities of a map's cells, those of tiny ones as dots, with where the photo was taken and is placed."""
    from tasks import s2

    values = np.maximum(photo.probabilities, np.finfo(np.float64).tiny)
    colors = shades.to_rgba(values, bytes=True)[:, :3]
    axes.imshow(paint(shown, colors, OUTLINE), extent=shown.extent, interpolation="none", aspect="auto")
    small = sizes(shown, len(cells)) < SEEN
    for least, area in DOTS:  # larger ones upon smaller ones; those of one size are a shape that an SVG has once
        dots = np.flatnonzero(small & (photo.probabilities >= least))
        x, y = shown.project(s2.centres(cells[dots])).T
        axes.scatter(x, y, area, c=colors[dots] / 255, linewidths=0.3, edgecolors=GREY)
    for place, style in ((photo.truth, TRUTH), (photo.decoded, DECODED)):
        if np.isfinite(place).all():
            axes.plot(*shown.project(place[None]).T, **style, **EDGE, zorder=4)
    axes.set(xlim=shown.extent[:2], ylim=shown.extent[2:], xticks=[], yticks=[])


def _rings(axes: Axes, reach: float) -> None:
    """The paper's radii around the middle of a map, as far as they are seen."""
    from matplotlib.patches import Circle
    from matplotlib.patheffects import withStroke

    from tasks.place_errors import RADII_KM

    for km in (km for km in RADII_KM if 0.2 * reach < km < reach):
        axes.add_patch(Circle((0, 0), km, facecolor="none", edgecolor=GREY, linewidth=0.8, linestyle=(0, (4, 3))))
        halo = [withStroke(linewidth=2, foreground="white")]
        axes.text(0, -km, f"{km:,} km", fontsize=7, ha="center", va="center", color="#333333", path_effects=halo)
