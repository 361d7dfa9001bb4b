"""Figures of a run, and of several runs side by side; data in, `Figure` out.

Functions that take `curves` draw one line per entry, labelled by its key. A single run also gets
the band from the worst to the best peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from p2p_dml.events import PHASES
from p2p_dml.report._style import (
    AS_BYTES,
    AS_PERCENT,
    AS_SECONDS,
    INK,
    PALETTE,
    SEQUENTIAL,
    add_legend,
    colour,
    dress,
    line_style,
    new_figure,
    to_png,
    whole_numbers,
)
from p2p_dml.report._values import Curve, Floats, Ints, PeerRecord, Picture, Run, Timeline

Over = Literal["rounds", "bytes", "seconds"]
_MAX_METRICS = 6
# Beyond this, numbers in the cells of the data split can no longer be read at 900 px.
_MAX_NUMBERED_CELLS = 160
_FEW_DECADES = 300  # as a ratio


def run_pictures(run: Run, curve: Curve, timeline: Timeline) -> list[Picture]:
    """Every figure that the run has data for, in the order of the report."""
    label = run.meta.strategy
    is_personal = run.meta.evaluate_on == "own"
    pictures = curve_pictures({label: curve}, {label: timeline}, is_personal=is_personal)
    if any(peer.rounds.reported for peer in run.peers):
        pictures.append(
            _picture(
                "strategy",
                "What the strategy reports",
                "Median over the peers, band from the 10th to the 90th percentile.",
                reported(run.peers),
            )
        )
    if any(peer.rounds.metrics for peer in run.peers):
        pictures.append(
            _picture(
                "metrics",
                "Metrics of the training function",
                "Mean over the peers, band from the lowest to the highest peer.",
                metrics(run.peers),
            )
        )
    if any(peer.samples for peer in run.peers):
        pictures.append(
            _picture(
                "data-split",
                "Data of each peer",
                "Training samples of each peer, in total and by class.",
                data_split(run.peers),
            )
        )
    seconds = {str(p.peer): p.rounds.seconds.sum(axis=0) for p in run.peers if p.rounds.t.size}
    return [*pictures, *phase_pictures(seconds, "peer")]


def curve_pictures(
    curves: Mapping[str, Curve],
    timelines: Mapping[str, Timeline] | None = None,
    *,
    is_personal: bool = False,
) -> list[Picture]:
    """Accuracy, loss and consensus distance, as far as some run knows them.

    Accuracy over seconds is drawn from `timelines`; without them, from the curves. Rounds that
    fewer than half of the peers were evaluated in are left out. `is_personal`: peers were tested on
    their own mixes of classes.
    """
    curves = {label: _of_most(curve) for label, curve in curves.items()}
    tested = "personal accuracy" if is_personal else "test accuracy"
    over_time: Mapping[str, Curve | Timeline] = timelines or curves
    pictures = []
    band = "band: lowest to highest peer, darker: ± one standard deviation"
    if len(curves) > 1:
        band = "band: ± one standard deviation over the peers"
    if _any_known(curves, "accuracy_mean"):
        pictures += [
            _picture(
                f"accuracy-over-{over}",
                f"Accuracy over {over}",
                f"{tested.capitalize()}, mean over the peers ({band}), {_OVER[over]}.",
                accuracy(over_time if over == "seconds" else curves, over, tested),
            )
            for over in _OVER
            if over != "bytes" or any(curve.bytes_out.any() for curve in curves.values())
        ]
    if _any_known(curves, "loss_mean") or _any_known(curves, "train_loss_mean"):
        caption = (
            "Mean over the peers: test loss (full line) and local training loss (thin dashed line)."
        )
        pictures.append(_picture("loss", "Loss over rounds", caption, loss(curves)))
    if any((curve.consensus_distance > 0).any() for curve in curves.values()):
        caption = "Root mean square distance of the peers' parameters to their mean."
        figure = consensus(curves)
        pictures.append(_picture("consensus", "Consensus distance", caption, figure))
    return pictures


def _of_most(curve: Curve) -> Curve:
    """Rounds that at least half of the peers were evaluated in: the others' means say little."""
    keep = 2 * curve.peers >= curve.peers.max(initial=0)
    return replace(curve, **{each.name: getattr(curve, each.name)[keep] for each in fields(curve)})


