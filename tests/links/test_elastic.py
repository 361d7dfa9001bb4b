"""Who takes part when: what peers tell each other, in any order, comes to the same graphs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_dml.errors import WireError
from p2p_dml.links.elastic import Elastic, Members
from p2p_dml.links.static import Complete, Ring
from p2p_dml.types import Graph

MOST = 8

CASES = [
    ("those that begin", [], 5, (0, 1, 2)),
    ("before it joins", [("join", 5, 10)], 9, (0, 1, 2)),
    ("from its round on", [("join", 5, 10)], 10, (0, 1, 2, 5)),
    ("to its last round", [("leave", 1, 10)], 10, (0, 1, 2)),
    ("after its last round", [("leave", 1, 10)], 11, (0, 2)),
    ("gone and not back", [("leave", 1, 10), ("join", 1, 20)], 15, (0, 2)),
    ("gone and back", [("leave", 1, 10), ("join", 1, 20)], 20, (0, 1, 2)),
    ("slow, before it was gone", [("leave", 1, 10), ("join", 1, 20)], 10, (0, 1, 2)),
    ("joined and gone", [("join", 5, 10), ("leave", 5, 12)], 13, (0, 1, 2)),
    ("joined and still there", [("join", 5, 10), ("leave", 5, 12)], 12, (0, 1, 2, 5)),
]


def members(changes: list[tuple[str, int, int]]) -> Members:
    found = Members(3, MOST)
    for what, peer, round_ in changes:
        (found.join if what == "join" else found.leave)(peer, round_)
    return found


@pytest.mark.parametrize(
    ("changes", "round_", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_who_takes_part(
    changes: list[tuple[str, int, int]], round_: int, expected: tuple[int, ...]
) -> None:
    assert members(changes).at(round_) == expected


change = st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, MOST - 1), st.integers(1, 50))


@given(st.lists(change, max_size=12))
def test_the_order_of_news_does_not_matter(changes: list[tuple[str, int, int]]) -> None:
    """Each change reaches one peer first; they tell each other all they know, twice."""
    peers = [members(changes[i::3]) for i in range(3)]
    for _ in range(2):
        for teller in peers:
            for hearer in peers:
                hearer.merge(teller.record())
    everything = members(changes)
    for round_ in (1, 10, 25, 50, 60):
        assert {each.at(round_) for each in peers} == {everything.at(round_)}


def test_there_is_room_for_as_many_as_the_run_has() -> None:
    found = schedule(3)
    assert [found.may_have(peer) for peer in (-1, 0, MOST - 1, MOST)] == [False, True, True, False]


def test_what_is_known_is_no_news() -> None:
    one, other = members([("join", 5, 10)]), members([])
    assert other.merge(one.record())
    assert not other.merge(one.record())


@pytest.mark.parametrize(
    ("name", "round_"),
    [
        ("8/joins", 5.0),
        ("-1/joins", 5.0),
        ("x/joins", 5.0),
        ("1/stays", 5.0),
        ("1", 5.0),
        ("", 5.0),
        ("²/joins", 5.0),
        ("9" * 400 + "/joins", 5.0),
        ("1/joins", -1.0),
        ("1/joins", float("nan")),
        ("1/joins", float("inf")),
        ("1/joins", 2.0**60),
    ],
)
def test_what_cannot_be_is_refused_whole(name: str, round_: float) -> None:
    found = members([])
    with pytest.raises(WireError, match="says of the members"):
        found.merge({"5/joins": 7.0, name: round_})
    assert found.at(100) == (0, 1, 2)


def schedule(first: int, exchanges: int = 1) -> Elastic:
    return Elastic(Members(first, MOST), lambda n: Ring(num_peers=n), exchanges)


def test_the_graph_is_that_of_as_many_peers_in_ascending_order() -> None:
    """Hand numbers: the ring of peers 0, 1, 2 and 6."""
    found = schedule(3)
    found.members.join(6, 4)
    assert found(2) == Graph(((1, 2), (0, 2), (0, 1), (), (), (), (), ()))
    assert found(3) == Graph(((1, 6), (0, 2), (1, 6), (), (), (), (0, 2), ()))


def test_a_change_comes_with_a_round_not_within() -> None:
    found = schedule(3, exchanges=2)
    found.members.join(6, 4)
    assert [len(found(tick).senders[6]) for tick in range(4, 9)] == [0, 0, 2, 2, 2]


@pytest.mark.parametrize("left", [1, 0])
def test_one_peer_and_none_have_no_links(left: int) -> None:
    found = schedule(1)
    if not left:
        found.members.leave(0, 1)
    assert found(5).num_links == 0


@pytest.mark.parametrize(
    ("elastic", "notice"),
    [
        (Elastic(Members(MOST, MOST), lambda n: Ring(num_peers=n), 1), 2 + 2 * 4),
        (Elastic(Members(MOST, MOST), lambda n: Complete(num_peers=n), 1), 2 + 2 * 1),
    ],
    ids=["ring of 8: diameter 4", "complete: diameter 1"],
)
def test_all_hear_of_a_change_in_time(elastic: Elastic, notice: int) -> None:
    """News that goes one link a round, to peers that may be a round ahead per link."""
    elastic.members.leave(3, 50)
    elastic.admit(3, 10)
    assert elastic.members.first_round(3, 0) == 10 + notice


def test_who_is_to_stay_is_not_admitted_twice() -> None:
    found = schedule(3)
    found.admit(6, 10)
    before = found.record()
    found.admit(6, 20)
    assert found.record() == before


def test_who_has_left_can_come_again() -> None:
    found = schedule(4)
    found.dismiss(3, 10)
    gone = found.members.at(30)
    found.admit(3, 40)
    assert (gone, found.members.at(60)) == ((0, 1, 2), (0, 1, 2, 3))
