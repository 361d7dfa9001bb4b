"""Mixing rules and spectral gaps against hand numbers, closed forms and invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_dml.kernels.mixing import (
    RULES,
    fast_mix_momentum,
    is_doubly_stochastic,
    metropolis,
    mixing_matrix,
    neighbour_mean,
    push_uniform,
    spectral_gap,
)
from p2p_dml.types import Graph

PATH_4 = Graph(((1,), (0, 2), (1, 3), (2,)))
ONE_WAY = Graph(((), (0,), (0, 1)))
SHIFT_3 = Graph(((2,), (0,), (1,)))


def ring(num_peers: int) -> Graph:
    return Graph(
        tuple(tuple(sorted({(i - 1) % num_peers, (i + 1) % num_peers})) for i in range(num_peers))
    )


def graph_of(links: set[tuple[int, int]], num_peers: int, symmetric: bool) -> Graph:
    pairs = {(i, j) for i, j in links if i != j and max(i, j) < num_peers}
    pairs |= {(j, i) for i, j in pairs} if symmetric else set()
    return Graph(tuple(tuple(sorted(j for i, j in pairs if i == me)) for me in range(num_peers)))


LINKS = st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)))


def test_metropolis_on_a_path_of_four_by_hand() -> None:
    third = 1 / 3
    expected: list[list[float]] = [
        [2 * third, third, 0, 0],
        [third, third, third, 0],
        [0, third, third, third],
        [0, 0, third, 2 * third],
    ]
    np.testing.assert_allclose(mixing_matrix(PATH_4, metropolis), expected, atol=1e-15)


def test_push_uniform_by_hand() -> None:
    expected: list[list[float]] = [[1 / 3, 0, 0], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1]]
    np.testing.assert_allclose(mixing_matrix(ONE_WAY, push_uniform), expected, atol=1e-15)


def test_neighbour_mean_by_hand() -> None:
    expected: list[list[float]] = [[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(mixing_matrix(ONE_WAY, neighbour_mean), expected, atol=1e-15)


@given(LINKS, st.integers(1, 9))
@settings(deadline=None)
def test_metropolis_is_doubly_stochastic_and_symmetric(
    links: set[tuple[int, int]], num_peers: int
) -> None:
    matrix = mixing_matrix(graph_of(links, num_peers, symmetric=True), metropolis)
    assert is_doubly_stochastic(matrix)
    assert np.array_equal(matrix, matrix.T)
    assert matrix.min() >= 0 and matrix.diagonal().min() > 0


@given(LINKS, st.integers(1, 9))
@settings(deadline=None)
def test_the_directed_rules_are_stochastic_in_their_own_direction(
    links: set[tuple[int, int]], num_peers: int
) -> None:
    graph = graph_of(links, num_peers, symmetric=False)
    np.testing.assert_allclose(mixing_matrix(graph, push_uniform).sum(0), 1.0)
    np.testing.assert_allclose(mixing_matrix(graph, neighbour_mean).sum(1), 1.0)


@pytest.mark.parametrize("name", sorted(RULES))
@given(links=LINKS)
@settings(deadline=None, max_examples=30)
def test_a_neighbourhood_is_one_row_and_one_column(name: str, links: set[tuple[int, int]]) -> None:
    graph = graph_of(links, 9, symmetric=name == "metropolis")
    matrix = mixing_matrix(graph, RULES[name])
    for me in range(9):
        hood = RULES[name](graph, me)
        assert hood.me == me
        assert tuple(hood.in_weights) == graph.senders[me]
        assert tuple(hood.out_weights) == graph.receivers[me]
        assert all(matrix[k, me] == weight for k, weight in hood.out_weights.items())


def test_rules_agree_on_a_regular_graph() -> None:
    matrices = [mixing_matrix(ring(7), rule) for rule in RULES.values()]
    for matrix in matrices:
        np.testing.assert_allclose(matrix, matrices[0], atol=1e-15)


@pytest.mark.parametrize(("me", "link"), [(0, "peer 1 hears peer 0"), (1, "peer 1 hears peer 0")])
def test_metropolis_names_a_one_way_link(me: int, link: str) -> None:
    with pytest.raises(ValueError, match=f"{link} and not the other way round; choose push_un"):
        metropolis(Graph(((), (0,))), me)


@pytest.mark.parametrize("num_peers", [3, 4, 9, 16])
def test_gap_of_a_ring_has_a_closed_form(num_peers: int) -> None:
    matrix = mixing_matrix(ring(num_peers), metropolis)
    others = [(1 + 2 * math.cos(2 * math.pi * k / num_peers)) / 3 for k in range(1, num_peers)]
    assert spectral_gap(matrix) == pytest.approx(1 - max(map(abs, others)), abs=1e-12)


@pytest.mark.parametrize("rounds", [1, 3, 200])
def test_gap_of_equal_symmetric_matrices_is_that_of_one(rounds: int) -> None:
    matrix = mixing_matrix(PATH_4, metropolis)
    assert spectral_gap([matrix] * rounds) == pytest.approx(spectral_gap(matrix), abs=1e-12)


def test_gap_of_a_product_is_its_second_singular_value() -> None:
    first = mixing_matrix(graph_of({(0, 1), (2, 3)}, 5, symmetric=True), metropolis)
    second = mixing_matrix(graph_of({(1, 2), (3, 4), (0, 4)}, 5, symmetric=True), metropolis)
    sigma = np.linalg.svd(second @ first, compute_uv=False)[1]
    assert spectral_gap(iter([first, second])) == pytest.approx(1 - math.sqrt(sigma), abs=1e-12)
    assert spectral_gap(first) == 0 == spectral_gap(second)


@pytest.mark.parametrize("name", ["push_uniform", "neighbour_mean"])
def test_gap_of_a_product_of_one_sided_matrices(name: str) -> None:
    graphs = [ONE_WAY, SHIFT_3, Graph(((1, 2), (), (1,)))]
    matrices = [mixing_matrix(graph, RULES[name]) for graph in graphs]
    centre = np.eye(3) - 1 / 3
    product = matrices[2] @ matrices[1] @ matrices[0]
    shrink = np.linalg.norm(centre @ product @ centre, 2)
    assert spectral_gap(matrices) == pytest.approx(1 - shrink ** (1 / 3), abs=1e-12)


def test_gap_at_its_ends() -> None:
    average = np.full((5, 5), 0.2)
    assert spectral_gap(average) == 1 == spectral_gap([np.eye(5), average, np.eye(5)])
    assert spectral_gap(np.eye(5)) == 0 == spectral_gap([np.eye(5)] * 3)
    assert spectral_gap(np.eye(1)) == 1 == spectral_gap([np.eye(1)])


def test_gap_of_no_matrices_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one matrix"):
        spectral_gap([])


def test_doubly_stochastic_tells_one_sided_matrices_apart() -> None:
    assert is_doubly_stochastic(mixing_matrix(SHIFT_3, neighbour_mean))
    assert not is_doubly_stochastic(mixing_matrix(ONE_WAY, neighbour_mean))
    assert not is_doubly_stochastic(mixing_matrix(ONE_WAY, push_uniform))


@pytest.mark.parametrize(("lambda2", "b"), [(0.0, 0.0), (0.6, 1 / 9), (0.8, 0.25)])
def test_fast_mix_momentum_by_hand(lambda2: float, b: float) -> None:
    assert fast_mix_momentum(lambda2) == pytest.approx(b, abs=1e-15)
