"""ADOM+: exact on quadratics over changing links, its implicit step, constants, invariants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.links.random import KRegular
from p2p_dml.links.static import Complete
from p2p_dml.strategies import ADOMPlus
from p2p_dml.types import LinkSchedule, PeerId, Tag

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench

REDRAWN = KRegular(num_peers=10, degree=6, seed=1)
"""Nonzero eigenvalues of I - W lie in [0.55, 1.45] in all rounds of these tests."""

PRIMAL = ADOMPlus(mu=1.0, smoothness=2.0, chi=1.18, exchanges=4, eigen_max=1.45)
"""1 - (1 - 0.55 / 1.45)^4 is at least 1 / chi."""


def symmetric_loss(tag: Tag, a: PeerId, b: PeerId) -> int | None:
    return None if tag.round in (2, 3) and {a, b} & {1, 5} else 0


@pytest.mark.parametrize(
    ("strategy", "links"),
    [
        (PRIMAL, REDRAWN),
        (ADOMPlus(mu=1.0, smoothness=2.0, chi=1.0, eigen_max=1.0), Complete(num_peers=10)),
    ],
)
def test_it_reaches_the_optimum(bench: Bench, strategy: ADOMPlus, links: LinkSchedule) -> None:
    run = bench.gossip(strategy, bench.learners(10, condition=2.0), links)
    assert bench.distance(run.advance(350)) < 1e-6


def test_dual_sums_stay_0_when_both_ends_lose_a_link(bench: Bench) -> None:
    run = bench.gossip(PRIMAL, bench.learners(10, condition=2.0), REDRAWN, fate=symmetric_loss)
    zero = torch.zeros(4, dtype=torch.float64)
    for _ in range(8):
        run.advance()
        torch.testing.assert_close(bench.total([s.z for s in run.states]), zero, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            bench.total([s.zf for s in run.states]), zero, rtol=0, atol=1e-12
        )
    assert all(bool((state.z["x"].abs() > 1e-6).all()) for state in run.states)


def test_the_first_round_solves_both_implicit_equations(bench: Bench) -> None:
    run = bench.gossip(PRIMAL, bench.learners(10, condition=2.0), REDRAWN)
    c, start = PRIMAL.constants, run.models.clone()
    g = torch.stack([each.grad(each.params)["x"] for each in run.learners])
    run.advance()
    x, y = run.models, torch.stack([state.y["x"] for state in run.states])
    h = g - c.nu * start
    torch.testing.assert_close(
        x, start + c.eta * c.alpha * (start - x) - c.eta * (h - y), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(y, c.theta * c.beta * (h - y) - c.theta * x, rtol=0, atol=1e-12)


def test_constants_by_hand() -> None:
    c = ADOMPlus(mu=1.0, smoothness=4.0, chi=2.0).constants
    assert (c.tau1, c.tau2, c.s1, c.s2) == pytest.approx((0.4, 0.5, 1 / 64.5, 1 / 64))
    assert (c.eta, c.alpha, c.beta) == pytest.approx((0.5, 0.5, 1 / 8))
    assert (c.nu, c.delta, c.zeta) == pytest.approx((0.5, 1 / 68, 0.5))
    assert (c.gamma, c.theta) == pytest.approx((0.5 * 64 / 56, 8.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"mu": 0.0},
        {"chi": 0.5},
        {"chi": math.inf},
        {"exchanges": 0},
        {"eigen_max": 0.0},
    ],
)
def test_bad_fields_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} = .*expected"):
        ADOMPlus(**fields)  # type: ignore[arg-type]
