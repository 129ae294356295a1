"""Images per second over workers, as the simulation predicts them: a line for each number of servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipelines.figures import GREY, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Scaling(NamedTuple):
    """One net: its rates in images/s at each number of `workers`, in order.

    servers: by the number of parameter servers. ideal: of workers that exchange nothing. all_reduce: of synchronous
    data-parallel training. chosen: the workers and servers of its run.
    """

    title: str
    workers: Sequence[int]
    servers: Mapping[int, Sequence[float]]
    ideal: Sequence[float]
    all_reduce: Sequence[float]
    chosen: tuple[int, int]


def scaling_figure(nets: Sequence[Scaling]) -> dict[str, bytes]:
    """A panel for each net, side by side with the same axes. The darker a line, the more servers."""

    def plot(figure: Figure) -> None:
        panels = figure.subplots(1, len(nets), sharey=True, squeeze=False).flat
        for axes, net in zip(panels, nets, strict=True):
            _panel(axes, net)
        panels[0].set_ylabel("images/s")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9)

    return draw(plot, 4.6 * len(nets), 4.6)


def _panel(axes: Axes, net: Scaling) -> None:
    import matplotlib
    from matplotlib.ticker import FuncFormatter, NullLocator

    shades = matplotlib.colormaps["viridis_r"]
    axes.plot(net.workers, net.ideal, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="ideal")
    axes.plot(net.workers, net.all_reduce, color="#D55E00", linewidth=1.5, linestyle=":", label="DDP, at most")
    for index, (servers, rates) in enumerate(net.servers.items()):
        color = shades(0.1 + 0.9 * index / max(1, len(net.servers) - 1))
        label = f"{servers} server{'s' if servers > 1 else ''}"
        axes.plot(net.workers, rates, "o-", color=color, linewidth=1.5, markersize=3.5, label=label)
    workers, servers = net.chosen
    if workers in net.workers and servers in net.servers:
        rate = net.servers[servers][list(net.workers).index(workers)]
        axes.plot(workers, rate, "o", color="black", fillstyle="none", markersize=11, label="params.yaml")
    axes.set(xscale="log", yscale="log", xlabel="workers")
    axes.set_title(net.title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xticks(net.workers)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
