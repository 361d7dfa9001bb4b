"""Pictures of a link schedule: who hears whom, how often, and how many."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from p2p_dml.files import write_whole
from p2p_dml.report._style import (
    AS_PERCENT,
    FAINT,
    INK,
    PALETTE,
    SEQUENTIAL,
    dress,
    new_figure,
    to_png,
    whole_numbers,
)
from p2p_dml.report._values import Floats, Ints
from p2p_dml.types import Graph, LinkSchedule

# Above these, a spring-like layout is slow, names do not fit their circles, arrow heads overlap.
_MAX_LAID_OUT = 64
_MAX_NAMED = 36
_MAX_ARROWS = 120


def draw(schedule: LinkSchedule, num_peers: int, ticks: int) -> Figure:
    """Show the first graphs of a schedule and how often each link is up in `ticks` ticks.

    A schedule that stays the same gets one drawing; one that changes gets the graph of tick 0, the
    next different one, and the number of neighbours over the ticks.
    """
    graphs = [schedule(tick) for tick in range(max(1, ticks))]
    changed = next((tick for tick, graph in enumerate(graphs) if graph != graphs[0]), None)
    if changed is None:
        figure = new_figure(4.4)
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
        _draw_graph(left, graphs[0], _layout(graphs[0], num_peers), "every tick")
        _draw_frequency(figure, right, graphs, num_peers)
        return figure
    figure = new_figure(5.6)
    panels = figure.subplot_mosaic(
        [["first", "next", "often"], ["count"] * 3], height_ratios=[2, 1]
    )
    for name, tick in (("first", 0), ("next", changed)):
        _draw_graph(panels[name], graphs[tick], _circle(num_peers), f"tick {tick}")
    _draw_frequency(figure, panels["often"], graphs, num_peers)
    _draw_counts(panels["count"], graphs)
    return figure


def draw_file(schedule: LinkSchedule, num_peers: int, ticks: int, path: Path) -> None:
    """Write the picture of `draw` as a PNG file; StorageError if it cannot."""
    write_whole(path, to_png(draw(schedule, num_peers, ticks)))


def link_frequency(graphs: list[Graph], num_peers: int) -> Floats:
    """Share of the graphs in which peer i hears peer j, at [i, j]."""
    counts = np.zeros((num_peers, num_peers))
    for graph in graphs:
        for receiver, senders in enumerate(graph.senders):
            counts[receiver, list(senders)] += 1
    return counts / len(graphs)


def _circle(num_peers: int) -> Floats:
    """Positions [n, 2] clockwise from the top: equal for all graphs, so they can be compared."""
    angle = 2 * np.pi * np.arange(num_peers) / num_peers
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _layout(graph: Graph, num_peers: int) -> Floats:
    """Positions [n, 2] that show the shape of one graph, if it is small and hangs together."""
    links: nx.Graph[int] = nx.Graph()
    links.add_nodes_from(range(num_peers))
    links.add_edges_from((i, j) for i, senders in enumerate(graph.senders) for j in senders)
    if not 3 <= num_peers <= _MAX_LAID_OUT or graph.is_complete or not nx.is_connected(links):
        return _circle(num_peers)
    # The spectral start unfolds grids; the circle keeps peers with the same neighbours apart.
    spectral = nx.spectral_layout(links)
    start = {peer: spectral[peer] + 0.1 * at for peer, at in enumerate(_circle(num_peers))}
    places = nx.kamada_kawai_layout(links, pos=start)
    return np.array([places[peer] for peer in range(num_peers)])


def _draw_graph(axes: Axes, graph: Graph, at: Floats, title: str) -> None:
    links = [(j, i) for i, senders in enumerate(graph.senders) for j in senders]
    alpha = float(np.clip(60 / max(1, len(links)), 0.06, 0.8))
    if graph.is_symmetric or len(links) > _MAX_ARROWS:
        axes.add_collection(
            LineCollection(list(at[links]), colors=INK, linewidths=0.9, alpha=alpha)
        )
    else:
        _draw_arrows(axes, links, at)
    named = len(at) <= _MAX_NAMED
    axes.scatter(
        at[:, 0], at[:, 1], s=150 if named else 14, color=PALETTE[0], zorder=2, linewidths=0
    )
    for peer, (x, y) in enumerate(at) if named else ():
        axes.text(x, y, str(peer), ha="center", va="center", fontsize=7, color="white")
    axes.set_title(f"{title}: {len(links)} directed links", fontsize=9, color=INK)
    axes.set_aspect("equal")
    # Two peers on a line would otherwise get axes without a width.
    middle, reach = (
        (at.max(0) + at.min(0)) / 2,
        1.15 * max(1e-3, float(np.ptp(at, axis=0).max())) / 2,
    )
    axes.set_xlim(middle[0] - reach, middle[0] + reach)
    axes.set_ylim(middle[1] - reach, middle[1] + reach)
    axes.set_axis_off()


def _draw_lines(axes: Axes, links: list[tuple[int, int]], at: Floats) -> None:
    # The more links, the fainter and finer: thousands of opaque lines are a black disc.
    share = 60 / max(60, len(links))
    lines = LineCollection(list(at[links]), colors=INK)
    lines.set(linewidth=0.3 + 0.6 * share, alpha=0.03 + 0.77 * share)
    axes.add_collection(lines)


def _draw_arrows(axes: Axes, links: list[tuple[int, int]], at: Floats) -> None:
    for sender, receiver in links:
        arrow = FancyArrowPatch(
            tuple(at[sender]),
            tuple(at[receiver]),
            arrowstyle="-|>",
            mutation_scale=8,
            shrinkA=6,
            shrinkB=6,
            connectionstyle="arc3,rad=0.1",
            color=INK,
            linewidth=0.8,
        )
        axes.add_patch(arrow)


def _draw_frequency(figure: Figure, axes: Axes, graphs: list[Graph], num_peers: int) -> None:
    table = link_frequency(graphs, num_peers)
    dress(axes, "is heard (sender)", "hears (receiver)", grid=False)
    image = axes.imshow(table, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        whole_numbers(axis, 5)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=AS_PERCENT)
    bar.set_label(f"share of {len(graphs)} ticks", color=INK)
    bar.outline.set_edgecolor(FAINT)


def _draw_counts(axes: Axes, graphs: list[Graph]) -> None:
    """Neighbours heard per tick: mean over the peers, band from the fewest to the most."""
    counts: Ints = np.array([[len(heard) for heard in graph.senders] for graph in graphs])
    dress(axes, "tick", "neighbours heard")
    ticks = np.arange(len(graphs))
    axes.fill_between(ticks, counts.min(1), counts.max(1), color=PALETTE[0], alpha=0.18, lw=0)
    axes.plot(ticks, counts.mean(1), color=PALETTE[0], lw=1.6)
    axes.set_ylim(bottom=0)
    whole_numbers(axes.yaxis, 5)
    whole_numbers(axes.xaxis)
