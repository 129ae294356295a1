"""The Pareto front of a table's runs: what accuracy each cost can buy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.budgets import COSTS, Candidate
from pipelines.figures import GREY, MARKER_SIZES, RESOLUTION_COLORS, WIDTH_MARKERS, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUDGET = "#D55E00"  # of the same palette as the resolutions' colours, and none of them


def front_figure(
    candidates: Sequence[Candidate],
    front: Sequence[Candidate],
    chosen: Candidate | None,
    *,
    cost: str,
    ylabel: str,
    limit: float | None,
    min_accuracy: float | None,
) -> dict[str, bytes]:
    """Accuracy against one of COSTS on a logarithmic axis, by suffix: PNG and SVG.

    candidates: all whose cost is known. The front is a staircase with names at its steps; other runs are pale. What the
    budget allows is within the dashed lines. Colour is the resolution, the marker the width, as in the report.
    """

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        _limits(axes, None if limit is None else limit / COSTS[cost].unit, min_accuracy)
        costs = [_cost(candidate, cost) for candidate in front]
        shares = [100 * candidate.accuracy for candidate in front]
        axes.step([*costs, max(_cost(one, cost) for one in candidates)], [*shares, shares[-1]], where="post",
                  color=GREY, linewidth=1.2, zorder=2)  # fmt: skip
        on_front = {candidate.run for candidate in front}
        prefix = candidates[0].run.partition("_")[0] + "_"  # most runs' names begin with their data set's
        for candidate in candidates:
            _point(axes, candidate, _cost(candidate, cost), candidate.run in on_front, prefix)
        if chosen is not None:
            axes.plot(_cost(chosen, cost), 100 * chosen.accuracy, "o", markersize=17, fillstyle="none",
                      color=BUDGET, markeredgewidth=1.8, zorder=5, label=f"chosen: {chosen.run}")  # fmt: skip
        axes.set(xscale="log", xlabel=COSTS[cost].axis, ylabel=ylabel)
        axes.margins(x=0.16, y=0.1)
        _plain_ticks(axes)
        _legend(axes, candidates)

    return draw(plot, 8.4, 5.6)


def _cost(candidate: Candidate, cost: str) -> float:
    value = candidate.cost(cost)
    assert value is not None, f"{candidate.run}: {cost} was not measured"
    return value / COSTS[cost].unit


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _limits(axes: Axes, limit: float | None, min_accuracy: float | None) -> None:
    dashed: dict[str, Any] = {"color": BUDGET, "linewidth": 1.2, "linestyle": (0, (4, 3)), "zorder": 1}
    if limit is not None:
        axes.axvline(limit, **dashed, label="budget")
    if min_accuracy is not None:
        axes.axhline(100 * min_accuracy, **dashed, label=None if limit is not None else "budget")


def _point(axes: Axes, candidate: Candidate, cost: float, on_front: bool, prefix: str) -> None:
    of_width = candidate.net == "mobilenet"
    color = RESOLUTION_COLORS.get(candidate.resolution, GREY)
    marker = WIDTH_MARKERS.get(candidate.width, "o") if of_width else "X"
    share, alpha = 100 * candidate.accuracy, 1.0 if on_front else 0.45
    if candidate.low is not None and candidate.high is not None:
        ends = [100 * candidate.low, 100 * candidate.high]
        axes.plot([cost, cost], ends, color=color, linewidth=1, alpha=0.5 * alpha, zorder=2)
    size = MARKER_SIZES.get(marker, 8)
    axes.plot(cost, share, marker, color=color, markersize=size, markeredgecolor="white", alpha=alpha, zorder=3)
    if on_front:  # along the falling diagonal, where a front, which rises, leaves the most room
        axes.annotate(candidate.run.removeprefix(prefix), (cost, share), xytext=(-5, 5), textcoords="offset points",
                      ha="right", va="bottom", rotation=-35, rotation_mode="anchor", fontsize=8, zorder=4)  # fmt: skip


def _legend(axes: Axes, candidates: Sequence[Candidate]) -> None:
    """What colours and markers mean, of those that there are."""
    handles, labels = axes.get_legend_handles_labels()
    for resolution, color in RESOLUTION_COLORS.items():
        if any(candidate.resolution == resolution for candidate in candidates):
            handles += axes.plot([], [], "o", color=color)
            labels.append(f"resolution {resolution}")
    for width, marker in WIDTH_MARKERS.items():
        if any(candidate.net == "mobilenet" and candidate.width == width for candidate in candidates):
            handles += axes.plot([], [], marker, color=GREY)
            labels.append(f"width {width}")
    if any(candidate.net != "mobilenet" for candidate in candidates):
        handles += axes.plot([], [], "X", color=GREY)
        labels.append("other nets")
    axes.get_figure().legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)  # type: ignore[union-attr]
