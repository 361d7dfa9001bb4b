"""Graphs that are asked row by row are the graphs that are drawn whole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_dml.graph import Graph, Row, Rows

LINKS = st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=200)


class Counted:
    """A graph of 60 peers by its links (sender, receiver), which counts what it is asked."""

    def __init__(self, links: list[tuple[int, int]], *, two_way: bool) -> None:
        self.links = {(a, b) for a, b in links if a != b}
        if two_way:
            self.links |= {(b, a) for a, b in self.links}
        self.asked: Counter[str] = Counter()
        self.graph = Graph(
            Rows(
                num_peers=60,
                senders_of=self.senders_of,
                receivers_of=None if two_way else self.receivers_of,
                whole=self.whole,
            )
        )

    def senders_of(self, me: int) -> Row:
        self.asked["senders"] += 1
        return tuple(sorted(a for a, b in self.links if b == me))

    def receivers_of(self, me: int) -> Row:
        self.asked["receivers"] += 1
        return tuple(sorted(b for a, b in self.links if a == me))

    def whole(self) -> tuple[Row, ...]:
        self.asked["whole"] += 1
        return tuple(tuple(sorted(a for a, b in self.links if b == me)) for me in range(60))


@given(LINKS, st.booleans(), st.lists(st.integers(0, 59), max_size=70))
def test_rows_are_those_of_the_whole_graph_however_many_are_asked(
    links: list[tuple[int, int]], two_way: bool, asked: list[int]
) -> None:
    counted = Counted(links, two_way=two_way)
    graph, drawn = counted.graph, Graph(counted.whole())
    for me in asked:
        assert graph.receivers_of(me) == drawn.receivers[me]
        assert graph.senders_of(me) == drawn.senders[me]
    assert graph.in_degrees(asked) == drawn.in_degrees(asked)
    assert graph.out_degrees(asked) == drawn.out_degrees(asked)
    assert (graph.num_peers, graph.num_links) == (60, drawn.num_links)
    assert graph.is_symmetric == drawn.is_symmetric
    assert graph.is_complete == drawn.is_complete
    assert graph == drawn and drawn == graph and hash(graph) == hash(drawn)
    assert repr(graph) == repr(drawn)


@pytest.mark.parametrize("two_way", [False, True])
def test_one_peer_asks_for_its_row_alone_and_once(two_way: bool) -> None:
    counted = Counted([(0, 1), (1, 5), (5, 0)], two_way=two_way)
    for _ in range(3):
        counted.graph.senders_of(5)
        counted.graph.receivers_of(5)
    assert counted.asked == ({"senders": 1} if two_way else {"senders": 1, "receivers": 1})


def test_who_asks_for_all_rows_has_them_drawn_together() -> None:
    counted = Counted([(0, 1), (1, 5)], two_way=True)
    for me in range(60):
        counted.graph.senders_of(me)
    assert counted.asked == {"senders": 2, "whole": 1}  # 60 / 32 rows, then the rest


def test_graphs_that_differ_in_one_link_are_not_equal() -> None:
    one, other = Counted([(0, 1), (58, 59)], two_way=True), Counted([(0, 1)], two_way=True)
    assert one.graph != other.graph
    assert one.graph != "a graph" and one.graph == one.graph


def test_degrees_are_taken_from_rows_that_know_them() -> None:
    def never(me: int) -> Row:
        raise AssertionError(f"row of peer {me} was asked for")

    def halves(peers: object) -> list[int]:
        return [30, 31]

    known = Graph(Rows(num_peers=9, senders_of=never, whole=tuple, degree=3))
    assert known.in_degrees([4, 5]) == known.out_degrees([4, 5]) == [3, 3]
    counted = Graph(Rows(num_peers=9, senders_of=never, whole=tuple, in_degrees=halves))
    assert counted.in_degrees([4, 5]) == counted.out_degrees([4, 5]) == [30, 31]


def test_a_sample_of_few_peers_is_everything_and_of_many_a_few_rows() -> None:
    few = Counted([(0, 1), (58, 59)], two_way=True).graph
    assert few.sample() == few.senders

    def never() -> tuple[Row, ...]:
        raise AssertionError("the whole graph was drawn")

    many = Graph(Rows(num_peers=1000, senders_of=lambda me: (me + 1,), whole=never))
    assert many.sample() == tuple((me + 1,) for me in range(8))
    drawn = Graph(((),) * 1000)
    assert drawn.sample() == drawn.senders
