"""Degrees set beforehand: values, schedules, and errors that help."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from p2p_dml.strategies._degree import DecayingDegree, FixedDegree, read_degree


def test_a_number_is_the_degree_of_both_parts() -> None:
    assert read_degree(9.0) == FixedDegree(representation=9.0, decision=9.0)


def test_a_part_that_is_not_named_has_degree_1() -> None:
    schedule = read_degree({"decision": 9})
    assert schedule is not None
    assert (schedule("decision", 1), schedule("representation", 50)) == (9.0, 1.0)


def test_a_decay_starts_at_start_and_loses_a_share_of_1_minus_1_over_e_per_time_constant() -> None:
    schedule = read_degree({"start": 15.0, "end": 1.0, "time_constant": 2.0})
    assert schedule == DecayingDegree(start=15.0, end=1.0, time_constant=2.0)
    assert schedule("decision", 1) == 15.0
    assert schedule("representation", 3) == pytest.approx(1 + 14 / math.e)
    assert schedule("decision", 5) == pytest.approx(1 + 14 / math.e**2)
    assert schedule("decision", 10_000) == 1.0


def test_learned_is_no_schedule() -> None:
    assert read_degree("learned") is None


@pytest.mark.parametrize(
    ("degree", "message"),
    [
        (0.5, r"degree = 0\.5: expected a degree of at least 1"),
        (math.nan, "degree = nan: expected a degree"),
        (math.inf, "degree = inf: expected a degree"),
        ("lerned", "degree = 'lerned': unknown word; did you mean 'learned'"),
        ({}, "degree: an empty table"),
        ({"decison": 9.0}, r"degree\.decison: unknown key; did you mean 'decision'"),
        ({"strt": 9.0}, r"degree\.strt: unknown key; did you mean 'start'"),
        ({"decision": 0.5}, r"degree: decision = 0\.5: expected a degree of at least 1"),
        ({"decision": "big"}, r"degree\.decision: .*valid number; found str 'big'"),
        ({"start": 15.0}, r"degree\.time_constant: missing"),
        ({"start": 15.0, "time_constant": 0.0}, r"time_constant = 0\.0: expected rounds"),
        ({"start": 0.0, "time_constant": 2.0}, r"start = 0\.0: expected a degree"),
        ({"start": 2.0, "end": 0.0, "time_constant": 2.0}, r"end = 0\.0: expected a degree"),
        ({"start": 2.0, "time_constant": 2.0, "decision": 3.0}, r"degree\.decision: unknown key"),
    ],
)
def test_what_is_wrong_is_named(degree: float | str | Mapping[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_degree(degree)
