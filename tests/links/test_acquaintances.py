"""How many others a peer is linked to: exact where links stay, an estimate where they are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml import links
from p2p_dml.links.acquaintances import acquaintances, is_two_way


@pytest.mark.parametrize(
    ("table", "ticks", "expected"),
    [
        ("ring", 1000, 2),
        ("complete", 1000, 99),
        ("exponential", 1000, 14),
        ({"kind": "static", "of": {"kind": "k_regular", "degree": 4}}, 1000, 4),
        ({"kind": "alternating", "phases": ["ring", "torus"]}, 1000, 4),
        ({"kind": "k_regular", "degree": 4}, 1, 4),
        ({"kind": "k_regular", "degree": 4}, 1000, 99),
        ({"kind": "until", "of": {"kind": "k_regular", "degree": 4}, "at_tick": 1}, 1000, 4),
        ("ring", 0, 0),
    ],
)
def test_others_that_a_peer_of_a_hundred_is_linked_to(
    table: dict[str, object] | str, ticks: int, expected: int
) -> None:
    assert acquaintances(links.build(table, 100, 1, Path()), 5, ticks) == expected


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("ring", True),
        ("exponential", False),
        ("one_peer_exponential", False),
        ({"kind": "k_regular", "degree": 4}, True),
        ({"kind": "edges", "edges": [[5, 6], [7, 5]], "directed": True}, False),
        ({"kind": "edges", "edges": [[1, 2]], "directed": True}, True),  # none of them its own
        ({"kind": "alternating", "phases": ["ring", "exponential"]}, False),
    ],
)
def test_whether_those_who_hear_a_peer_are_heard_by_it(
    table: dict[str, object] | str, expected: bool
) -> None:
    assert is_two_way(links.build(table, 100, 1, Path()), 5, 8) is expected


def test_links_drawn_anew_bring_new_ones_in_proportion() -> None:
    schedule = links.build({"kind": "k_regular", "degree": 4}, 100_000, 1, Path())
    assert acquaintances(schedule, 5, 8) == 32
    assert acquaintances(schedule, 5, 80) == 320
