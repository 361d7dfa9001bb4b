"""Portable random draws against what is known of their distributions."""

from __future__ import annotations

import numpy as np
import pytest

from p2p_dml.data._draws import Draws, largest_remainder


def test_order_is_a_permutation() -> None:
    assert sorted(Draws(3).order(100)) == list(range(100))


def test_streams_continue_and_differ() -> None:
    draws = Draws(3)
    first, second = draws.order(50), draws.order(50)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, Draws(3).order(50))
    assert not np.array_equal(first, Draws(3, attempt=1).order(50))


def test_uniform_is_inside_the_unit_interval() -> None:
    u = Draws(1).uniform(2, 5000)
    assert u.shape == (2, 5000)
    assert u.min() > 0 and u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.02)
    assert u.var() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_moments(alpha: float) -> None:
    """E p_i = 1/n and E sum p_i^2 = (alpha + 1) / (n alpha + 1)."""
    draws, n = Draws(5), 5
    p = np.array([draws.dirichlet(alpha, n) for _ in range(4000)])
    assert p.sum(axis=1) == pytest.approx(np.ones(4000))
    assert p.mean(axis=0) == pytest.approx(np.full(n, 1 / n), abs=0.03)
    expected = (alpha + 1) / (n * alpha + 1)
    assert (p**2).sum(axis=1).mean() == pytest.approx(expected, rel=0.03)


def test_dirichlet_of_tiny_and_huge_alpha() -> None:
    assert Draws(0).dirichlet(1e-6, 6).max() == pytest.approx(1.0)
    assert Draws(0).dirichlet(1e12, 6) == pytest.approx(np.full(6, 1 / 6), abs=1e-5)


@pytest.mark.parametrize(
    ("proportions", "total", "expected"),
    [
        ([0.5, 0.3, 0.2], 10, [5, 3, 2]),
        ([0.5, 0.3, 0.2], 11, [6, 3, 2]),
        ([0.25, 0.25, 0.25, 0.25], 2, [1, 1, 0, 0]),
        ([1.0, 0.0], 7, [7, 0]),
        ([0.4, 0.6], 0, [0, 0]),
    ],
)
def test_largest_remainder(proportions: list[float], total: int, expected: list[int]) -> None:
    assert largest_remainder(np.array(proportions), total).tolist() == expected
