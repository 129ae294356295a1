"""The report's figures: points and curves in, PNG and SVG bytes out.

The same input gives the same bytes: no timestamps, no random identifiers, the style set here and not by the user's
matplotlibrc. Colour is the resolution and the marker is the width in every figure; the colours are of Okabe and Ito's
palette (https://jfly.uni-koeln.de/color/), which the colour-blind can tell apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

RESOLUTION_COLORS = {224: "#0072B2", 192: "#009E73", 160: "#E69F00", 128: "#CC79A7"}
WIDTH_MARKERS = {1.0: "o", 0.75: "s", 0.5: "^", 0.25: "D"}
MARKER_SIZES = {"o": 8, "s": 8, "^": 9, "D": 7}  # of about the same area
LINE_COLORS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#999999")
GREY = "#666666"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.hashsalt": "report",  # identifiers in an SVG are random without it
}


class Point(NamedTuple):
    """One model: its cost, and its top-1 accuracy with the ends of the interval, ours and as printed, in per cent.

    `ours` is null where the model was not run, `printed` where the paper prints no number.
    """

    width: float
    resolution: int
    cost: float
    ours: tuple[float, float, float] | None  # low, accuracy, high
    printed: float | None


class Curve(NamedTuple):
    """The training loss of one run by global step. `taught`: it is a distance from a teacher, not from labels."""

    run: str
    net: str
    width: float
    resolution: int
    taught: bool
    steps: Sequence[float]
    losses: Sequence[float]


def draw(plot: Callable[[Figure], None], width: float, height: float) -> dict[str, bytes]:
    """{".png": ..., ".svg": ...} of what `plot` puts on an empty figure of that size in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        plot(figure)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return {".png": png.getvalue(), ".svg": svg.getvalue()}


def accuracy_figure(points: Sequence[Point], xlabel: str, chance: float, ours: str) -> dict[str, bytes]:
    """Accuracy against cost on a logarithmic axis (Figures 4 and 5): ours filled, the paper's printed points hollow.

    `chance` is the accuracy of guessing, in per cent; `ours` says in the legend what data our points are of. Where
    models of several resolutions cost the same (parameters), their points stand a little apart, or they would hide
    each other.
    """
    same_cost = len({point.cost for point in points}) < len(points)
    shifts = dict(zip(RESOLUTION_COLORS, (1.09, 1.03, 0.97, 0.91) if same_cost else (1,) * 4, strict=True))

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for point in points:
            color, marker = RESOLUTION_COLORS.get(point.resolution, GREY), WIDTH_MARKERS.get(point.width, "o")
            x, size = point.cost * shifts.get(point.resolution, 1), MARKER_SIZES[marker]
            if point.ours is not None:
                low, top1, high = point.ours
                axes.plot([x, x], [low, high], color=color, linewidth=1, alpha=0.5)
                axes.plot(x, top1, marker, color=color, markersize=size, markeredgecolor="white", zorder=3)
            if point.printed is not None:
                axes.plot(x, point.printed, marker, color=color, fillstyle="none", markersize=size + 3, zorder=4)
        axes.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"guessing: {chance:.3g} %", (1, chance), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", va="bottom", color=GREY, fontsize=9,
        )  # fmt: skip
        axes.set(xscale="log", xlabel=xlabel, ylabel="Top-1 accuracy, %", ylim=(0, None))
        _plain_log_ticks(axes, [point.cost for point in points])
        _legend(figure, ours)

    return draw(plot, 6.8, 5.8)


def loss_figure(curves: Sequence[Curve]) -> dict[str, bytes]:
    """The training loss of a table's runs: a panel for each width of MobileNet, and one for the other nets.

    Panels have the same vertical axis where all losses are the same quantity.
    """
    panels: dict[str, list[Curve]] = {}
    others = "other nets" if any(curve.net == "mobilenet" for curve in curves) else ""
    for curve in curves:
        title = f"MobileNet, width {curve.width}" if curve.net == "mobilenet" else others
        panels.setdefault(title, []).append(curve)
    same = len({curve.taught for curve in curves}) == 1
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)

    def plot(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, sharey=same, squeeze=False).flat
        for (title, lines), axes in zip(panels.items(), grid, strict=False):
            for style, curve in zip(_line_styles(lines), lines, strict=True):
                axes.plot(curve.steps, curve.losses, linewidth=1.3, **style)
            axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
            axes.set_xlabel("global step")
            axes.legend(fontsize=8.5, handlelength=1.2)
        for axes in grid:
            axes.remove()
        figure.supylabel("training loss", fontsize=10)

    return draw(plot, 7.6, 2.7 * rows)


def _line_styles(lines: Sequence[Curve]) -> list[dict[str, Any]]:
    """Label, colour and dashes of each curve in a panel: by its resolution, its net or its run, what tells all apart.

    Where there are more curves than colours, those come again, dashed.
    """
    resolutions = [curve.resolution for curve in lines]
    if lines[0].net == "mobilenet" and len(set(resolutions)) == len(lines):
        return [{"label": str(size), "color": RESOLUTION_COLORS.get(size, GREY)} for size in resolutions]
    nets = [curve.net for curve in lines]
    labels = nets if len(set(nets)) == len(lines) else [curve.run for curve in lines]
    styles = [{"color": color, "linestyle": dashes} for dashes in ("-", "--", ":") for color in LINE_COLORS]
    return [{"label": label, **style} for label, style in zip(labels, cycle(styles), strict=False)]


def staleness_figure(counts: Mapping[int, int]) -> dict[str, bytes]:
    """The share of gradients that arrived so many updates late; `counts` is staleness -> gradients."""

    def plot(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        total = sum(counts.values())
        shares = [100 * count / total for count in counts.values()]
        bars = axes.bar(list(counts), shares, width=0.9, color=LINE_COLORS[0])
        if len(counts) <= 20:
            labels = [f"{share:.1f}" if share >= 0.1 else "<0.1" for share in shares]
            axes.bar_label(bars, labels, padding=2, fontsize=9)
        axes.set(xlabel="staleness: updates made between a pull of weights and its push of a gradient")
        axes.set(ylabel="gradients, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)

    return draw(plot, 6.8, 3)


def _plain_log_ticks(axes: Axes, costs: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xlim(min(costs) / 1.3, max(costs) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(figure: Figure, ours: str) -> None:
    """What colour, marker and filling mean, in three columns below the axes."""
    from matplotlib.lines import Line2D

    def handle(label: str, marker: str, color: str, fill: Literal["full", "none"] = "full") -> Line2D:
        size = MARKER_SIZES[marker]
        return Line2D([], [], linestyle="", marker=marker, color=color, fillstyle=fill, markersize=size, label=label)

    blank = Line2D([], [], linestyle="", label=" ")
    columns = [
        [handle(f"resolution {size}", "o", color) for size, color in RESOLUTION_COLORS.items()],
        [handle(f"width {width}", marker, GREY) for width, marker in WIDTH_MARKERS.items()],
        [handle(ours, "o", GREY), handle("paper, as printed", "o", GREY, "none"), blank, blank],
    ]
    handles = [entry for column in columns for entry in column]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.3, columnspacing=3, fontsize=9)
