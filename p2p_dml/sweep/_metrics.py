"""The figures of a case: from the files of its run folder to a row of numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from p2p_dml.report import Curve, digits, human_bytes
from p2p_dml.sweep._values import Measures

Figures = Mapping[str, float | None]
"""Metrics by name; None where a case has none, such as a round in which it never converged."""

_COUNTED = ("round", "bytes_out", "peers")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a finished case left behind."""

    curve: Curve
    summary: Mapping[str, Any]


def read_record(run: Path) -> Record:
    """Read `curve.csv` and `summary.json` of a finished run folder."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return Record(curve=_read_curve(run / "curve.csv"), summary=summary)


def figures(record: Record, reference: Record | None, measures: Measures) -> Figures:
    """All metrics of `measures`; without a `reference` those that need it are None."""
    curve, summary = record.curve, record.summary
    best = _best(curve)
    bar = None if reference is None else _best(reference.curve)
    converged = None if bar is None else _first(curve, measures.threshold * bar)
    found: dict[str, float | None] = {
        "best_accuracy": best,
        "best_round": None if best is None else int(curve.round[_first_place(curve, best)]),
        "final_accuracy": summary["accuracy"] and summary["accuracy"]["mean"],
        "mean_accuracy": _mean_within(curve, measures.window or (1, summary["rounds"])),
        "rounds_to_converge": _at(curve.round, converged),
        "bytes_to_converge": _at(curve.bytes_out, converged),
        "seconds_per_round": _seconds_per_round(summary),
        "wall_s": summary["wall_s"],
        "bytes_total": summary["bytes_out_total"],
    }
    for name, target in measures.named_targets.items():
        reached = _first(curve, target)
        found[f"rounds_to_{name}"] = _at(curve.round, reached)
        found[f"bytes_to_{name}"] = _at(curve.bytes_out, reached)
    return found


def unit(metric: str) -> str:
    """What the numbers of a metric count, for the head of a table; empty if they say it."""
    if metric.endswith("accuracy"):
        return "%"
    return "s" if metric in ("seconds_per_round", "wall_s") else ""


def in_words(metric: str, value: float) -> str:
    """A number of a metric as it stands in a table, without `unit`."""
    if metric.endswith("accuracy"):
        return f"{100 * value:.1f}"
    if metric.startswith("bytes"):
        return human_bytes(value)
    return digits(value) if unit(metric) else f"{value:.1f}"


def _read_curve(path: Path) -> Curve:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {field.name: [row[field.name] for row in rows] for field in fields(Curve)}
    return Curve(**{name: _column(name, cells) for name, cells in columns.items()})


def _column(name: str, cells: list[str]) -> NDArray[Any]:
    if name in _COUNTED:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    return np.array([float(cell) if cell else np.nan for cell in cells], dtype=np.float64)


def _best(curve: Curve) -> float | None:
    known = curve.accuracy_mean[np.isfinite(curve.accuracy_mean)]
    return float(known.max()) if known.size else None


def _first_place(curve: Curve, accuracy: float) -> int:
    return int(np.argmax(curve.accuracy_mean >= accuracy))


def _first(curve: Curve, accuracy: float) -> int | None:
    """Place of the first evaluated round whose mean accuracy reaches `accuracy`."""
    place = _first_place(curve, accuracy) if curve.round.size else 0
    return place if curve.round.size and curve.accuracy_mean[place] >= accuracy else None


def _at(column: NDArray[np.int64], place: int | None) -> int | None:
    return None if place is None else int(column[place])


def _mean_within(curve: Curve, window: tuple[int, int]) -> float | None:
    first, last = window
    inside = curve.accuracy_mean[(curve.round >= first) & (curve.round <= last)]
    known = inside[np.isfinite(inside)]
    return float(known.mean()) if known.size else None


def _seconds_per_round(summary: Mapping[str, Any]) -> float | None:
    """Time between start-up and end over the rounds, evaluations included."""
    wall, startup = summary["wall_s"], summary["startup_s"]
    if wall is None or startup is None:
        return None
    return float(wall - startup) / int(summary["rounds"])
