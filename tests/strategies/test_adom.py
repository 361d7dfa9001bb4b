"""ADOM: exact on quadratics over changing links, its oracle, constants and invariants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from p2p_dml.kernels.mixing import metropolis, mixing_matrix
from p2p_dml.links.random import KRegular
from p2p_dml.links.static import Complete
from p2p_dml.strategies import ADOM
from p2p_dml.types import PeerId, Tag

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench

REDRAWN = KRegular(num_peers=10, degree=6, seed=1)
"""Nonzero eigenvalues of I - W lie in [0.55, 1.45] in all rounds of these tests."""

DUAL = ADOM(
    mu=1.0, smoothness=2.0, eigen_min=0.55, eigen_max=1.45, oracle_steps=10, oracle_lr=2 / 3
)
"""The oracle's error falls by 3^-10 a round: its curvatures lie in [1, 2]."""


def symmetric_loss(tag: Tag, a: PeerId, b: PeerId) -> int | None:
    return None if tag.round in (2, 3) and {a, b} & {1, 5} else 0


def test_the_links_are_as_well_connected_as_the_strategy_is_told() -> None:
    gossip = [np.eye(10) - mixing_matrix(REDRAWN(tick), metropolis) for tick in range(400)]
    eigenvalues = np.array([np.linalg.eigvalsh(each) for each in gossip])
    assert eigenvalues[:, 1].min() > DUAL.eigen_min
    assert eigenvalues.max() < DUAL.eigen_max


def test_it_reaches_the_optimum(bench: Bench) -> None:
    run = bench.gossip(DUAL, bench.learners(10, condition=2.0), REDRAWN)
    assert bench.distance(run.advance(400)) < 1e-6


def test_dual_sums_stay_0_when_both_ends_lose_a_link(bench: Bench) -> None:
    run = bench.gossip(DUAL, bench.learners(10, condition=2.0), REDRAWN, fate=symmetric_loss)
    zero = torch.zeros(4, dtype=torch.float64)
    for _ in range(8):
        run.advance()
        torch.testing.assert_close(bench.total([s.z for s in run.states]), zero, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            bench.total([s.zf for s in run.states]), zero, rtol=0, atol=1e-12
        )
    assert all(bool((state.z["x"].abs() > 1e-6).all()) for state in run.states)


def test_the_oracle_solves_the_inner_problem(bench: Bench) -> None:
    """In round 1 zg = 0, so q is the least point of the peer's own loss."""
    run = bench.gossip(
        ADOM(mu=1.0, smoothness=2.0, oracle_steps=40, oracle_lr=2 / 3),
        bench.learners(3, condition=2.0),
        Complete(num_peers=3),
    ).advance()
    alone = torch.stack([torch.linalg.solve(each.h, each.b) for each in run.learners])
    torch.testing.assert_close(run.models, alone, rtol=0, atol=1e-12)


def test_constants_by_hand() -> None:
    c = ADOM(mu=1.0, smoothness=4.0, eigen_min=0.7, eigen_max=2.0).constants
    assert (c.alpha, c.eta, c.theta) == pytest.approx((1 / 8, 0.2, 0.5))
    assert (c.sigma, c.tau) == pytest.approx((0.5, 0.025))


@pytest.mark.parametrize(
    "fields",
    [
        {"mu": 0.0},
        {"mu": 2.0, "smoothness": 1.0},
        {"eigen_min": 3.0},
        {"oracle_steps": 0},
        {"oracle_lr": math.nan},
    ],
)
def test_bad_fields_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} = .*expected"):
        ADOM(**fields)  # type: ignore[arg-type]
