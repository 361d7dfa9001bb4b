"""Mudag: exact on quadratics, Nesterov on a complete graph, its constants and invariant."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.kernels.mixing import metropolis, mixing_matrix, spectral_gap
from p2p_dml.links.random import ErdosRenyi
from p2p_dml.links.static import Complete, Ring
from p2p_dml.strategies import Mudag
from p2p_dml.types import Need

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench

RING = Ring(num_peers=10)
REDRAWN = ErdosRenyi(num_peers=10, density=0.5, seed=3)
LAMBDA2 = 1 - spectral_gap(mixing_matrix(RING(0), metropolis))


@pytest.mark.parametrize("exchanges", [3, 6])
def test_it_reaches_the_optimum_on_a_ring(bench: Bench, exchanges: int) -> None:
    strategy = Mudag(mu=1.0, smoothness=4.0, exchanges=exchanges, lambda2=LAMBDA2)
    run = bench.gossip(strategy, bench.learners(10), RING)
    assert bench.distance(run.advance(150)) < 1e-9


def test_it_reaches_the_optimum_on_changing_links_by_plain_mixing(bench: Bench) -> None:
    run = bench.gossip(Mudag(mu=1.0, smoothness=4.0), bench.learners(10), REDRAWN)
    assert bench.distance(run.advance(150)) < 1e-9


def test_one_exchange_on_a_sparse_graph_diverges(bench: Bench) -> None:
    strategy = Mudag(mu=1.0, smoothness=4.0, exchanges=1)
    run = bench.gossip(strategy, bench.learners(10), RING)
    assert bench.distance(run.advance(150)) > 1e3


def test_on_a_complete_graph_it_is_nesterovs_method_on_the_mean(bench: Bench) -> None:
    learners = bench.learners(5)
    for each in learners:
        each.params = learners[0].params
    run = bench.gossip(Mudag(lr=0.1, momentum=0.6), learners, Complete(num_peers=5))
    x = y = learners[0].x.clone()
    for _ in range(20):
        slope = torch.stack([each.grad({"x": y})["x"] for each in learners]).mean(0)
        x, before = y - 0.1 * slope, x
        y = x + 0.6 * (x - before)
        torch.testing.assert_close(run.advance().models, x.expand(5, -1), rtol=1e-11, atol=1e-12)


def test_the_mean_model_follows_the_mean_gradient(bench: Bench) -> None:
    """Mean x+ = mean (y - lr g(y)), also while both ends of links lose messages."""
    strategy = Mudag(lr=0.05, momentum=0.5)
    run = bench.gossip(
        strategy,
        bench.learners(10),
        REDRAWN,
        fate=lambda tag, a, b: None if tag.round > 2 and {a, b} & {1, 5} else 0,
    )
    for _ in range(8):
        run.advance()
        ahead = bench.total([state.last_y for state in run.states])
        slope = bench.total([state.last_gradient for state in run.states])
        torch.testing.assert_close(run.models.sum(0), ahead - 0.05 * slope, rtol=0, atol=1e-12)


def test_constants_follow_from_curvatures() -> None:
    """lr = 1/8, a = sqrt(1/2 1/8) = 1/4, momentum = (3/4) / (5/4)."""
    assert Mudag(mu=0.5, smoothness=4.0).rates == pytest.approx((0.125, 0.6))
    assert Mudag(lr=0.3, momentum=0.7).rates == (0.3, 0.7)


def test_acceleration_of_the_mixing_needs_links_that_stay() -> None:
    assert Need.STATIC in Mudag(lambda2=0.5).needs
    assert Need.STATIC not in Mudag().needs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": -1.0}, "lr = -1.0"),
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"lambda2": 1.0}, "lambda2 = 1.0"),
        ({"exchanges": 0}, "exchanges = 0"),
        ({"mu": 1.0}, "expected both or neither"),
        ({"mu": 2.0, "smoothness": 1.0}, "mu = 2.0"),
        ({"mu": 1.0, "smoothness": math.inf}, "smoothness = inf"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mudag(**fields)  # type: ignore[arg-type]
