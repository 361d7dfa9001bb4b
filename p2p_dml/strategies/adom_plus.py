"""ADOM+: accelerated primal method on changing links, with gradients instead of a dual oracle."""

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
class ADOMPlusState:
    """Primal x (and xf), dual y (yf) and z (zf), and the error m of past communication."""

    x: Tensors
    xf: Tensors
    y: Tensors
    yf: Tensors
    z: Tensors
    zf: Tensors
    m: Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ADOMPlusConstants:
    """Greek letters of the paper, in its theorem 2; s1 and s2 are its sigmas."""

    tau1: float
    tau2: float
    s1: float
    s2: float
    eta: float
    alpha: float
    beta: float
    nu: float
    gamma: float
    delta: float
    theta: float
    zeta: float = 0.5


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ADOMPlus:
    """ADOM+; the model is x, gradients are taken at xg between x and xf.

    learner.train() is not called and the lr of [train] is not read: `mu` and `smoothness`, the
    smallest and largest curvature of the loss, set all steps. L = (I - W) / `eigen_max` must have
    no eigenvalue above 1, which 2 ensures for every W. `chi` is 1 over the smallest nonzero
    eigenvalue of L, or of I - (I - L)^`exchanges`, which takes L's place with several exchanges a
    round (multi-consensus). sum_i z_i = 0 always.
    Source: Kovalev et al. 2021 (lower bounds and optimal algorithms over time-varying networks),
    algorithm 2.
    """

    mu: float = 0.1
    smoothness: float = 1.0
    chi: float = 4.0
    exchanges: int = 1
    eigen_max: float = 2.0

    def __post_init__(self) -> None:
        check_condition(self.mu, self.smoothness)
        check_positive(eigen_max=self.eigen_max)
        check_count(exchanges=self.exchanges)
        if not 1 <= self.chi < math.inf:
            raise ValueError(f"chi = {self.chi}: expected a finite number of at least 1")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.SYMMETRIC, Need.DOUBLY_STOCHASTIC, Need.SYNCHRONOUS, Need.EXACT})

    def init(self, learner: Learner, seed: int) -> ADOMPlusState:
        """x = xf = the initial model, everything dual 0."""
        x, zero = clone(learner.params), tmap(torch.zeros_like, learner.params)
        return ADOMPlusState(x=x, xf=x, y=zero, yf=zero, z=zero, zf=zero, m=zero)

    def round(
        self, state: ADOMPlusState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, ADOMPlusState]:
        """Gradient at xg, implicit step in (x, y), exchange, step in z with error feedback."""
        c = self.constants
        xg = _between(c.tau1, state.x, state.xf)
        yg, zg = _between(c.s1, state.y, state.yf), _between(c.s1, state.z, state.zf)
        dual = tmap(torch.add, yg, zg)
        x, y = _implicit_step(c, state, xg, dual, learner.grad(xg))
        fed = tmap(lambda d, m: c.gamma / c.nu * d + m, dual, state.m)
        sent = join(m=fed, dual=dual)
        mixed = yield from self._mix(sent, links)
        apart = laplacian(sent, mixed)
        learner.params = x
        pull = c.gamma * c.delta
        return ADOMPlusState(
            x=x,
            xf=_ahead(c.tau2, xg, x, state.x),
            y=y,
            yf=_ahead(c.s2, yg, y, state.y),
            z=tmap(lambda z, g, d: z + pull * (g - z) - d, state.z, zg, part(apart, "m")),
            zf=tmap(lambda g, d: g - c.zeta * d, zg, part(apart, "dual")),
            m=part(mixed, "m"),
        )

    def report(self, state: ADOMPlusState) -> Mapping[str, float]:
        return {}

    @property
    def constants(self) -> ADOMPlusConstants:
        """What the theorem sets for these curvatures and this chi."""
        tau2 = math.sqrt(self.mu / self.smoothness)
        s2, nu = tau2 / (16 * self.chi), self.mu / 2
        return ADOMPlusConstants(
            tau1=1 / (1 / tau2 + 1 / 2),
            tau2=tau2,
            s1=1 / (1 / s2 + 1 / 2),
            s2=s2,
            eta=1 / (self.smoothness * tau2),
            alpha=self.mu / 2,
            beta=1 / (2 * self.smoothness),
            nu=nu,
            gamma=nu / (14 * s2 * self.chi**2),
            delta=1 / (17 * self.smoothness),
            theta=nu / (4 * s2),
        )

    def _mix(self, now: Tensors, links: Links) -> Generator[Outbox, Inbox, Tensors]:
        """(I - L)^exchanges v, with I - L = I - (I - W) / eigen_max."""
        for _ in range(self.exchanges):
            mixed = yield from consensus(now, links, 1)
            now = tmap(lambda v, w: v + (w - v) / self.eigen_max, now, mixed)
        return now


def _between(share: float, a: Tensors, b: Tensors) -> Tensors:
    return tmap(lambda a, b: share * a + (1 - share) * b, a, b)


def _ahead(factor: float, base: Tensors, new: Tensors, old: Tensors) -> Tensors:
    return tmap(lambda g, new, old: g + factor * (new - old), base, new, old)


def _implicit_step(
    c: ADOMPlusConstants, state: ADOMPlusState, xg: Tensors, dual: Tensors, g: Tensors
) -> tuple[Tensors, Tensors]:
    """x+ and y+, each of which stands in the other's equation: x+ = known + slope y+ put into y+.

    x+ = x + eta alpha (xg - x+) - eta (h - y+), y+ = y + theta beta (h - y+) - theta (dual / nu +
    x+), with h = g - nu xg.
    """
    h = tmap(lambda g, xg: g - c.nu * xg, g, xg)
    scale = 1 + c.eta * c.alpha
    slope = c.eta / scale
    known = tmap(lambda x, xg, h: (x + c.eta * c.alpha * xg - c.eta * h) / scale, state.x, xg, h)
    own = tmap(lambda y, h: y + c.theta * c.beta * h, state.y, h)
    rest = tmap(lambda dual, known: c.theta * (dual / c.nu + known), dual, known)
    divisor = 1 + c.theta * c.beta + c.theta * slope
    y = tmap(lambda own, rest: (own - rest) / divisor, own, rest)
    return tmap(lambda known, y: known + slope * y, known, y), y
