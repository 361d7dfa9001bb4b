"""Gradient tracking: exact on heterogeneous quadratics, its invariants, its two forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.links.random import ErdosRenyi
from p2p_dml.links.static import Ring
from p2p_dml.strategies import DPSGD, GradientTracking
from p2p_dml.types import LinkSchedule

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench

RING = Ring(num_peers=10)
REDRAWN = ErdosRenyi(num_peers=10, density=0.5, seed=3)


@pytest.mark.parametrize("links", [RING, REDRAWN])
@pytest.mark.parametrize("exchanges", [1, 2])
def test_it_reaches_the_optimum(bench: Bench, links: LinkSchedule, exchanges: int) -> None:
    strategy = GradientTracking(lr=0.05, exchanges=exchanges)
    run = bench.gossip(strategy, bench.learners(10), links)
    assert bench.distance(run.advance(500)) < 1e-9


def test_training_form_with_one_gradient_step_is_the_gradient_form(bench: Bench) -> None:
    tracked = bench.gossip(GradientTracking(lr=0.05), bench.learners(10), RING)
    trained = bench.gossip(GradientTracking(local="training"), bench.learners(10, lr=0.05), RING)
    for _ in range(20):
        torch.testing.assert_close(
            tracked.advance().models, trained.advance().models, rtol=1e-12, atol=1e-12
        )


def test_many_local_steps_leave_a_bias_far_below_that_of_dpsgd(bench: Bench) -> None:
    """Local updates sum to 0 elsewhere than gradients do, by the order of the step."""
    tracked, untracked = (
        bench.distance(
            bench.gossip(strategy, bench.learners(10, lr=0.01, steps=5), RING).advance(400)
        )
        for strategy in (GradientTracking(local="training"), DPSGD())
    )
    assert tracked < 0.05 * untracked


@pytest.mark.parametrize("local", ["gradient", "training"])
def test_sums_are_kept_when_both_ends_lose_a_link(bench: Bench, local: str) -> None:
    strategy = GradientTracking(local="gradient" if local == "gradient" else "training")
    run = bench.gossip(
        strategy,
        bench.learners(10),
        REDRAWN,
        fate=lambda tag, a, b: None if tag.round in (3, 4) and {a, b} & {2, 7} else 0,
    )
    zero = torch.zeros(4, dtype=torch.float64)
    for _ in range(10):
        run.advance()
        trackers = bench.total([state.tracker for state in run.states])
        gradients = bench.total([state.gradient or {"x": zero} for state in run.states])
        torch.testing.assert_close(trackers, gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fields", [{"lr": 0.0}, {"lr": float("nan")}, {"exchanges": 0}])
def test_bad_fields_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} = .*expected"):
        GradientTracking(**fields)  # type: ignore[arg-type]