def phase_pictures(seconds: Mapping[str, Floats], rows: str) -> list[Picture]:
    """Where the time went, if it was recorded; one bar per entry of `seconds`."""
    if not any(values.any() for values in seconds.values()):
        return []
    caption = f"Seconds spent in each phase of the rounds, total of each {rows}."
    return [_picture("phases", "Time by phase", caption, phases(seconds, rows))]


def accuracy(
    curves: Mapping[str, Curve | Timeline], over: Over, tested: str = "test accuracy"
) -> Figure:
    """Test accuracy over rounds, bytes sent by all peers, or seconds since the start.

    A timeline is for seconds only. `tested` is what the accuracy is called.
    """
    figure = new_figure()
    axes = dress(figure.subplots(), _X_LABELS[over], tested)
    is_log = over == "bytes" and _are_decades_apart(curves)
    for index, (label, curve) in enumerate(curves.items()):
        x = _positions(curve, over)
        if is_log:  # what was before the first byte has no place there
            x = np.where(x > 0, x, np.nan)
            if not np.isfinite(x).any():
                continue
        if len(curves) == 1:
            axes.fill_between(
                x, curve.accuracy_min, curve.accuracy_max, color=colour(index), alpha=0.12, lw=0
            )
        axes.fill_between(
            x,
            np.maximum(curve.accuracy_mean - curve.accuracy_std, 0),
            np.minimum(curve.accuracy_mean + curve.accuracy_std, 1),
            color=colour(index),
            alpha=0.22 if len(curves) == 1 else 0.12,
            lw=0,
        )
        _line(axes, index, label, x, curve.accuracy_mean)
    axes.yaxis.set_major_formatter(AS_PERCENT)
    _format_x(axes, over, is_log=is_log)
    if len(curves) > 1:
        add_legend(axes, len(curves))
    return figure


def loss(curves: Mapping[str, Curve]) -> Figure:
    """Test loss and local training loss over rounds, mean over the peers."""
    figure = new_figure()
    axes = dress(figure.subplots(), "round", "loss")
    for index, (label, curve) in enumerate(curves.items()):
        test, training = (label, None) if len(curves) > 1 else ("test", "training")
        if np.isfinite(curve.loss_mean).any():
            _line(axes, index, test, curve.round, curve.loss_mean)
        axes.plot(
            curve.round, curve.train_loss_mean, color=colour(index), lw=0.9, alpha=0.7,
            linestyle="--", label=training,
        )  # fmt: skip
    whole_numbers(axes.xaxis)
    add_legend(axes, len(curves))
    return figure


def consensus(curves: Mapping[str, Curve]) -> Figure:
    """Consensus distance over rounds on a logarithmic axis; a distance of 0 is left out."""
    figure = new_figure()
    axes = dress(figure.subplots(), "round", "consensus distance")
    for index, (label, curve) in enumerate(curves.items()):
        positive = np.where(curve.consensus_distance > 0, curve.consensus_distance, np.nan)
        _line(axes, index, label, curve.round, positive)
    axes.set_yscale("log")
    whole_numbers(axes.xaxis)
    if len(curves) > 1:
        add_legend(axes, len(curves))
    return figure


