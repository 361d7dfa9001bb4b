"""Figures of rounds by hand."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_dml.launchers.bench.cases import WARM_UP
from p2p_dml.launchers.bench.figures import figures, medians, round_times, timed


def starts(*seconds: float) -> list[float]:
    """When rounds begin that take `seconds`, after a warm-up of rounds of 100 s."""
    at = [100.0 * place for place in range(WARM_UP + 1)]
    for each in seconds:
        at.append(at[-1] + each)
    return at


def test_round_times_are_those_of_the_median_and_the_slowest_peer() -> None:
    found = round_times([starts(1, 1, 1), starts(3, 2, 1), starts(4, 4, 1)])
    assert found["round_ms"] == 2000
    assert found["round_ms_p10"] == pytest.approx(1200)  # of 1, 2, 3 by linear interpolation
    assert found["round_ms_p90"] == pytest.approx(2800)
    assert found["slowest_round_ms"] == found["slowest_round_ms_p90"] == 4000
    assert found["mean_round_ms"] == 3000  # 9 s until the last peer has begun the fourth


def test_of_two_peers_the_faster_one_is_the_median() -> None:
    assert round_times([starts(5, 5), starts(1, 1)])["round_ms"] == 1000


def peer(cpu_s: float, pss_mb: float, joined: float) -> list[dict[str, Any]]:
    """The events of a peer that takes a second per round; its warm-up costs a lot."""
    rounds = [
        {
            "event": "round_done",
            "t": 0.0,
            "bytes_out": 40 if place < WARM_UP else 8,
            "missing": [7] if place == 0 else [],
            "metrics": {
                "at": 20.0 + place,
                "cpu_s": 50.0 + max(0, place - WARM_UP) * cpu_s,
            },
        }
        for place in range(WARM_UP + 4)
    ]
    memory = [
        {"event": "memory", "pss_mb": 999.0, "rss_mb": 999.0},
        {"event": "memory", "pss_mb": pss_mb, "rss_mb": 2 * pss_mb},
    ]
    return [{"event": "joined", "t": joined}, *rounds, *memory]


def test_figures_of_a_run() -> None:
    found = figures([peer(0.002, 10, 12), peer(0.004, 30, 13), peer(0.003, 20, 11)], begun=10.0)
    assert found["round_ms"] == found["mean_round_ms"] == 1000
    assert found["cpu_ms"] == pytest.approx(3)
    assert (found["pss_mb"], found["pss_mb_max"], found["rss_mb"]) == (20, 30, 40)
    assert found["bytes_out"] == 8  # not those of the warm-up
    assert found["missing"] == 3  # of all rounds
    assert (found["met_s"], found["first_step_s"]) == (3, 10)


def test_neither_the_warm_up_nor_the_last_round_is_timed() -> None:
    rounds = [{"round": place} for place in range(1, WARM_UP + 4)]
    assert [each["round"] for each in timed(rounds)] == [WARM_UP + 1, WARM_UP + 2]


def test_medians_are_taken_figure_by_figure_and_shortened() -> None:
    runs = [{"a": 1.0, "b": 8_000_000.4}, {"a": 3.0, "b": 1.0}, {"a": 2.00004, "b": 9_000_000.0}]
    assert medians(runs) == {"a": 2.0, "b": 8_000_000.0}
