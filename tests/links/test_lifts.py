"""Random lifts: rows are those of the whole graph, degrees exact, pairs equally likely."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_dml.graph import Graph
from p2p_dml.kernels.mixing import metropolis, mixing_matrix, spectral_gap
from p2p_dml.links._graphs import FEW
from p2p_dml.links._lifts import is_lifted, lift
from p2p_dml.links._regular import regular_graph
from p2p_dml.links.random import Epidemic, KRegular, RandomMatching
from p2p_dml.links.surveys import is_connected


def drawn(num_peers: int, degree: int, seed: int, tick: int, *, directed: bool) -> Graph:
    """The whole graph, so that nothing comes of its rows."""
    return Graph(lift(num_peers, degree, seed, tick, directed=directed).senders)


@given(st.data(), st.integers(0, 9), st.integers(0, 2**64 - 1), st.booleans())
@settings(deadline=None)
def test_rows_are_those_of_the_whole_graph(
    data: st.DataObject, degree: int, seed: int, directed: bool
) -> None:
    num_peers = data.draw(st.integers(max(2, degree * (degree + 1)), 400))
    whole = drawn(num_peers, degree, seed, 3, directed=directed)
    for me in data.draw(st.lists(st.integers(0, num_peers - 1), min_size=1, max_size=20)):
        by_row = lift(num_peers, degree, seed, 3, directed=directed)
        assert by_row.senders_of(me) == whole.senders[me]
        assert by_row.receivers_of(me) == whole.receivers[me]
        assert by_row.in_degrees([me]) == whole.in_degrees([me])
        assert by_row.out_degrees([me]) == whole.out_degrees([me])


@given(st.data(), st.integers(0, 9), st.integers(0, 2**64 - 1), st.booleans())
@settings(deadline=None)
def test_every_peer_has_the_degree(
    data: st.DataObject, degree: int, seed: int, directed: bool
) -> None:
    num_peers = data.draw(st.integers(max(2, degree * (degree + 1)), 400))
    graph = drawn(num_peers, degree, seed, 0, directed=directed)
    degrees = Counter(map(len, graph.senders + graph.receivers))
    is_odd = not directed and num_peers * degree % 2 == 1
    assert degrees == (
        {degree: 2 * num_peers - 2, degree - 1: 2} if is_odd else {degree: 2 * num_peers}
    )
    assert directed or graph.is_symmetric
    assert all(me not in heard for me, heard in enumerate(graph.senders))


def test_a_hundred_thousand_peers_are_asked_one_by_one() -> None:
    graph = lift(100_000, 4, 1, 9, directed=False)
    for me in (0, 1, 49_999, 99_999):
        for other in graph.senders_of(me):
            assert me in graph.senders_of(other)
        assert len(graph.senders_of(me)) == 4


@pytest.mark.parametrize(
    ("num_peers", "degree", "directed"),
    [(12, 1, False), (13, 1, False), (20, 3, False), (23, 4, False), (21, 4, False), (15, 2, True)],
)
def test_all_links_are_equally_likely(num_peers: int, degree: int, directed: bool) -> None:
    """Chi-square over pairs, those left over (13, 23, 21 peers) like the others."""
    draws = 3000
    seen: Counter[tuple[int, int]] = Counter()
    for tick in range(draws):
        graph = drawn(num_peers, degree, 17, tick, directed=directed)
        seen.update(
            (i, j) for i, heard in enumerate(graph.senders) for j in heard if directed or i < j
        )
    cells = num_peers * (num_peers - 1) // (1 if directed else 2)
    mean = seen.total() / cells
    statistic = sum((seen[pair] - mean) ** 2 for pair in seen) / mean
    statistic += (cells - len(seen)) * mean
    # Counts of one graph hang together, which only makes their squares smaller: no pair is twice.
    assert statistic < cells + 4 * (2 * cells) ** 0.5


def test_graphs_of_different_ticks_have_no_more_links_in_common_than_chance() -> None:
    draws, shared = 60, 0
    graphs = [drawn(300, 4, 3, tick, directed=False) for tick in range(draws)]
    for one, other in pairwise(graphs):
        shared += sum(len(set(a) & set(b)) for a, b in zip(one.senders, other.senders, strict=True))
    expected = (draws - 1) * 300 * 4 * 4 / 299
    assert abs(shared - expected) < 5 * (2 * expected) ** 0.5


@pytest.mark.parametrize("degree", [3, 4, 8])
def test_they_mix_about_as_fast_as_random_regular_graphs(degree: int) -> None:
    def gap(graph: Graph) -> float:
        return spectral_gap(mixing_matrix(graph, metropolis))

    lifted = [gap(drawn(150, degree, 1, tick, directed=False)) for tick in range(9)]
    paired = [gap(regular_graph(150, degree, 1, tick, directed=False)) for tick in range(9)]
    assert np.median(lifted) > 0.85 * np.median(paired)


def test_they_are_connected() -> None:
    assert all(is_connected(drawn(1003, 4, 2, tick, directed=False)) for tick in range(10))
    assert all(is_connected(drawn(1003, 3, 2, tick, directed=True)) for tick in range(10))


def test_few_peers_and_high_degrees_are_drawn_as_ever() -> None:
    assert not is_lifted(FEW, 1) and is_lifted(FEW + 1, 1)
    assert not is_lifted(1000, 32) and is_lifted(1000, 31)
    assert KRegular(num_peers=1000, degree=32, seed=2)(5) == regular_graph(
        1000, 32, 2, 5, directed=False
    )
    assert KRegular(num_peers=FEW, degree=4, seed=2)(5) == regular_graph(
        FEW, 4, 2, 5, directed=False
    )


def test_the_kinds_of_many_peers_are_lifts() -> None:
    assert RandomMatching(num_peers=301, seed=4)(2) == lift(301, 1, 4, 2, directed=False)
    assert KRegular(num_peers=301, degree=4, seed=4)(2) == lift(301, 4, 4, 2, directed=False)
    assert Epidemic(num_peers=301, fanout=5, seed=4)(2) == lift(301, 5, 4, 2, directed=True)
