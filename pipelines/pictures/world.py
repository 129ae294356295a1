"""Maps of the Earth's S2 cells: rasters of which cell holds each pixel, and how they are coloured."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.figures import GREY, draw
from pipelines.pictures.photo_grid import DPI

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 1080, 540  # px of a map of the world, in the picture as in its raster
LEFT, RIGHT, TOP, BOTTOM = 62, 30, 16, 136  # px around it
LONGITUDES, LATITUDES = range(-180, 181, 30), range(-90, 91, 30)  # that have lines
SEEN = 4  # pixels without which a cell is shown as a dot
MANY = 1000  # dots, of more the dots are smaller
OUTLINED = 40  # pixels from which on a cell has an outline
NOWHERE = "#e3e3e3"  # where no cell is
MARK = "#D55E00"  # of Okabe and Ito's palette

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Cells = npt.NDArray[np.uint64]
Pixels = npt.NDArray[np.uint8]  # (H, W, 3)


class Map(NamedTuple):
    """A part of the Earth as a raster, north at the top.

    raster: (H, W) int64, the place among the cells of the one that holds a pixel's centre, -1 where none does.
    extent: left, right, bottom and top of it, in the units of its axes.
    project: latitude and longitude in degrees (N, 2) -> x and y in these units (N, 2).
    """

    raster: Numbers
    extent: tuple[float, float, float, float]
    project: Callable[[Floats], Floats]


def world(cells: Cells) -> Map:
    """The whole Earth, (HEIGHT, WIDTH) pixels of equal degrees, of C cells in ascending order."""
    latitude = 90 - 180 / HEIGHT * (np.arange(HEIGHT) + 0.5)
    longitude = -180 + 360 / WIDTH * (np.arange(WIDTH) + 0.5)
    places = np.stack(np.meshgrid(latitude, longitude, indexing="ij"), axis=-1)
    return Map(_raster(places, cells), (-180, 180, -90, 90), lambda places: places[:, ::-1])


def around(place: Floats, radius: float, cells: Cells, side: int) -> Map:
    """A square of `side` pixels and 2 * `radius` km around a place (2,), of C cells in ascending order.

    Distances and directions from the place are true (an azimuthal equidistant projection); the axes are km to the east
    and to the north of it.
    """
    from tasks import s2

    axes = _axes(place)
    right = radius * ((np.arange(side) + 0.5) * 2 / side - 1)
    east, north = np.meshgrid(right, -right)
    angle = np.hypot(east, north) / s2.RADIUS_KM
    ahead = np.sinc(angle / np.pi) / s2.RADIUS_KM
    vectors = np.stack([east * ahead, north * ahead, np.cos(angle)], axis=-1) @ axes
    places = s2.places(vectors.reshape(-1, 3)).reshape(side, side, 2)

    def project(places: Floats) -> Floats:
        vectors = s2.unit_vectors(places) @ axes.T
        across = np.hypot(vectors[:, 0], vectors[:, 1])
        scale = s2.RADIUS_KM * np.arctan2(across, vectors[:, 2]) / np.maximum(across, np.finfo(np.float64).tiny)
        return vectors[:, :2] * scale[:, None]

    return Map(_raster(places, cells), (-radius, radius, -radius, radius), project)


def _axes(place: Floats) -> Floats:
    """Unit vectors (3, 3) to the east, to the north and upwards at a place."""
    latitude, longitude = np.radians(place)
    east = [-np.sin(longitude), np.cos(longitude), 0]
    up = [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    return np.array([east, np.cross(up, east), up])


def _raster(places: Floats, cells: Cells) -> Numbers:
    """(H, W) of places (H, W, 2)."""
    from tasks import geocells, s2

    leaves = s2.leaves(places[..., 0].ravel(), places[..., 1].ravel())
    return geocells.assign(leaves, cells).reshape(places.shape[:2])


def sizes(shown: Map, count: int) -> Numbers:
    """(C,) how many pixels each of `count` cells has."""
    return np.bincount(shown.raster.ravel() + 1, minlength=count + 1)[1:]


def paint(shown: Map, colors: Pixels, outline: int) -> Pixels:
    """The raster in a colour (C, 3) for each cell; the larger cells are outlined by blending in a grey, in 0..255."""
    from matplotlib.colors import to_rgb

    nowhere = np.round(255 * np.array(to_rgb(NOWHERE))).astype(np.uint8)
    picture = np.vstack([colors, nowhere])[shown.raster]
    large = np.append(sizes(shown, len(colors)) >= OUTLINED, True)[shown.raster]
    edge = large & _edges(shown.raster)
    picture[edge] = (picture[edge].astype(np.uint16) + outline) // 2
    return picture


def _edges(raster: Numbers) -> npt.NDArray[np.bool_]:
    """(H, W) the pixels whose right or lower neighbour is of another cell."""
    edges = np.zeros(raster.shape, np.bool_)
    edges[:, :-1] = raster[:, :-1] != raster[:, 1:]
    edges[:-1] |= raster[:-1] != raster[1:]
    return edges


def cell_map(cells: Cells, photos: Numbers, shown: Map | None = None, marked: Floats | None = None) -> dict[str, bytes]:
    """{".png": ..., ".svg": ...} of C cells in ascending order, coloured by how many photos (C,) each has.

    A cell of less than SEEN pixels is a dot at its centre. shown: the cells' `world`, where it is known. marked: places
    (N, 2) to be marked.
    """
    shown = world(cells) if shown is None else shown
    least = max(int(photos.min()), 1)
    most = max(int(photos.max()), 2 * least)

    def plot(figure: Figure) -> None:
        import matplotlib
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LogNorm

        shades = ScalarMappable(LogNorm(least, most), matplotlib.colormaps["viridis"])
        colors = shades.to_rgba(photos.clip(min=1), bytes=True)[:, :3]
        picture = paint(shown, colors, 255)
        _dot(picture, shown, cells, colors, photos)
        figure.set_layout_engine("none")
        axes = frame(figure, LEFT, TOP, WIDTH, HEIGHT)
        axes.imshow(picture, extent=shown.extent, interpolation="none", aspect="auto")
        graticule(axes)
        _label(axes)
        if marked is not None:
            axes.plot(*shown.project(marked).T, "o", color=MARK, markersize=3.2, markeredgecolor="white", mew=0.5)
        _key(figure, shades, bool((shown.raster < 0).any()), 0 if marked is None else len(marked))

    return draw(plot, (LEFT + WIDTH + RIGHT) / DPI, (TOP + HEIGHT + BOTTOM) / DPI)


def _dot(picture: Pixels, shown: Map, cells: Cells, colors: Pixels, photos: Numbers) -> None:
    """Paint cells that are hardly seen as square dots, those with the most photos above the others."""
    from tasks import s2

    small = np.flatnonzero(sizes(shown, len(cells)) < SEEN)
    small = small[np.argsort(photos[small], kind="stable")]
    latitude, longitude = s2.centres(cells[small]).T
    rows = ((90 - latitude) / 180 * HEIGHT).round().astype(np.int64)
    columns = ((longitude + 180) / 360 * WIDTH).round().astype(np.int64)
    side = (-1, 0) if len(small) > MANY else (-2, -1, 0, 1)  # of a dot: pixels around the corner of one
    for down, right in product(side, side):
        picture[(rows + down).clip(0, HEIGHT - 1), (columns + right) % WIDTH] = colors[small]


def frame(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes in a rectangle of the figure's PNG, in its pixels from the upper left corner."""
    wide, high = figure.get_size_inches() * DPI
    axes = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set(linewidth=0.6, color=GREY)
    return axes


