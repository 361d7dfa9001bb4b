"""ADOM: accelerated dual method on changing links, its dual oracle by a few gradient steps."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import final

import torch

from p2p_dml.strategies._checks import check_condition, check_count, check_positive
from p2p_dml.strategies._consensus import consensus, laplacian
from p2p_dml.tensors import clone, join, part, tmap
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ADOMState:
    """Dual point z, its extrapolation zf, and the error m of past communication."""

    z: Tensors
    zf: Tensors
    m: Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ADOMConstants:
    """Greek letters of the paper, in its theorem 1."""

    alpha: float
    eta: float
    theta: float
    sigma: float
    tau: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ADOM:
    """Accelerated decentralised optimisation over time-varying networks, dual oracle.

    The model is q = argmin_x f_i(x) - <zg, x>, found by `oracle_steps` gradient steps of size
    `oracle_lr` from the last round's q: exact only in the limit, and defined only for strongly
    convex losses; on networks it is a heuristic. Gradients are taken at the moving q;
    learner.train() is not called and the lr of [train] is not read.

    `mu` and `smoothness`: smallest and largest curvature of the loss. `eigen_min` and `eigen_max`
    bound the nonzero eigenvalues of I - W in every round; 2 always is an upper bound. sum_i z_i = 0
    always; the sum of m grows but is never read, since only (I - W) m is.
    Source: Kovalev et al. 2021 (ADOM), algorithm 1, with W there = I - W here.
    """

    mu: float = 0.5
    smoothness: float = 5.0
    eigen_min: float = 0.25
    eigen_max: float = 2.0
    oracle_steps: int = 5
    oracle_lr: float = 0.2

    def __post_init__(self) -> None:
        check_condition(self.mu, self.smoothness)
        check_positive(eigen_min=self.eigen_min, eigen_max=self.eigen_max, oracle_lr=self.oracle_lr)
        check_count(oracle_steps=self.oracle_steps)
        if self.eigen_min > self.eigen_max:
            raise ValueError(
                f"eigen_min = {self.eigen_min}: expected at most eigen_max = {self.eigen_max}"
            )

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.SYMMETRIC, Need.DOUBLY_STOCHASTIC, Need.SYNCHRONOUS, Need.EXACT})

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> ADOMState:
        """All 0; q starts at the initial model."""
        zero = tmap(torch.zeros_like, learner.params)
        return ADOMState(z=zero, zf=zero, m=zero)

    def round(
        self, state: ADOMState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, ADOMState]:
        """Dual oracle, one exchange of m - eta q and q, dual step with error feedback."""
        c = self.constants
        zg = tmap(lambda z, zf: c.tau * z + (1 - c.tau) * zf, state.z, state.zf)
        learner.params = self._oracle(learner, zg)
        q = clone(learner.params)
        fed = tmap(lambda m, q: m - c.eta * q, state.m, q)
        sent = join(m=fed, q=q)
        mixed = yield from consensus(sent, links, self.exchanges)
        apart = laplacian(sent, mixed)
        delta = tmap(lambda x: c.sigma * x, part(apart, "m"))
        pull = c.eta * c.alpha
        return ADOMState(
            z=tmap(lambda z, zg, d: z + pull * (zg - z) + d, state.z, zg, delta),
            zf=tmap(lambda zg, q: zg - c.theta * q, zg, part(apart, "q")),
            m=tmap(torch.sub, fed, delta),
        )

    def report(self, state: ADOMState) -> Mapping[str, float]:
        return {}

    @property
    def constants(self) -> ADOMConstants:
        """What the theorem sets for these curvatures and eigenvalues."""
        share = self.eigen_min / (7 * self.eigen_max)
        return ADOMConstants(
            alpha=1 / (2 * self.smoothness),
            eta=2 * share * math.sqrt(self.mu * self.smoothness),
            theta=self.mu / self.eigen_max,
            sigma=1 / self.eigen_max,
            tau=share * math.sqrt(self.mu / self.smoothness),
        )

    def _oracle(self, learner: Learner, zg: Tensors) -> Tensors:
        q = clone(learner.params)
        for _ in range(self.oracle_steps):
            slope = tmap(torch.sub, learner.grad(q), zg)
            q = tmap(lambda q, s: q - self.oracle_lr * s, q, slope)
        return q
