"""Mudag: Nesterov's method on the mean loss, with several accelerated mixings per round."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import final

import torch

from p2p_dml.kernels.mixing import fast_mix_momentum
from p2p_dml.strategies._checks import check_condition, check_count, check_positive, check_share
from p2p_dml.strategies._consensus import consensus
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MudagState:
    """The extrapolated point y, the one before it, and the own gradient there."""

    y: Tensors
    last_y: Tensors
    last_gradient: Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mudag:
    """Multi-consensus decentralised accelerated gradient descent, one vector per exchange.

    x+ = FastMix(y + (x - y_last) - lr (g(y) - g(y_last))), y+ = x+ + momentum (x+ - x). The model
    is x; gradients are taken at y. learner.train() is not called, and `lr` is the step size, not
    that of [train]. Either `lr` and `momentum` are given or, both together, the smallest and
    largest curvature `mu` and `smoothness`, from which lr = 1 / (2 smoothness), a = sqrt(mu lr) and
    momentum = (1 - a) / (1 + a) follow.

    `exchanges`: mixings per round. One is too few on sparse links: the method then diverges.
    `lambda2`: the second largest modulus of an eigenvalue of W, for FastMix on links that stay; on
    changing links leave it at 0, plain mixing. Mean x = mean y_last - lr mean g(y_last) always.
    Source: Ye, Luo, Zhou, Zhang 2020, algorithms 1 and 2.
    """

    lr: float = 0.05
    momentum: float = 0.8
    mu: float | None = None
    smoothness: float | None = None
    exchanges: int = 3
    lambda2: float = 0.0

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)
        check_share(momentum=self.momentum, lambda2=self.lambda2)
        check_count(exchanges=self.exchanges)
        if (self.mu is None) != (self.smoothness is None):
            raise ValueError("mu, smoothness: expected both or neither, found one")
        if self.mu is not None and self.smoothness is not None:
            check_condition(self.mu, self.smoothness)

    @property
    def needs(self) -> frozenset[Need]:
        fast = {Need.STATIC} if self.lambda2 else set()
        return frozenset({Need.DOUBLY_STOCHASTIC, Need.SYNCHRONOUS, Need.EXACT} | fast)

    def init(self, learner: Learner, seed: int) -> MudagState:
        """y = y_last = x and no gradient: the first round is a gradient step."""
        x = clone(learner.params)
        return MudagState(y=x, last_y=x, last_gradient=tmap(torch.zeros_like, x))

    def round(
        self, state: MudagState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, MudagState]:
        """Gradient at y, FastMix, extrapolate."""
        lr, momentum = self.rates
        x, y, g = clone(learner.params), state.y, learner.grad(state.y)
        drift = tmap(torch.sub, x, state.last_y)
        turn = tmap(torch.sub, g, state.last_gradient)
        stepped = tmap(lambda y, d, t: y + d - lr * t, y, drift, turn)
        b = fast_mix_momentum(self.lambda2)
        learner.params = yield from consensus(stepped, links, self.exchanges, b)
        ahead = tmap(lambda new, old: new + momentum * (new - old), learner.params, x)
        return MudagState(y=ahead, last_y=y, last_gradient=g)

    def report(self, state: MudagState) -> Mapping[str, float]:
        return {}

    @property
    def rates(self) -> tuple[float, float]:
        """Step size and momentum in effect."""
        if self.mu is None or self.smoothness is None:
            return self.lr, self.momentum
        lr = 1 / (2 * self.smoothness)
        a = math.sqrt(self.mu * lr)
        return lr, (1 - a) / (1 + a)
