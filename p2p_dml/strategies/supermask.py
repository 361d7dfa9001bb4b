"""Supermasks: a mask of each peer's own over fixed weights, and no exchange."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import final

import torch

from p2p_dml.strategies._checks import check_count
from p2p_dml.strategies._masked import (
    Keep,
    check_least_kept,
    common_draws,
    draw_scores,
    figures_of,
    in_turns,
    put_on,
    straight_through,
    top_masks,
    weights_of,
)
from p2p_dml.strategies._optimisers import SGD
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SupermaskState:
    """Fixed `weights` w, `scores` z, and the `masks` that are worn; `momenta` of the scores."""

    weights: Tensors
    scores: Tensors
    masks: Tensors
    momenta: Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Supermask:
    """Edge-popup at every peer alone: MCE-PL without neighbours.

    `steps` steps of SGD a round on the straight-through gradient of the scores; `lr`,
    `momentum` and `weight_decay` are the scores'. Masks keep the largest `keep_…` share of |z| of
    every tensor; a list deals the shares to the peers in turns. Outputs with `least_kept` kept
    weights or fewer are taken out whole. Scores are drawn alike at all peers.
    Source: Ramanujan et al. 2020; sizes and `least_kept` (20) as in the release of Tian et al.
    2025 (MCE-PL).
    """

    keep_representation: float | tuple[float, ...] = 0.3
    keep_decision: float | tuple[float, ...] = 0.9
    steps: int = 1
    lr: float = 10.0
    momentum: float = 0.0
    weight_decay: float = 5e-4
    least_kept: int = 0

    def __post_init__(self) -> None:
        check_count(steps=self.steps)
        if self.least_kept < 0:
            raise ValueError(f"least_kept = {self.least_kept}: expected at least 0")
        self._keep, self._sgd  # noqa: B018  (their checks)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.FIRST_WEIGHTS, Need.NO_MATRIX_BUFFERS})

    @property
    def exchanges(self) -> int:
        return 0

    def init(self, learner: Learner, seed: int) -> SupermaskState:
        """Scores, and masks of the mean share, which the model wears from now on."""
        w = clone(weights_of(learner))
        check_least_kept(w, self.least_kept)
        z = draw_scores(w, common_draws(w))
        masks = self._masks(z, self._keep.common(learner, w))
        put_on(learner, w, masks)
        return SupermaskState(weights=w, scores=z, masks=masks, momenta=self._sgd.at_rest(z))

    def round(
        self, state: SupermaskState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, SupermaskState]:
        """z <- z - lr (g + weight_decay z), and the mask that follows, `steps` times."""
        w, z, momenta = state.weights, clone(state.scores), clone(state.momenta)
        shares = self._keep.of_peer(links.now.me, learner, w)
        masks = state.masks
        for _ in range(self.steps):
            g = straight_through(learner.grad(learner.params), w, z)
            self._sgd.step(z, g, momenta)
            masks = self._masks(z, shares)
            put_on(learner, w, masks)
        yield from ()
        return SupermaskState(weights=w, scores=z, masks=masks, momenta=momenta)

    def report(self, state: SupermaskState) -> Mapping[str, float]:
        """Shares of kept weights, and of filters and neurons that are empty."""
        return figures_of(state.masks)

    def _masks(self, z: Tensors, shares: Mapping[str, float]) -> Tensors:
        return top_masks(tmap(torch.abs, z), shares, self.least_kept)

    @property
    def _keep(self) -> Keep:
        return Keep(in_turns(self.keep_representation), in_turns(self.keep_decision))

    @property
    def _sgd(self) -> SGD:
        return SGD(lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