def reported(peers: Sequence[PeerRecord]) -> Figure:
    """Median and 10 – 90 % band over the peers of each figure of the strategy's.

    A panel for each first part of their names, before a "/": `degree/decision`, `bytes/packed`.
    """
    names = dict.fromkeys(name for peer in peers for name in peer.rounds.reported)
    panels: dict[str, list[str]] = {}
    for name in names:
        panels.setdefault(name.rpartition("/")[0], []).append(name)
    figure = new_figure(0.8 + 2.6 * len(panels))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (kind, members) in zip(rows, panels.items(), strict=True):
        dress(axes, "round" if axes is rows[-1] else "", kind or "reported")
        for index, name in enumerate(members):
            series = [
                (p.rounds.round, p.rounds.reported[name])
                for p in peers
                if name in p.rounds.reported
            ]
            rounds, table = by_round(series)
            low, middle, high = np.nanpercentile(table, [10, 50, 90], axis=0)
            axes.fill_between(rounds, low, high, color=colour(index), alpha=0.18, lw=0)
            _line(axes, index, name.rpartition("/")[2], rounds, middle)
        if kind == "bytes":
            axes.set_yscale("log")
        whole_numbers(axes.xaxis)
        add_legend(axes, len(members))
    return figure


def metrics(peers: Sequence[PeerRecord]) -> Figure:
    """Mean and range over the peers of the first metrics a training function returned."""
    names = list(dict.fromkeys(name for peer in peers for name in peer.rounds.metrics))
    names = names[:_MAX_METRICS]
    figure = new_figure(0.8 + 2.2 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for index, (name, axes) in enumerate(zip(names, panels, strict=True)):
        series = [
            (p.rounds.round, p.rounds.metrics[name]) for p in peers if name in p.rounds.metrics
        ]
        rounds, table = by_round(series)
        dress(axes, "round" if axes is panels[-1] else "", name)
        low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
        axes.fill_between(rounds, low, high, color=colour(index), alpha=0.18, lw=0)
        _line(axes, index, name, rounds, np.nanmean(table, axis=0))
        whole_numbers(axes.xaxis)
    return figure


def data_split(peers: Sequence[PeerRecord]) -> Figure:
    """Samples per peer as bars, and below them a heat map of the classes [classes, peers]."""
    samples = [peer.samples or 0 for peer in peers]
    num_classes = max(len(peer.class_counts) for peer in peers)
    if not num_classes:
        figure = new_figure(2.6)
        bars = figure.subplots()
    else:
        figure = new_figure(min(7.0, 3.0 + 0.25 * num_classes))
        height = max(2.0, 0.25 * num_classes)
        bars, grid = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, height])
        _class_map(figure, grid, peers, num_classes)
    dress(bars, "" if num_classes else "peer", "samples")
    places = np.array([peer.peer for peer in peers])
    _bars(bars, places, np.array(samples, dtype=float), color=colour(0))
    whole_numbers(bars.xaxis, 20)
    return figure


