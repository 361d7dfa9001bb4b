"""The figures of a case: from the files of its run folder to a row of numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from p2p_dml.report import Curve, Timeline, digits, human_bytes
from p2p_dml.sweep._checkpoints import small_share
from p2p_dml.sweep._values import Measures

Figures = Mapping[str, float | None]
"""Metrics by name; None where a case has none, such as a round in which it never converged."""

_Column: TypeAlias = NDArray[np.int64] | NDArray[np.float64]

_COUNTED = ("round", "bytes_out", "peers")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a finished case left behind; `small_share` is None unless it was asked for.

    `reported` are the strategy's figures by name [r], with their "round".
    """

    curve: Curve
    timeline: Timeline
    reported: Mapping[str, NDArray[Any]]
    summary: Mapping[str, Any]
    small_share: float | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """Mean accuracy as a run went on, with what it had cost by then; one entry each [e].

    Of synchronous runs at the rounds that all peers evaluated. Asynchronous peers are in different
    rounds at a time, and come to the same round at different times: there the entries are instants,
    `rounds` the mean number that the peers had finished, and `bytes_out` is unknown.
    """

    accuracy: NDArray[np.float64]
    rounds: _Column
    bytes_out: _Column | None

    @property
    def best(self) -> float | None:
        known = self.accuracy[np.isfinite(self.accuracy)]
        return float(known.max()) if known.size else None


def read_record(run: Path, small: float | None = None) -> Record:
    """Read a finished run folder; `small` asks for the share of parameters within ±`small`."""
    return Record(
        curve=Curve(**_read_columns(run / "curve.csv", [field.name for field in fields(Curve)])),
        timeline=Timeline(
            **_read_columns(run / "timeline.csv", [field.name for field in fields(Timeline)])
        ),
        reported=_read_columns(run / "reported.csv"),
        summary=json.loads((run / "summary.json").read_text(encoding="utf-8")),
        small_share=None if small is None else small_share(run, small),
    )


def figures(record: Record, reference: Record | None, measures: Measures) -> Figures:
    """All metrics of `measures`; without a `reference` those that need it are None."""
    course, summary = _course(record), record.summary
    best = course.best
    bar = None if reference is None else _course(reference).best
    converged = None if bar is None else _first(course.accuracy, measures.threshold * bar)
    window = measures.window or (1, summary["rounds"])
    found: dict[str, float | None] = {
        "best_accuracy": best,
        "best_round": None if best is None else _at(course.rounds, _first(course.accuracy, best)),
        "final_accuracy": summary["accuracy"] and summary["accuracy"]["mean"],
        "mean_accuracy": _mean_within(course, window),
        "worst_accuracy": summary["accuracy"] and summary["accuracy"]["min"],
        "p10_accuracy": summary["accuracy_quantiles"] and summary["accuracy_quantiles"]["p10"],
        "rounds_to_converge": _at(course.rounds, converged),
        "bytes_to_converge": _at(course.bytes_out, converged),
        "seconds_per_round": _seconds_per_round(summary),
        "wall_s": summary["wall_s"],
        "bytes_total": summary["bytes_out_total"],
    }
    for name, target in measures.named_targets.items():
        reached = _first(course.accuracy, target)
        found[f"rounds_to_{name}"] = _at(course.rounds, reached)
        found[f"bytes_to_{name}"] = _at(course.bytes_out, reached)
        found[f"seconds_to_{name}"] = _seconds_to(record, target)
    if measures.small is not None:
        found["small_share"] = record.small_share
    for name in measures.reported:
        found |= _reported(record.reported, name, window)
    return found


def unit(metric: str) -> str:
    """What the numbers of a metric count, for the head of a table; empty if they say it."""
    if metric.endswith(("accuracy", "share")) or "share/" in metric:
        return "%"
    return "s" if metric.startswith("seconds") or metric == "wall_s" else ""


def in_words(metric: str, value: float) -> str:
    """A number of a metric as it stands in a table, without `unit`."""
    if metric.endswith("accuracy") or "share/" in metric:
        return f"{100 * value:.1f}"
    if metric.endswith("share"):
        return f"{100 * value:.2f}"
    if metric.removeprefix("final ").startswith("bytes"):
        return human_bytes(value)
    return digits(value) if unit(metric) else f"{value:.1f}"


def _read_columns(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Columns of a CSV file by name; all of them by default."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    wanted = names or reader.fieldnames or ()
    return {name: _column(name, [row[name] for row in rows]) for name in wanted}


def _column(name: str, cells: Sequence[str]) -> NDArray[Any]:
    if name in _COUNTED:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    return np.array([float(cell) if cell else np.nan for cell in cells], dtype=np.float64)


def _course(record: Record) -> _Course:
    if record.summary["pace"] == "asynchronous":
        line = record.timeline
        return _Course(accuracy=line.accuracy_mean, rounds=line.rounds_mean, bytes_out=None)
    curve = record.curve
    whole = curve.peers == curve.peers.max(initial=0)  # with `duration_s` some do a round more
    return _Course(
        accuracy=curve.accuracy_mean[whole],
        rounds=curve.round[whole],
        bytes_out=curve.bytes_out[whole],
    )


def _first(accuracies: NDArray[np.float64], accuracy: float) -> int | None:
    """Place of the first that reaches `accuracy`."""
    places = np.flatnonzero(accuracies >= accuracy)
    return int(places[0]) if places.size else None


def _at(column: _Column | None, place: int | None) -> float | None:
    return None if column is None or place is None else column[place].item()


def _mean_within(course: _Course, window: tuple[int, int]) -> float | None:
    first, last = window
    inside = course.accuracy[(course.rounds >= first) & (course.rounds <= last)]
    known = inside[np.isfinite(inside)]
    return float(known.mean()) if known.size else None


def _reported(
    columns: Mapping[str, NDArray[Any]], name: str, window: tuple[int, int]
) -> dict[str, float | None]:
    """Mean over the rounds of the window, and the last value, of a figure that was reported."""
    values = columns.get(name, np.full(len(columns["round"]), np.nan))
    known = np.isfinite(values)
    inside = known & (columns["round"] >= window[0]) & (columns["round"] <= window[1])
    return {
        name: float(values[inside].mean()) if inside.any() else None,
        f"final {name}": float(values[known][-1]) if known.any() else None,
    }


def _seconds_to(record: Record, accuracy: float) -> float | None:
    """From when all had joined until the mean over their last evaluations reached `accuracy`."""
    begin = record.summary["startup_s"]
    place = _first(record.timeline.accuracy_mean, accuracy)
    if begin is None or place is None:
        return None
    return float(record.timeline.seconds[place]) - float(begin)


def _seconds_per_round(summary: Mapping[str, Any]) -> float | None:
    """Time between start-up and end over the rounds that were done, evaluations included."""
    wall, startup, rounds = summary["wall_s"], summary["startup_s"], summary["rounds_done"]["max"]
    if wall is None or startup is None or not rounds:
        return None
    return float(wall - startup) / int(rounds)
