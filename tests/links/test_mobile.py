"""Moving peers: places stay in the square, speeds are bounded, links follow distance."""

from __future__ import annotations

from math import pi

import numpy as np
import pytest

from p2p_dml.links.mobile import Geometric
from p2p_dml.links.static import Complete

ROAM = Geometric(num_peers=30, radius=0.3, speed=0.05, seed=4)


@pytest.mark.parametrize("tick", [0, 1, 99, 10**6, 2**40])
def test_links_are_the_pairs_within_the_radius(tick: int) -> None:
    places = ROAM.positions(tick)
    assert places.min() >= 0 and places.max() < 1
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    near = (distance <= 0.3) & ~np.eye(30, dtype=bool)
    assert ROAM(tick).senders == tuple(tuple(np.flatnonzero(row).tolist()) for row in near)


def test_peers_move_at_a_bounded_constant_speed_and_bounce() -> None:
    places = np.array([ROAM.positions(tick) for tick in range(400)])
    moves = np.abs(np.diff(places, axis=0))
    assert moves.max() <= 0.05
    # Only the ticks at which a peer meets a wall differ from its own constant speed.
    speeds = np.median(moves, axis=0)
    assert np.isclose(moves, speeds, atol=1e-8).mean() > 0.9
    assert speeds.min() < 0.01 < 0.04 < speeds.max()


def test_links_are_correlated_in_time() -> None:
    def agreement(ticks_apart: int) -> float:
        pairs = [
            (set(ROAM(tick).senders[i]), set(ROAM(tick + ticks_apart).senders[i]))
            for tick in range(0, 100, 10)
            for i in range(30)
        ]
        return sum(len(a & b) for a, b in pairs) / sum(len(a | b) for a, b in pairs)

    assert agreement(1) > 0.7 > 0.4 > agreement(50)


def test_density_is_that_of_a_disc_less_the_walls() -> None:
    many = Geometric(num_peers=150, radius=0.1, speed=0.05, seed=4)
    density = sum(many(tick).num_links for tick in range(0, 2000, 40)) / (50 * 150 * 149)
    # Mean share of a small disc inside the square: 1 - 8 r / (3 pi) + r^2 / (2 pi).
    expected = pi * 0.01 * (1 - 0.8 / (3 * pi) + 0.01 / (2 * pi))
    assert density == pytest.approx(expected, rel=0.05)


def test_no_speed_is_static_and_a_wide_radius_complete() -> None:
    still = Geometric(num_peers=10, radius=0.3, speed=0.0, seed=4)
    assert still(0) == still(77)
    assert Geometric(num_peers=10, radius=1.5, seed=4)(5) == Complete(num_peers=10)(0)
