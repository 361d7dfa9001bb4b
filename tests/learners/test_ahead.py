"""Results that were computed ahead: for whom, and how long they hold."""

from __future__ import annotations

from p2p_dml.learners._ahead import Ahead


def kept() -> Ahead[str]:
    """Rows 2 and 3 in round 5, from versions 7 and 8."""
    ahead: Ahead[str] = Ahead()
    ahead.keep(slice(2, 4), 5, [7, 8], ["two", "three"])
    return ahead


def test_a_result_is_taken_once_by_its_own_row() -> None:
    ahead = kept()
    assert ahead.take(3, 5, 8) == "three"
    assert ahead.take(3, 5, 8) is None
    assert ahead.take(2, 5, 7) == "two"
    assert ahead.take(1, 5, 7) is None


def test_it_holds_for_its_round_and_version_only() -> None:
    assert kept().take(2, 6, 7) is None
    assert kept().take(2, 5, 8) is None


def test_a_newer_result_takes_the_place_of_an_older_one() -> None:
    ahead = kept()
    ahead.keep(slice(2, 3), 6, [9], ["new"])
    assert ahead.take(2, 6, 9) == "new"
    assert ahead.take(3, 5, 8) == "three"


def test_no_round_was_computed_at_first() -> None:
    assert kept().round == -1