def phases(seconds: Mapping[str, Floats], rows: str) -> Figure:
    """Stacked seconds per phase, one bar for each entry of `seconds` ([phases] each)."""
    figure = new_figure()
    axes = dress(figure.subplots(), rows, "time")
    places = np.arange(len(seconds))
    table = np.stack(list(seconds.values()))  # [bars, phases]
    base = np.zeros(len(seconds))
    for index, phase in enumerate(PHASES):
        _bars(axes, places, table[:, index], base, color=PALETTE[index], label=phase)
        base = base + table[:, index]
    # Some 20 labels fit; runs have longer names than peers and are few.
    shown = places[:: max(1, -(-len(places) // 20))]
    labels = list(seconds)
    tilt = 30 if max(map(len, labels)) * len(shown) > 100 else 0
    axes.set_xticks(
        shown, [labels[i] for i in shown], rotation=tilt, ha="right" if tilt else "center"
    )
    axes.yaxis.set_major_formatter(AS_SECONDS)
    figure.legend(loc="outside upper right", ncols=len(PHASES), frameon=False, fontsize=9)
    return figure


def _bars(
    axes: Axes, places: Ints, heights: Floats, base: Floats | float = 0.0, **style: Any
) -> None:
    """A bar on `base` at each of `places`, which ascend; of very many peers one outline of all."""
    if len(places) <= _MOST_BARS:
        axes.bar(places, heights, 0.8, bottom=base, **style)
        return
    edges = np.append(places - 0.5, places[-1] + 0.5)
    axes.stairs(base + heights, edges, baseline=base, fill=True, **style)


def by_round(series: Sequence[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    """Align (rounds, values) of several peers: rounds [e] with a known value, table [n, e]."""
    known = [(rounds[np.isfinite(x)], x[np.isfinite(x)]) for rounds, x in series]
    all_rounds = np.unique(np.concatenate([rounds for rounds, _ in known]))
    table = np.full((len(known), len(all_rounds)), np.nan)
    for row, (rounds, values) in zip(table, known, strict=True):
        row[np.searchsorted(all_rounds, rounds)] = values
    return all_rounds, table


_MOST_BARS = 200  # each is an object of its own to the plotting library

_OVER: dict[Over, str] = {
    "rounds": "over communication rounds",
    "bytes": "over the payload bytes that all peers have sent",
    "seconds": "over the time since the start of the run",
}
_X_LABELS: dict[Over, str] = {
    "rounds": "round",
    "bytes": "payload sent by all peers",
    "seconds": "time since start",
}


def _picture(name: str, title: str, caption: str, figure: Figure) -> Picture:
    return Picture(name=name, title=title, caption=caption, png=to_png(figure))


def _any_known(curves: Mapping[str, Curve], column: str) -> bool:
    return any(np.isfinite(getattr(curve, column)).any() for curve in curves.values())


def _positions(curve: Curve | Timeline, over: Over) -> Floats:
    if isinstance(curve, Timeline):
        return curve.seconds
    columns = {"rounds": curve.round, "bytes": curve.bytes_out, "seconds": curve.seconds}
    return columns[over].astype(np.float64)


def _line(axes: Axes, index: int, label: str, x: Floats | Ints, y: Floats) -> None:
    # A single evaluation is a dot; a line through one point would be invisible.
    axes.plot(
        x, y, color=colour(index), linestyle=line_style(index), lw=1.8, label=label,
        marker="o" if len(x) == 1 else None, markersize=4,
    )  # fmt: skip


def _are_decades_apart(curves: Mapping[str, Curve | Timeline]) -> bool:
    """Whether bytes differ so much that the least would be pressed against the axis."""
    ends = [_positions(curve, "bytes")[-1] for curve in curves.values() if len(curve.seconds)]
    positive = [end for end in ends if end > 0]
    return len(positive) > 1 and max(positive) > 10 * min(positive)


def _format_x(axes: Axes, over: Over, *, is_log: bool) -> None:
    if over == "rounds":
        whole_numbers(axes.xaxis)
        return
    if is_log:
        axes.set_xscale("log")
        least, most = axes.get_xlim()
        if most < _FEW_DECADES * least:  # powers of ten alone would label a place or two
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(AS_BYTES if over == "bytes" else AS_SECONDS)


def _class_map(figure: Figure, axes: Axes, peers: Sequence[PeerRecord], num_classes: int) -> None:
    table = np.zeros((num_classes, len(peers)), dtype=np.int64)
    for column, peer in enumerate(peers):
        table[: len(peer.class_counts), column] = peer.class_counts
    dress(axes, "peer", "class", grid=False)
    image = axes.imshow(table, cmap=SEQUENTIAL, aspect="auto", interpolation="nearest", vmin=0)
    whole_numbers(axes.yaxis)
    whole_numbers(axes.xaxis, 20)
    figure.colorbar(image, ax=axes, label="samples", pad=0.01).outline.set_visible(False)
    if table.size <= _MAX_NUMBERED_CELLS:
        half = table.max() / 2
        for (row, column), value in np.ndenumerate(table):
            shade = "white" if value > half else INK
            axes.text(column, row, str(value), ha="center", va="center", fontsize=8, color=shade)
