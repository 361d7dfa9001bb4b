"""Schedules in closed form: shapes by hand, exponential graphs against their theory."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from p2p_dml.kernels.mixing import metropolis, mixing_matrix, neighbour_mean, spectral_gap
from p2p_dml.links.static import (
    Complete,
    Exponential,
    Grid,
    OnePeerExponential,
    Ring,
    Star,
    Torus,
)
from p2p_dml.types import LinkSchedule

BY_HAND: list[tuple[LinkSchedule, tuple[tuple[int, ...], ...]]] = [
    (Complete(num_peers=3), ((1, 2), (0, 2), (0, 1))),
    (Ring(num_peers=1), ((),)),
    (Ring(num_peers=2), ((1,), (0,))),
    (Ring(num_peers=4), ((1, 3), (0, 2), (1, 3), (0, 2))),
    (Star(num_peers=4, hub=2), ((2,), (2,), (0, 1, 3), (2,))),
    (Grid(num_peers=6), ((1, 3), (0, 2, 4), (1, 5), (0, 4), (1, 3, 5), (2, 4))),
    (Grid(num_peers=6, rows=3), ((1, 2), (0, 3), (0, 3, 4), (1, 2, 5), (2, 5), (3, 4))),
    (Grid(num_peers=3), ((1,), (0, 2), (1,))),
    (Torus(num_peers=4), ((1, 2), (0, 3), (0, 3), (1, 2))),
    (Torus(num_peers=3), ((1, 2), (0, 2), (0, 1))),
    (Exponential(num_peers=5), ((1, 3, 4), (0, 2, 4), (0, 1, 3), (1, 2, 4), (0, 2, 3))),
    (OnePeerExponential(num_peers=3), ((2,), (0,), (1,))),
]


@pytest.mark.parametrize(("schedule", "senders"), BY_HAND)
def test_shapes_by_hand(schedule: LinkSchedule, senders: tuple[tuple[int, ...], ...]) -> None:
    assert schedule(0).senders == senders


def test_a_torus_has_four_neighbours_each() -> None:
    graph = Torus(num_peers=20)(0)
    assert {len(heard) for heard in graph.senders} == {4}
    assert graph.senders[0] == (1, 4, 5, 15)


def test_a_torus_of_one_row_is_a_ring() -> None:
    assert Torus(num_peers=9, rows=1)(0) == Ring(num_peers=9)(0)


@pytest.mark.parametrize("num_peers", [2, 3, 4, 6, 7, 8, 12, 15, 16, 31, 32, 48, 64])
def test_gap_of_the_exponential_graph(num_peers: int) -> None:
    graph = Exponential(num_peers=num_peers)(0)
    log = (num_peers - 1).bit_length()
    assert {len(heard) for heard in graph.senders + graph.receivers} == {log}
    gap = spectral_gap(mixing_matrix(graph, neighbour_mean))
    if num_peers % 2 == 0:
        assert gap == pytest.approx(2 / (1 + log), abs=1e-12)
    else:
        assert gap > 2 / (1 + log) + 1e-6


@pytest.mark.parametrize("log", [1, 2, 3, 5])
@pytest.mark.parametrize("start", [0, 1, 7])
def test_one_peer_exponential_averages_exactly(log: int, start: int) -> None:
    schedule = OnePeerExponential(num_peers=2**log)
    ticks = range(start, start + log)
    matrices = [mixing_matrix(schedule(tick), neighbour_mean) for tick in ticks]
    product = reduce(np.matmul, matrices)
    np.testing.assert_allclose(product, np.full_like(product, 2.0**-log), atol=1e-15)
    assert spectral_gap(matrices) == 1.0


def test_one_peer_exponential_hears_one_and_is_heard_by_one() -> None:
    schedule = OnePeerExponential(num_peers=11)
    for tick, hop in enumerate([1, 2, 4, 8, 1, 2]):
        assert schedule(tick).senders == tuple(((i - hop) % 11,) for i in range(11))


def test_gaps_of_star_and_complete_graph() -> None:
    star, whole = Star(num_peers=8)(0), Complete(num_peers=8)(0)
    assert spectral_gap(mixing_matrix(star, metropolis)) == pytest.approx(1 / 8, abs=1e-12)
    assert spectral_gap(mixing_matrix(whole, metropolis)) == 1.0
