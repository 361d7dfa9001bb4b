"""Edge lists and traces: by hand, recorded and read back, and refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_dml.links.random import Epidemic, ErdosRenyi
from p2p_dml.links.recorded import AtEnd, Edges, Trace, read_trace, record, write_trace
from p2p_dml.links.static import Ring
from p2p_dml.types import Graph, LinkSchedule

BY_HAND = Trace(num_peers=3, rows=((0, 1, 0, 2), (2, 1, 1, 4)))
NONE: tuple[tuple[int, ...], ...] = ((), (), ())
GRAPHS = [((1,), (0,), ()), ((1,), (0, 2), (1,)), ((), (2,), (1,)), ((), (2,), (1,))]


def test_edges_link_both_ways_unless_directed() -> None:
    edges = ((0, 1), (2, 1), (1, 0))
    assert Edges(num_peers=3, edges=edges)(9).senders == ((1,), (0, 2), (1,))
    assert Edges(num_peers=3, edges=edges, directed=True)(9).senders == ((1,), (0, 2), ())
    assert Edges(num_peers=3, edges=())(0).senders == NONE


def test_a_trace_by_hand() -> None:
    assert [BY_HAND(tick).senders for tick in range(4)] == GRAPHS
    one_way = Trace(num_peers=3, rows=BY_HAND.rows, directed=True)
    assert one_way(1).senders == ((), (0, 2), ())


@pytest.mark.parametrize(
    ("at_end", "after"),
    [("repeat", GRAPHS), ("hold", [GRAPHS[3]] * 4), ("empty", [NONE] * 4)],
)
def test_what_follows_the_end_of_a_trace(
    at_end: AtEnd, after: list[tuple[tuple[int, ...], ...]]
) -> None:
    trace = Trace(num_peers=3, rows=BY_HAND.rows, at_end=at_end)
    assert [trace(tick).senders for tick in range(4, 8)] == after


def test_a_trace_may_be_longer_or_shorter_than_its_links() -> None:
    longer = Trace(num_peers=3, rows=BY_HAND.rows, ticks=6)
    assert [longer(tick).senders for tick in (3, 4, 5, 6)] == [GRAPHS[3], NONE, NONE, GRAPHS[0]]
    shorter = Trace(num_peers=3, rows=BY_HAND.rows, ticks=1)
    assert [shorter(tick).senders for tick in (0, 1, 2)] == [GRAPHS[0]] * 3


@pytest.mark.parametrize(
    ("schedule", "directed"),
    [
        (Ring(num_peers=5), False),
        (ErdosRenyi(num_peers=7, density=0.3, seed=2), False),
        (Epidemic(num_peers=7, fanout=2, seed=2), True),
    ],
)
def test_a_record_equals_its_schedule(
    schedule: LinkSchedule, directed: bool, tmp_path: Path
) -> None:
    trace = record(schedule, 25)
    assert trace.directed is directed
    assert [trace(tick) for tick in range(25)] == [schedule(tick) for tick in range(25)]
    write_trace(trace, tmp_path / "t.csv")
    peers = schedule(0).num_peers
    again = read_trace(num_peers=peers, file="t.csv", folder=tmp_path, ticks=25, directed=directed)
    assert again == trace


@given(st.lists(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3))), min_size=1, max_size=6))
@settings(deadline=None)
def test_any_sequence_of_graphs_can_be_recorded(ticks: list[set[tuple[int, int]]]) -> None:
    graphs = [
        Graph(tuple(tuple(sorted({j for i, j in up if i == me} - {me})) for me in range(4)))
        for up in ticks
    ]
    if any(graph.num_links for graph in graphs):
        trace = record(graphs.__getitem__, len(graphs))
        assert [trace(tick) for tick in range(len(graphs))] == graphs


def test_rows_of_a_constant_link_are_merged() -> None:
    assert record(Ring(num_peers=3), 100).rows == ((0, 1, 0, 100), (0, 2, 0, 100), (1, 2, 0, 100))


BAD_ROWS = [
    ("0,8,0,1", "t.csv line 3: link 0-8 is out of range for 8 peers: ids are 0 to 7"),
    ("4,4,0,1", "t.csv line 3: link 4-4 joins a peer to itself"),
    ("0,1,5,5", "t.csv line 3: link 0-1 must have 0 <= up < down, got up 5, down 5"),
    ("0,1,-1,5", "t.csv line 3: .*got up -1"),
    ("0,1,2", r"t.csv line 3: .*\(expected 4 whole numbers\)"),
    ("0,1,2,x", "t.csv line 3: .*'x'"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"from,to,up,down\n0,1,0,9\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_trace(num_peers=8, file="t.csv", folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the header from,to,up,down, found an empty file"),
        ("tick,from,to\n", "line 1: expected the header from,to,up,down, found tick,from,to"),
        ("from,to,up,down\n", "a trace needs at least one link"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trace(num_peers=8, file="t.csv", folder=tmp_path)


def test_unreadable_traces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read trace absent\.csv"):
        read_trace(num_peers=8, file="absent.csv", folder=tmp_path)
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"cannot read trace t\.csv"):
        read_trace(num_peers=8, file="t.csv", folder=tmp_path)


def test_a_trace_of_no_ticks_is_refused() -> None:
    with pytest.raises(ValueError, match="ticks must be >= 1, got 0"):
        Trace(num_peers=3, rows=BY_HAND.rows, ticks=0)
