"""Combinators against what their parts give at the ticks they stand for."""

from __future__ import annotations

from math import sqrt

import pytest

from p2p_dml.links.combinators import Alternating, Every, Failing, FinallyComplete, Static, Until
from p2p_dml.links.random import ErdosRenyi, RandomMatching
from p2p_dml.links.static import Complete, Exponential, OnePeerExponential, Ring, Torus
from p2p_dml.types import Graph, LinkSchedule

PAIRS = RandomMatching(num_peers=16, seed=1)
TORUS = Torus(num_peers=16)
NONE = Graph(((),) * 16)


def pairs_of(graph: Graph) -> set[frozenset[int]]:
    return {frozenset((i, j)) for i, heard in enumerate(graph.senders) for j in heard}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("of", [TORUS, Exponential(num_peers=16)])
def test_failing_takes_each_pair_down_with_probability_p(of: LinkSchedule, p: float) -> None:
    schedule = Failing(of=of, p=p, seed=2)
    before = pairs_of(of(0))
    lost = 0
    for tick in range(200):
        graph = schedule(tick)
        kept = pairs_of(graph)
        lost += len(before - kept)
        assert kept <= before
        # A pair is up in all of its directions or in none.
        alive = [[j for j in heard if frozenset((i, j)) in kept] for i, heard in _rows(of)]
        assert [list(heard) for heard in graph.senders] == alive
    trials = 200 * len(before)
    assert abs(lost - trials * p) <= 5 * sqrt(trials * p * (1 - p))


def _rows(schedule: LinkSchedule) -> list[tuple[int, tuple[int, ...]]]:
    return list(enumerate(schedule(0).senders))


def test_failing_at_its_ends() -> None:
    assert Failing(of=TORUS, p=0.0, seed=2)(3) == TORUS(3)
    assert Failing(of=TORUS, p=1.0, seed=2)(3) == NONE


def test_failing_is_independent_of_the_graph_it_thins() -> None:
    half = ErdosRenyi(num_peers=40, density=0.5, seed=2)
    links = sum(Failing(of=half, p=0.5, seed=3)(tick).num_links for tick in range(30)) // 2
    trials = 30 * 40 * 39 // 2
    assert abs(links - trials / 4) <= 5 * sqrt(trials * 3 / 16)


def test_alternating_holds_each_phase_and_skips_none_of_its_ticks() -> None:
    hops = OnePeerExponential(num_peers=16)
    schedule = Alternating(phases=(hops, PAIRS), hold=3)
    expected = [hops(0), hops(1), hops(2), PAIRS(0), PAIRS(1), PAIRS(2), hops(3), hops(4), hops(5)]
    assert [schedule(tick) for tick in range(9)] == expected


def test_alternating_refuses_phases_of_different_sizes() -> None:
    with pytest.raises(ValueError, match=r"same peers, got \[8, 16\]"):
        Alternating(phases=(TORUS, Ring(num_peers=8)))


def test_every_gives_the_next_graph_at_each_third_tick() -> None:
    schedule = Every(of=PAIRS, interval=3)
    expected = [NONE, NONE, PAIRS(0), NONE, NONE, PAIRS(1), NONE, NONE, PAIRS(2)]
    assert [schedule(tick) for tick in range(9)] == expected


def test_every_tick_is_the_schedule_itself() -> None:
    schedule = Every(of=PAIRS, interval=1)
    assert [schedule(tick) for tick in range(5)] == [PAIRS(tick) for tick in range(5)]


@pytest.mark.parametrize("at_tick", [0, 2, 5])
def test_until_leaves_nobody_linked_from_its_tick_on(at_tick: int) -> None:
    schedule = Until(of=PAIRS, at_tick=at_tick)
    expected = [PAIRS(tick) if tick < at_tick else NONE for tick in range(9)]
    assert [schedule(tick) for tick in range(9)] == expected


def test_finally_complete_from_its_tick_on() -> None:
    schedule = FinallyComplete(of=PAIRS, at_tick=2)
    whole = Complete(num_peers=16)(0)
    assert [schedule(tick) for tick in (0, 1, 2, 3, 99)] == [PAIRS(0), PAIRS(1)] + [whole] * 3


def test_static_keeps_the_graph_of_its_tick() -> None:
    schedule = Static(of=PAIRS, at_tick=5)
    assert {schedule(tick) for tick in (0, 5, 77)} == {PAIRS(5)}


def test_any_function_can_be_a_part() -> None:
    def empty_then_torus(tick: int) -> Graph:
        return TORUS(0) if tick else NONE

    assert Failing(of=empty_then_torus, p=0.0, seed=0)(0) == NONE
    assert Failing(of=empty_then_torus, p=0.0, seed=0)(1) == TORUS(0)
