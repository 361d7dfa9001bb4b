"""How many others a peer is linked to: exact where links stay, an estimate where they are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml import links
from p2p_dml.links.acquaintances import acquaintances


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


def test_links_drawn_anew_bring_new_ones_in_proportion() -> None:
    schedule = links.build({"kind": "k_regular", "degree": 4}, 100_000, 1, Path())
    assert acquaintances(schedule, 5, 8) == 32
    assert acquaintances(schedule, 5, 80) == 320
