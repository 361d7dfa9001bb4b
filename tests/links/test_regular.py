"""Random regular graphs are simple, regular, and spread over all such graphs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_dml.links._regular import regular_graph


@given(st.data(), st.integers(1, 40), st.integers(0, 2**64 - 1), st.booleans())
@settings(deadline=None)
def test_every_peer_has_the_degree(
    data: st.DataObject, num_peers: int, seed: int, directed: bool
) -> None:
    degree = data.draw(st.integers(0, num_peers - 1))
    if not directed and num_peers * degree % 2:
        degree -= 1
    graph = regular_graph(num_peers, degree, seed, 3, directed=directed)
    assert {len(heard) for heard in graph.senders + graph.receivers} == {degree}
    assert directed or graph.is_symmetric
    assert all(me not in heard for me, heard in enumerate(graph.senders))


@pytest.mark.parametrize(("num_peers", "degree"), [(6, 1), (5, 2), (6, 2), (6, 3)])
def test_all_links_are_equally_likely(num_peers: int, degree: int) -> None:
    draws = 2000
    seen: Counter[tuple[int, int]] = Counter()
    for tick in range(draws):
        senders = regular_graph(num_peers, degree, 11, tick, directed=False).senders
        seen.update((i, j) for i, heard in enumerate(senders) for j in heard)
    share = degree / (num_peers - 1)
    assert len(seen) == num_peers * (num_peers - 1)
    # Five standard deviations of a binomial count.
    bound = 5 * (draws * share * (1 - share)) ** 0.5
    assert all(abs(count - draws * share) < bound for count in seen.values())


def test_all_perfect_matchings_of_four_peers_appear() -> None:
    graphs = {regular_graph(4, 1, 0, tick, directed=False) for tick in range(60)}
    assert len(graphs) == 3


def test_all_directed_derangements_of_three_peers_appear() -> None:
    graphs = {regular_graph(3, 1, 0, tick, directed=True) for tick in range(60)}
    assert {graph.senders for graph in graphs} == {((1,), (2,), (0,)), ((2,), (0,), (1,))}
