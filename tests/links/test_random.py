"""Random kinds against their laws: densities, degrees, who can be linked with whom."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import pytest

from p2p_dml.links.random import (
    BarabasiAlbert,
    Epidemic,
    ErdosRenyi,
    KRegular,
    RandomMatching,
    SmallWorld,
)
from p2p_dml.links.static import Complete, Ring
from p2p_dml.links.surveys import is_connected


def is_likely(count: int, trials: int, probability: float) -> bool:
    """Whether a binomial count is within five standard deviations."""
    spread = sqrt(trials * probability * (1 - probability))
    return abs(count - trials * probability) <= 5 * spread


@pytest.mark.parametrize("num_peers", [1, 2, 9, 10])
def test_a_matching_pairs_everybody_but_one(num_peers: int) -> None:
    schedule = RandomMatching(num_peers=num_peers, seed=3)
    for tick in range(20):
        senders = schedule(tick).senders
        paired = [(me, heard[0]) for me, heard in enumerate(senders) if heard]
        assert all(len(heard) <= 1 for heard in senders)
        assert all(senders[partner] == (me,) for me, partner in paired)
        assert len(paired) == num_peers - num_peers % 2


def test_every_pair_is_matched_equally_often() -> None:
    schedule = RandomMatching(num_peers=6, seed=3)
    partners = Counter(schedule(tick).senders[0][0] for tick in range(1000))
    assert all(is_likely(partners[j], 1000, 1 / 5) for j in range(1, 6))


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_density_of_erdos_renyi(density: float) -> None:
    schedule = ErdosRenyi(num_peers=50, density=density, seed=5)
    links = sum(schedule(tick).num_links for tick in range(40)) // 2
    assert is_likely(links, 40 * 50 * 49 // 2, density)


def test_erdos_renyi_links_every_pair_equally_often_and_independently() -> None:
    schedule = ErdosRenyi(num_peers=5, density=0.3, seed=5)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    graphs = [schedule(tick).senders for tick in range(800)]
    up = {(i, j): [j in senders[i] for senders in graphs] for i, j in pairs}
    assert all(is_likely(sum(row), 800, 0.3) for row in up.values())
    together = sum(a and b for a, b in zip(up[1, 0], up[4, 3], strict=True))
    assert is_likely(together, 800, 0.09)


def test_erdos_renyi_at_its_ends() -> None:
    assert ErdosRenyi(num_peers=9, density=0.0, seed=0)(4).num_links == 0
    assert ErdosRenyi(num_peers=9, density=1.0, seed=0)(4) == Complete(num_peers=9)(0)


def test_k_regular_of_full_degree_is_complete() -> None:
    assert KRegular(num_peers=9, degree=8, seed=0)(4) == Complete(num_peers=9)(0)


def test_k_regular_of_a_thousand_peers() -> None:
    graph = KRegular(num_peers=1000, degree=4, seed=0)(0)
    assert {len(heard) for heard in graph.senders} == {4}
    assert is_connected(graph)


@pytest.mark.parametrize("fanout", [0, 1, 4, 9])
def test_regular_epidemic_sends_and_hears_the_same(fanout: int) -> None:
    graph = Epidemic(num_peers=10, fanout=fanout, seed=1)(6)
    assert {len(peers) for peers in graph.senders + graph.receivers} == {fanout}


@pytest.mark.parametrize("fanout", [0, 1, 4, 9])
def test_local_epidemic_sends_to_exactly_fanout(fanout: int) -> None:
    schedule = Epidemic(num_peers=10, fanout=fanout, seed=1, regular=False)
    assert all({len(r) for r in schedule(tick).receivers} == {fanout} for tick in range(20))


def test_local_epidemic_chooses_everybody_equally_often() -> None:
    schedule = Epidemic(num_peers=8, fanout=3, seed=1, regular=False)
    graphs = [schedule(tick) for tick in range(600)]
    chosen = Counter((i, j) for graph in graphs for i, r in enumerate(graph.receivers) for j in r)
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    assert all(is_likely(chosen[pair], 600, 3 / 7) for pair in pairs)
    assert len({len(heard) for graph in graphs for heard in graph.senders}) > 3


def test_small_world_without_rewiring_is_a_lattice() -> None:
    lattice = SmallWorld(num_peers=9, degree=4, rewire=0.0, seed=1)(0)
    assert lattice.senders[0] == (1, 2, 7, 8)
    assert SmallWorld(num_peers=9, degree=2, rewire=0.0, seed=1)(0) == Ring(num_peers=9)(0)


@pytest.mark.parametrize("rewire", [0.1, 0.5, 1.0])
def test_small_world_moves_links_and_keeps_their_number(rewire: float) -> None:
    graph = SmallWorld(num_peers=100, degree=6, rewire=rewire, seed=1)(0)
    assert graph.num_links == 600 and graph.is_symmetric
    # Every peer keeps the three links of which it is the first end.
    assert min(map(len, graph.senders)) >= 3
    near = {(i, (i + hop) % 100) for i in range(100) for hop in (-3, -2, -1, 1, 2, 3)}
    kept = sum((i, j) in near for i, heard in enumerate(graph.senders) for j in heard) // 2
    # A moved link may land on another near pair: about rewire * 6 in 100 of them do.
    assert 300 * (1 - rewire) - 45 < kept < 300 * (1 - rewire) + 45


def test_small_world_of_full_degree_has_nowhere_to_move() -> None:
    assert SmallWorld(num_peers=5, degree=4, rewire=1.0, seed=1)(0) == Complete(num_peers=5)(0)


@pytest.mark.parametrize("attach", [1, 2, 5])
def test_barabasi_albert_has_hubs_and_is_connected(attach: int) -> None:
    graph = BarabasiAlbert(num_peers=200, attach=attach, seed=1)(0)
    degrees = sorted(map(len, graph.senders))
    assert graph.num_links == 2 * (attach + (199 - attach) * attach)
    assert is_connected(graph)
    # The largest degree grows with the root of the number of peers, about attach * sqrt(200).
    assert degrees[-1] > 5 * attach
    assert degrees[100] <= 2 * attach


def test_barabasi_albert_starts_from_a_star() -> None:
    assert BarabasiAlbert(num_peers=4, attach=3, seed=1)(0).senders == ((1, 2, 3), (0,), (0,), (0,))


@pytest.mark.parametrize(
    "schedule",
    [
        SmallWorld(num_peers=20, degree=4, rewire=0.5, seed=1),
        BarabasiAlbert(num_peers=20, attach=2, seed=1),
    ],
)
def test_grown_graphs_stay(schedule: SmallWorld | BarabasiAlbert) -> None:
    assert schedule(0) == schedule(1000)
