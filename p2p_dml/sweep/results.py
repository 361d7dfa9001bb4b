"""Writes what a sweep found: one CSV file, Markdown tables, a picture for each group of cells."""

from __future__ import annotations

import csv
import functools
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2p_dml.files import write_whole
from p2p_dml.report import Curve, Picture, Timeline
from p2p_dml.report.plots import curve_pictures
from p2p_dml.sweep._folder import is_finished, run_folder
from p2p_dml.sweep._metrics import Figures, Record, figures, read_record
from p2p_dml.sweep._tables import blocks, markdown
from p2p_dml.sweep._values import Case, Labels, Plan, title_of

_MAX_INSTANTS = 1000

Records = Mapping[str, Record]
"""What the finished cases left behind, by digest."""


def write(plan: Plan, out: Path, errors: Mapping[str, str]) -> str:
    """Write sweep.csv, tables.md and plots/*.png of the finished cases; returns the tables' text.

    `errors` says by digest what the failed ones said. Raises StorageError if the folder cannot be
    written.
    """
    finished = {case.digest: case for case in plan.cases if is_finished(out, case)}
    small = plan.measures.small
    records = {d: read_record(run_folder(out, case), small) for d, case in finished.items()}
    measured = _measure(plan, records)
    write_whole(out / "sweep.csv", _csv(plan, measured, errors).encode())
    text = _tables(plan, measured, errors)
    write_whole(out / "tables.md", text.encode())
    for name, png in _pictures(plan, records).items():
        write_whole(out / "plots" / f"{name}.png", png)
    return text


# ---- figures ---------------------------------------------------------------------------------


def _measure(plan: Plan, records: Records) -> list[tuple[Case, Figures | None]]:
    """Every case with its figures; None for one that is not finished."""
    by_place = {_place(case.labels, case.seed): case for case in plan.cases}
    found: list[tuple[Case, Figures | None]] = []
    for case in plan.cases:
        other = by_place.get(_place({**case.labels, **plan.reference}, case.seed))
        reference = records.get(other.digest) if other else None
        record = records.get(case.digest)
        found.append((case, record and figures(record, reference, plan.measures)))
    return found


def _place(labels: Labels, seed: int) -> tuple[tuple[str, ...], int]:
    return tuple(labels.values()), seed


def _csv(
    plan: Plan, measured: Sequence[tuple[Case, Figures | None]], errors: Mapping[str, str]
) -> str:
    """A row per case and seed; figures that are unknown are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plan.axes, "seed", "state", "case", *plan.measures.names])
    for case, row in measured:
        state = "done" if row else "failed" if case.digest in errors else "open"
        cells = [_number(row[name] if row else None) for name in plan.measures.names]
        writer.writerow([*case.labels.values(), case.seed, state, case.digest, *cells])
    return text.getvalue()


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.8g}"


# ---- tables ----------------------------------------------------------------------------------


def _tables(
    plan: Plan, measured: Sequence[tuple[Case, Figures | None]], errors: Mapping[str, str]
) -> str:
    rows = [(case.labels, row) for case, row in measured if row]
    seeds = ", ".join(map(str, dict.fromkeys(case.seed for case in plan.cases)))
    head = (
        f"# {plan.name}\n\n{len(rows)} of {len(plan.cases)} cases finished. Mean ± sample standard "
        f"deviation over the seeds {seeds}.\n"
    )
    is_all = len(rows) == len(plan.cases)
    tables = (markdown(each, plan.axes, rows, is_all=is_all) for each in plan.layouts)
    parts = [_convergence(plan), *tables]
    if errors:
        failed = [case for case in plan.cases if case.digest in errors]
        lines = [f"- {case.title}: {errors[case.digest]}" for case in failed]
        parts.append("## Failed\n\n" + "\n".join(lines) + "\n")
    return "\n".join([head, *filter(None, parts)])


def _convergence(plan: Plan) -> str:
    """What a table that speaks of convergence means by it."""
    shown = {metric for layout in plan.layouts for metric in layout.metrics}
    if not shown & {"rounds_to_converge", "bytes_to_converge"}:
        return ""
    of = title_of(plan.reference)
    whose = f"the best of the case with {of}" if of else "its own best"
    return (
        "A case has converged in the first evaluated round whose mean accuracy reaches "
        f"{100 * plan.measures.threshold:g} % of {whose}; one that never does has no number.\n"
    )


# ---- pictures --------------------------------------------------------------------------------


def _pictures(plan: Plan, records: Records) -> Mapping[str, bytes]:
    """Accuracy with a line per label of the first table's last row axis; PNG files by name."""
    lines = plan.layouts[0].rows[-1:] or tuple(plan.axes)[:1]
    found = {}
    for number, block in enumerate(blocks(plan.axes, lines), start=1):
        finished = {
            label: seeds
            for label in plan.axes[lines[0]]
            if (seeds := _seeds(plan, records, {**block, lines[0]: label}))
        }
        first = next((r for seeds in finished.values() for r in seeds), None)
        is_personal = first is not None and first.summary["evaluate_on"] == "own"
        for picture in _draw(finished, is_personal=is_personal) if finished else ():
            found[f"{_slug(number, block)}{picture.name}"] = picture.png
    return found


