"""Tables of figures for the terminal: a run, several runs, a link schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from p2p_dml.links import Survey
from p2p_dml.report._figures import compare_row, key_figures, lost_sentence
from p2p_dml.report._units import digits, percent, plural
from p2p_dml.report._values import Summary

_MAX_LOST = 5
_COMPARED = ("run", "strategy", "rounds", "accuracy", "loss", "sent", "wall time", "finished")


def summary_table(summary: Summary) -> RenderableType:
    """The key figures of one run, and a line for each of the first lost peers."""
    lost = [Text(lost_sentence(peer), style="red") for peer in summary.lost[:_MAX_LOST]]
    if len(summary.lost) > _MAX_LOST:
        lost.append(Text(f"… and {len(summary.lost) - _MAX_LOST} more", style="red"))
    return Group(_named_values(key_figures(summary)), *lost)


def summaries_table(summaries: Mapping[str, Summary]) -> Table:
    """One row per run, one column per figure: as many as 80 columns of text can show."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for head in _COMPARED:
        is_word = head in ("run", "strategy")
        justify: JustifyMethod = "left" if is_word else "right"
        table.add_column(head, justify=justify, overflow="fold", no_wrap=not is_word)
    for label, summary in summaries.items():
        row = compare_row(label, summary)
        table.add_row(*(Text(row[head]) for head in _COMPARED))
    return table


def survey_table(survey: Survey) -> Table:
    """What a link schedule is like under its mixing rule, in words."""
    after = survey.union_connected_after
    static = "stays the same" if survey.is_static else "changes"
    return _named_values(
        [
            (
                "peers",
                str(survey.num_peers),
                f"over {plural(survey.ticks, 'tick')}; graph {static}",
            ),
            (
                "neighbours heard",
                f"{digits(survey.degree_mean)} ({survey.degree_min} – {survey.degree_max})",
                f"density {digits(survey.density)}",
            ),
            ("peers that hear nobody", percent(survey.isolated_share), "mean over the ticks"),
            ("links", "symmetric" if survey.is_symmetric else "directed", ""),
            (
                "mixing weights",
                "doubly stochastic" if survey.is_doubly_stochastic else "not doubly stochastic",
                "the mean over the peers is kept" if survey.is_doubly_stochastic else "",
            ),
            ("connected", percent(survey.connected_share), "share of the ticks"),
            (
                "all links so far connect",
                "never" if after is None else f"after {plural(after, 'tick')}",
                "every peer with every other",
            ),
            (
                "spectral gap",
                f"{digits(survey.gap_mean)} (smallest {digits(survey.gap_min)})",
                f"{digits(survey.gap_product)} of the product of all ticks",
            ),
        ]
    )


def _named_values(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Rows of (name, value, remark)."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
