"""D-PSGD: its two forms, and how near the optimum it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from p2p_dml.links.static import Ring
from p2p_dml.strategies import DPSGD, Swarm

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench


def test_before_takes_gradients_at_the_unmixed_model(bench: Bench) -> None:
    """x_i <- sum_j w_ij x_j - lr g_i(x_i), as in the paper; on a ring all weights are 1/3."""
    ring = Ring(num_peers=5)
    run = bench.gossip(DPSGD(combine="before"), bench.learners(5, lr=0.1), ring)
    x = run.models.clone()
    for _ in range(3):
        g = torch.stack([each.grad({"x": x[i]})["x"] for i, each in enumerate(run.learners)])
        x = (x + x.roll(1, 0) + x.roll(-1, 0)) / 3 - 0.1 * g
    torch.testing.assert_close(run.advance(3).models, x, rtol=1e-13, atol=1e-14)


def test_both_forms_end_near_the_optimum_only_and_nearer_for_a_smaller_step(bench: Bench) -> None:
    """The bias on heterogeneous data is linear in the step size."""
    for strategy in (DPSGD(), DPSGD(combine="before")):
        far, near = (
            bench.distance(
                bench.gossip(strategy, bench.learners(10, lr=lr), Ring(num_peers=10)).advance(500)
            )
            for lr in (0.04, 0.02)
        )
        assert near > 0.01
        assert 1.5 < far / near < 2.5


def test_before_is_non_blocking_swarm_bit_for_bit(bench: Bench) -> None:
    ring = Ring(num_peers=6)
    one, two = (
        bench.gossip(strategy, bench.learners(6, steps=3), ring).advance(5).models
        for strategy in (DPSGD(combine="before"), Swarm())
    )
    assert torch.equal(one, two)
