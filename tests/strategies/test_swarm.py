"""SwarmSGD: pairs by hand, the coded form against the dense one, and recovery of the cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.links.random import RandomMatching
from p2p_dml.links.static import Ring
from p2p_dml.strategies import DPSGD, Swarm

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench

PAIR = Ring(num_peers=2)
PAIRS = RandomMatching(num_peers=8, seed=5)


def test_a_blocking_pair_takes_the_mean_of_its_trained_models(bench: Bench) -> None:
    run = bench.gossip(Swarm(blocking=True), bench.learners(2, steps=3), PAIR)
    trained = bench.learners(2, steps=3)
    for each in trained:
        each.train()
    mean = torch.stack([each.x for each in trained]).mean(0)
    torch.testing.assert_close(run.advance().models, mean.expand(2, -1), rtol=1e-14, atol=1e-15)


def test_a_non_blocking_pair_averages_published_models_and_keeps_its_own_training(
    bench: Bench,
) -> None:
    """S <- (S^0 + Y_j) / 2 + u: partners differ by their own training only."""
    run = bench.gossip(Swarm(), bench.learners(2, steps=3), PAIR)
    start = run.models.clone()
    trained = bench.learners(2, steps=3)
    for each in trained:
        each.train()
    u = torch.stack([each.x for each in trained]) - start
    torch.testing.assert_close(run.advance().models, start.mean(0) + u, rtol=1e-13, atol=1e-14)


def test_blocking_is_dpsgd_on_pairs(bench: Bench) -> None:
    one, two = (
        bench.gossip(strategy, bench.learners(8), PAIRS).advance(6).models
        for strategy in (Swarm(blocking=True), DPSGD())
    )
    torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("blocking", [True, False])
def test_many_bits_equal_the_dense_form(bench: Bench, blocking: bool) -> None:
    """Each of 10 mixings adds at most a cell, here 1e-3 with 16 bits that reach 32."""
    dense, coded = (
        bench.gossip(strategy, bench.learners(8), PAIRS).advance(10).models
        for strategy in (
            Swarm(blocking=blocking),
            Swarm(blocking=blocking, bits=16, cell=1e-3),
        )
    )
    assert not torch.equal(dense, coded)
    torch.testing.assert_close(dense, coded, rtol=0, atol=1e-2)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
def test_rounding_does_not_move_the_mean(bench: Bench, blocking: bool, bits: int) -> None:
    strategy = Swarm(blocking=blocking, bits=8 if bits == 8 else 16, cell=0.1)
    run = bench.gossip(strategy, bench.learners(8, lr=0.0), PAIRS)
    mean = run.models.mean(0)
    for _ in range(10):
        torch.testing.assert_close(run.advance().models.mean(0), mean, rtol=0, atol=1e-13)
    assert (run.models.std(0) < 0.2).all()


def test_a_cell_that_is_too_small_grows_until_the_models_meet(bench: Bench) -> None:
    """Starts differ by about 1, 8 bits of 1e-4 reach 0.013; meanwhile models stay as they are."""
    run = bench.gossip(Swarm(bits=8, cell=1e-4), bench.learners(2, lr=0.0), PAIR)
    start = run.models.clone()
    assert torch.equal(run.advance().models, start)
    assert [state.cell for state in run.states] == [2e-4, 2e-4]
    run.advance(15)
    assert max(state.cell for state in run.states) > 2e-3
    assert (run.models[0] - run.models[1]).abs().max() < 0.02
    run.advance(100)
    assert [state.cell for state in run.states] == [1e-4, 1e-4]
    assert (run.models[0] - run.models[1]).abs().max() < 2e-4
    torch.testing.assert_close(run.models.mean(0), start.mean(0), rtol=0, atol=1e-13)


def test_neighbours_adopt_the_largest_cell_they_hear(bench: Bench) -> None:
    run = bench.gossip(Swarm(bits=8, cell=0.1), bench.learners(4, lr=0.0), Ring(num_peers=4))
    run.states[0] = type(run.states[0])(cell=1.0)
    run.advance()
    assert [state.cell for state in run.states] == pytest.approx([0.9, 0.9, 0.1, 0.9])


@pytest.mark.parametrize("cell", [0.0, -1.0, float("inf")])
def test_bad_fields_are_refused(cell: float) -> None:
    with pytest.raises(ValueError, match=r"cell = .*expected"):
        Swarm(cell=cell)