def _seeds(plan: Plan, records: Records, labels: Labels) -> list[Record]:
    cases = [case for case in plan.cases if dict(case.labels) == dict(labels)]
    return [records[case.digest] for case in cases if case.digest in records]


def _draw(finished: Mapping[str, Sequence[Record]], *, is_personal: bool) -> Sequence[Picture]:
    """Pictures with a line per label; accuracy is over time as far as all seeds have that."""
    curves = {label: _over_seeds([r.curve for r in seeds]) for label, seeds in finished.items()}
    timelines = {label: [r.timeline for r in seeds] for label, seeds in finished.items()}
    if not all(len(each.seconds) for seeds in timelines.values() for each in seeds):
        return curve_pictures(curves, is_personal=is_personal)
    over_time = {label: _timeline_over_seeds(seeds) for label, seeds in timelines.items()}
    return curve_pictures(curves, over_time, is_personal=is_personal)


def _slug(number: int, block: Labels) -> str:
    """The beginning of a file name; the number keeps those apart that read alike."""
    words = re.sub(r"[^\w.]+", "-", "-".join(filter(None, block.values()))).strip("-")
    return f"{number:02d}-{words}-" if words else ""


def _over_seeds(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves over their common rounds; the spread is that over the seeds."""
    rounds = functools.reduce(np.intersect1d, [curve.round for curve in curves])
    places = [np.searchsorted(curve.round, rounds) for curve in curves]
    accuracy = _stack([c.accuracy_mean for c in curves], places)
    unknown = np.full(len(rounds), np.nan)
    many = len(curves) > 1
    return Curve(
        round=rounds,
        accuracy_mean=accuracy.mean(axis=0),
        accuracy_std=accuracy.std(axis=0, ddof=1) if many else np.zeros(len(rounds)),
        loss_mean=unknown,
        consensus_distance=unknown,
        bytes_out=_stack([c.bytes_out for c in curves], places).mean(axis=0).astype(np.int64),
        seconds=_stack([c.seconds for c in curves], places).mean(axis=0),
        accuracy_min=accuracy.min(axis=0),
        accuracy_max=accuracy.max(axis=0),
        train_loss_mean=unknown,
        peers=np.min(_stack([c.peers for c in curves], places), axis=0).astype(np.int64),
    )


def _timeline_over_seeds(timelines: Sequence[Timeline]) -> Timeline:
    """The mean of several timelines from when all have begun, each as it last was at an instant."""
    begin = max(float(each.seconds[0]) for each in timelines)
    instants = np.unique(np.concatenate([each.seconds for each in timelines]))
    instants = instants[instants >= begin]
    chosen = np.linspace(0, len(instants) - 1, min(len(instants), _MAX_INSTANTS)).round()
    seconds = instants[chosen.astype(np.int64)]
    places = [np.searchsorted(each.seconds, seconds, side="right") - 1 for each in timelines]
    accuracy = _stack([each.accuracy_mean for each in timelines], places)
    many = len(timelines) > 1
    return Timeline(
        seconds=seconds,
        accuracy_mean=accuracy.mean(axis=0),
        accuracy_std=accuracy.std(axis=0, ddof=1) if many else np.zeros(len(seconds)),
        accuracy_min=accuracy.min(axis=0),
        accuracy_max=accuracy.max(axis=0),
        rounds_mean=_stack([each.rounds_mean for each in timelines], places).mean(axis=0),
        peers=np.min(_stack([each.peers for each in timelines], places), axis=0).astype(np.int64),
    )


def _stack(
    columns: Sequence[NDArray[np.float64]] | Sequence[NDArray[np.int64]],
    places: Sequence[NDArray[np.intp]],
) -> NDArray[np.float64]:
    """Columns at the common rounds or instants [seeds, e]."""
    return np.stack([column[at] for column, at in zip(columns, places, strict=True)]).astype(float)
