"""From what peers wrote in a run without training to the figures of a case."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from p2p_dml.launchers.bench.cases import WARM_UP

Line = Mapping[str, Any]


def figures(peers: Sequence[Sequence[Line]], begun: float) -> dict[str, float]:
    """The figures of one run, from each peer's events; `begun`: when it was started (epoch).

    docs/benchmarks.md defines each. Times are those at which a peer begins its rounds.
    """
    rounds = [[line for line in lines if line["event"] == "round_done"] for lines in peers]
    return {
        **round_times([[each["metrics"]["at"] for each in done] for done in rounds]),
        "cpu_ms": 1e3 * statistics.median(map(_cpu_s, rounds)),
        **_memory(peers),
        "bytes_out": statistics.fmean(each["bytes_out"] for done in rounds for each in timed(done)),
        "missing": float(sum(len(each["missing"]) for done in rounds for each in done)),
        "met_s": max(_first(lines, "joined")["t"] for lines in peers) - begun,
        "first_step_s": max(done[0]["metrics"]["at"] for done in rounds) - begun,
    }


def timed(rounds: Sequence[Line]) -> Sequence[Line]:
    """The rounds that count: after the warm-up, without the last, which nothing follows."""
    return rounds[WARM_UP:-1]


def round_times(starts: Sequence[Sequence[float]]) -> dict[str, float]:
    """Milliseconds per round as the median and the slowest peer see them, and by the clock.

    `starts`: seconds at which each peer began each round, the warm-up included.
    """
    seen = [[b - a for a, b in itertools.pairwise(own[WARM_UP:])] for own in starts]
    ranked = sorted(seen, key=statistics.median)
    middle, slowest = ranked[(len(ranked) - 1) // 2], ranked[-1]
    begin, end = min(own[WARM_UP] for own in starts), max(own[-1] for own in starts)
    p10, p50, p90 = (1e3 * float(x) for x in np.quantile(middle, (0.1, 0.5, 0.9)))
    return {
        "round_ms": p50,
        "round_ms_p10": p10,
        "round_ms_p90": p90,
        "slowest_round_ms": 1e3 * statistics.median(slowest),
        "slowest_round_ms_p90": 1e3 * float(np.quantile(slowest, 0.9)),
        "mean_round_ms": 1e3 * (end - begin) / len(middle),
    }


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each figure's median over the runs, to four significant digits or whole."""
    return {key: _short(statistics.median(run[key] for run in runs)) for key in runs[0]}


def _short(value: float) -> float:
    return float(round(value)) if abs(value) >= 1000 else float(f"{value:.4g}")


def _cpu_s(rounds: Sequence[Line]) -> float:
    """Processor time of one peer per timed round."""
    first, last = (rounds[place]["metrics"]["cpu_s"] for place in (WARM_UP, -1))
    return float(last - first) / len(timed(rounds))


def _memory(peers: Sequence[Sequence[Line]]) -> dict[str, float]:
    """Of each peer's last reading."""
    readings = [[line for line in lines if line["event"] == "memory"][-1] for lines in peers]
    return {
        "pss_mb": statistics.median(each["pss_mb"] for each in readings),
        "pss_mb_max": max(each["pss_mb"] for each in readings),
        "rss_mb": statistics.median(each["rss_mb"] for each in readings),
    }


def _first(lines: Sequence[Line], event: str) -> Line:
    return next(line for line in lines if line["event"] == event)
