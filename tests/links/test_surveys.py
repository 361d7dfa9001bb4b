"""Surveys of schedules whose figures are known by hand."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from p2p_dml.kernels.mixing import metropolis, neighbour_mean
from p2p_dml.links.combinators import Every, FinallyComplete
from p2p_dml.links.random import RandomMatching
from p2p_dml.links.recorded import Edges, Trace
from p2p_dml.links.static import Complete, OnePeerExponential, Star
from p2p_dml.links.surveys import is_connected, survey
from p2p_dml.types import Graph


def test_the_complete_graph() -> None:
    found = survey(Complete(num_peers=5), metropolis, 3)
    assert asdict(found) == {
        "num_peers": 5,
        "ticks": 3,
        "degree_mean": 4.0,
        "degree_min": 4,
        "degree_max": 4,
        "density": 1.0,
        "isolated_share": 0.0,
        "is_static": True,
        "is_symmetric": True,
        "is_doubly_stochastic": True,
        "connected_share": 1.0,
        "union_connected_after": 1,
        "gap_mean": 1.0,
        "gap_min": 1.0,
        "gap_product": 1.0,
    }


def test_one_peer_exponential_agrees_exactly_though_no_tick_does() -> None:
    found = survey(OnePeerExponential(num_peers=4), neighbour_mean, 4)
    assert not found.is_symmetric and not found.is_static and found.is_doubly_stochastic
    # Shift by one: |1 + i| / 2; shift by two: disconnected.
    assert found.gap_mean == pytest.approx((1 - 2**-0.5) / 2)
    assert (found.gap_min, found.gap_product) == (0.0, 1.0)
    assert (found.connected_share, found.union_connected_after) == (0.5, 1)


def test_a_trace_that_connects_only_over_time() -> None:
    path = Trace(num_peers=4, rows=((0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)))
    found = survey(path, metropolis, 6)
    assert (found.connected_share, found.union_connected_after) == (0.0, 3)
    assert found.degree_mean == 0.5
    assert found.density == pytest.approx(1 / 6)
    assert found.isolated_share == 0.5
    assert (found.gap_mean, found.gap_min) == (0.0, 0.0)
    assert 0 < found.gap_product < 1


def test_a_graph_that_never_connects() -> None:
    found = survey(Edges(num_peers=4, edges=((0, 1), (2, 3))), metropolis, 5)
    assert found.union_connected_after is None
    assert found.gap_product == 0.0


def test_empty_ticks_count_as_isolated() -> None:
    found = survey(Every(of=RandomMatching(num_peers=6, seed=0), interval=4), metropolis, 8)
    assert found.isolated_share == 0.75
    assert (found.degree_min, found.degree_max) == (0, 1)


def test_means_are_over_ticks() -> None:
    found = survey(FinallyComplete(of=Star(num_peers=4), at_tick=1), metropolis, 4)
    assert found.degree_mean == (1.5 + 3 * 3) / 4
    assert found.gap_mean == pytest.approx((0.25 + 3) / 4)


def test_a_star_with_unequal_weights_does_not_keep_the_mean() -> None:
    assert not survey(Star(num_peers=4), neighbour_mean, 1).is_doubly_stochastic


def test_one_peer_alone() -> None:
    found = survey(Complete(num_peers=1), metropolis, 2)
    assert (found.density, found.isolated_share, found.connected_share) == (0.0, 1.0, 1.0)
    assert (found.gap_min, found.gap_product) == (1.0, 1.0)


def test_no_ticks_are_refused() -> None:
    with pytest.raises(ValueError, match="ticks must be at least 1, got 0"):
        survey(Complete(num_peers=3), metropolis, 0)


@pytest.mark.parametrize(
    ("senders", "connected"),
    [
        (((1,), (0,)), True),
        (((), (0,)), False),
        (((1,), ()), False),
        (((2,), (0,), (1,)), True),
        (((1,), (0,), (0, 1)), False),
        (((),), True),
    ],
)
def test_connected_means_in_both_directions(
    senders: tuple[tuple[int, ...], ...], connected: bool
) -> None:
    assert is_connected(Graph(senders)) is connected
