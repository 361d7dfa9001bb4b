"""Markdown tables of a sweep: mean ± standard deviation over the seeds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from p2p_dml.report import plural
from p2p_dml.sweep._metrics import Figures, in_words, unit
from p2p_dml.sweep._values import Labels, Layout, title_of

ABSENT = "–"
Row = tuple[Labels, Figures]
"""A finished case: its labels and figures."""


def markdown(
    layout: Layout, axes: Mapping[str, Sequence[str]], rows: Sequence[Row], *, is_all: bool = True
) -> str:
    """The tables of a layout, one below the other; rows and columns without a case are left out.

    `is_all`: whether all cases of the sweep have finished.
    """
    return "\n".join(
        _table(layout, axes, [row for row in rows if _agrees(row[0], block)], block, is_all=is_all)
        for block in blocks(axes, (*layout.rows, *layout.columns))
    )


def blocks(axes: Mapping[str, Sequence[str]], without: Iterable[str]) -> list[Labels]:
    """Every combination of the labels of the axes but those of `without`."""
    inside = set(without)
    return _combinations(axes, [axis for axis in axes if axis not in inside])


def cell(metric: str, values: Sequence[float | None]) -> str:
    """Mean ± sample standard deviation of the known values, and how many of all those are.

    One value has no deviation; a dash stands for none.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ABSENT
    text = in_words(metric, statistics.fmean(known))
    if len(known) > 1:
        text += f" ± {in_words(metric, statistics.stdev(known))}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def _table(
    layout: Layout,
    axes: Mapping[str, Sequence[str]],
    rows: Sequence[Row],
    block: Labels,
    *,
    is_all: bool,
) -> str:
    heads = [
        head
        for head in _combinations(axes, layout.columns)
        if any(_agrees(row[0], head) for row in rows)
    ]
    columns = [(head, metric) for head in heads for metric in layout.metrics]
    lines = [[*layout.rows, *(_head(head, metric, layout) for head, metric in columns)]]
    for labels in _combinations(axes, layout.rows):
        found = [row for row in rows if _agrees(row[0], labels)]
        if found:
            lines.append([*labels.values(), *(_cell(found, *column) for column in columns)])
    ruler = ["---"] * len(layout.rows) + ["---:"] * len(columns)
    text = "\n".join(
        f"| {' | '.join(map(_safe, line))} |" for line in [lines[0], ruler, *lines[1:]]
    )
    if len(lines) == 1:
        text = "No case of this table is finished."
    title = title_of(block) or ("All cases" if is_all else _finished(len(rows)))
    return f"### {title}\n\n{text}\n"


def _finished(num_cases: int) -> str:
    if num_cases == 1:
        return "The case that has finished"
    return f"The {plural(num_cases, 'case')} that have finished"


def _head(labels: Labels, metric: str, layout: Layout) -> str:
    named = f"{metric} ({unit(metric)})" if unit(metric) else metric
    return ": ".join(filter(None, (", ".join(filter(None, labels.values())), named)))


def _cell(rows: Sequence[Row], labels: Labels, metric: str) -> str:
    return cell(metric, [figures[metric] for found, figures in rows if _agrees(found, labels)])


def _combinations(axes: Mapping[str, Sequence[str]], chosen: Sequence[str]) -> list[Labels]:
    products = itertools.product(*(axes[axis] for axis in chosen))
    return [dict(zip(chosen, labels, strict=True)) for labels in products]


def _agrees(labels: Labels, wanted: Labels) -> bool:
    return all(labels[axis] == label for axis, label in wanted.items())


def _safe(text: str) -> str:
    return text.replace("|", "\\|")
