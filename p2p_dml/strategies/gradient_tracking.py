"""Gradient tracking: every peer follows an estimate of the mean gradient instead of its own."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal, final

import torch

from p2p_dml.strategies._checks import check_count, check_positive
from p2p_dml.strategies._consensus import consensus
from p2p_dml.tensors import clone, join, part, tmap
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """`tracker`: y, or the correction c of trained updates; `gradient`: the own one last seen."""

    tracker: Tensors
    gradient: Tensors = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientTracking:
    """Gradient tracking, adapt-then-combine; `exchanges` mixings per round.

    `local` "gradient": x <- W (x - lr y), y <- W y + g(x_new) - g(x_old), one mini-batch gradient
    a round; learner.train() is not called and `lr` is the step size, not that of [train].
    "training": with the displacement u of learner.train(), x <- W (x + u + c),
    c <- W (c + u) - u, so that optimiser and local steps are those of [train] and `lr` is not
    read. With one plain gradient step both are the same, c = lr (g - y).

    sum_i y_i = sum_i g_i (sum_i c_i = 0) in every round, also when both ends of a link lose it.
    Source: Nedic et al. 2017 (DIGing), eq. (3), in the adapt-then-combine form.
    """

    lr: float = 0.05
    exchanges: int = 1
    local: Literal["gradient", "training"] = "gradient"

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)
        check_count(exchanges=self.exchanges)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.DOUBLY_STOCHASTIC, Need.SYNCHRONOUS, Need.EXACT})

    def init(self, learner: Learner, seed: int) -> Tracking:
        """y = g at the initial model; c = 0."""
        if self.local == "training":
            return Tracking(tracker=tmap(torch.zeros_like, learner.params))
        g = learner.grad(learner.params)
        return Tracking(tracker=g, gradient=g)

    def round(
        self, state: Tracking, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, Tracking]:
        """Step along the tracker, mix model and tracker, correct the tracker."""
        if self.local == "training":
            return self._correct_updates(state, learner, links)
        return self._track_gradients(state, learner, links)

    def report(self, state: Tracking) -> Mapping[str, float]:
        return {}

    def _track_gradients(
        self, state: Tracking, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, Tracking]:
        y = state.tracker
        stepped = tmap(lambda x, y: x - self.lr * y, learner.params, y)
        mixed = yield from consensus(join(x=stepped, y=y), links, self.exchanges)
        learner.params = part(mixed, "x")
        g = learner.grad(learner.params)
        y = tmap(lambda y, new, old: y + new - old, part(mixed, "y"), g, state.gradient)
        return Tracking(tracker=y, gradient=g)

    def _correct_updates(
        self, state: Tracking, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, Tracking]:
        start, c = clone(learner.params), state.tracker
        learner.train()
        u = tmap(torch.sub, learner.params, start)
        corrected = join(x=tmap(torch.add, learner.params, c), u=tmap(torch.add, c, u))
        mixed = yield from consensus(corrected, links, self.exchanges)
        learner.params = part(mixed, "x")
        return Tracking(tracker=tmap(torch.sub, part(mixed, "u"), u))