def graticule(axes: Axes) -> None:
    """A line every 30 degrees on a map of the world."""
    style: dict[str, Any] = {"color": "black", "linewidth": 0.4, "alpha": 0.25}
    axes.vlines(LONGITUDES[1:-1], -90, 90, **style)
    axes.hlines(LATITUDES[1:-1], -180, 180, **style)


def _label(axes: Axes) -> None:
    """Degrees at the lines."""
    axes.set_xticks(LONGITUDES, [_degrees(value, "WE") for value in LONGITUDES], fontsize=8)
    axes.set_yticks(LATITUDES, [_degrees(value, "SN") for value in LATITUDES], fontsize=8)
    axes.tick_params(length=3, color=GREY, width=0.6)


def _degrees(value: float, names: str) -> str:
    return f"{abs(value)}°{names[value > 0] if value % 180 else ''}"


def _key(figure: Figure, shades: Any, gaps: bool, marks: int) -> None:
    """What the colours and the marks mean, below the map."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    below = frame(figure, LEFT, TOP + HEIGHT + 52, WIDTH / 2, 16)
    bar = figure.colorbar(shades, cax=below, orientation="horizontal")
    bar.outline.set_linewidth(0.6)
    bar.ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    bar.ax.tick_params(labelsize=8, length=3, width=0.6)
    bar.set_label("photos in the cell", fontsize=8.5)
    handles: list[Any] = []
    if gaps:
        handles.append(Patch(facecolor=NOWHERE, edgecolor=GREY, linewidth=0.6, label="no cell"))
    if marks:
        style: dict[str, Any] = {"color": MARK, "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.5}
        handles.append(Line2D([], [], linestyle="", marker="o", label=f"test photos ({marks:,})", **style))
    corner = ((LEFT + WIDTH) / (LEFT + WIDTH + RIGHT), (BOTTOM - 60) / (TOP + HEIGHT + BOTTOM))
    figure.legend(handles=handles, loc="center right", bbox_to_anchor=corner, ncols=2, fontsize=8.5, borderaxespad=0)
