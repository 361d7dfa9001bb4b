"""What was refused: told once, counted all along, and bounded."""

from __future__ import annotations

from p2p_dml.events import Rejected
from p2p_dml.transports._refusals import Refusals


def test_each_kind_is_told_once_and_the_rest_in_the_end() -> None:
    refusals = Refusals()
    assert refusals.add(1, "bad", 3) == [Rejected(1, 3, "bad", 1)]
    assert refusals.add(1, "bad", 4) == []
    assert refusals.add(1, "bad", 5, times=40) == []
    assert refusals.add(2, "bad", 5) == [Rejected(2, 5, "bad", 1)]
    assert refusals.add(None, "worse", 6, times=7) == [Rejected(None, 6, "worse", 7)]
    assert refusals.rest(9) == [Rejected(1, 9, "bad", 41)]
    assert refusals.rest(9) == []
    assert refusals.reasons() == ["bad", "worse"]


def test_a_flood_of_reasons_fills_no_log_and_is_counted() -> None:
    refusals = Refusals()
    told = [event for i in range(5000) for event in refusals.add(None, f"reason {i}", 1)]
    assert len(told) == 201
    assert "too many to be told" in told[-1].why
    told += refusals.rest(2)
    assert sum(event.times for event in told) == 5000
    assert len(told) == 202
