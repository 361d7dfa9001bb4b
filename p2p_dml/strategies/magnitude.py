"""Magnitude pruning while training: weights are learned, and only the largest are used and sent."""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch

from p2p_dml.kernels.means import mix_mean
from p2p_dml.strategies._checks import check_count
from p2p_dml.strategies._masked import (
    Keep,
    figures_of,
    in_turns,
    num_ones,
    put_on,
    top_masks,
    weights_of,
)
from p2p_dml.strategies._optimisers import SGD
from p2p_dml.strategies._sparse import SparseCode
from p2p_dml.tensors import clone, part, tmap
from p2p_dml.types import Coded, Inbox, Learner, Links, Need, Payload, PeerId, Sent, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MagnitudeState:
    """Dense `weights` w, the `masks` of the largest; `momenta` of all that is trained."""

    weights: Tensors
    masks: Tensors
    momenta: Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude:
    """Train dense weights through masks of the largest, and gossip what the masks keep.

    The model that is used and evaluated is w ⊙ m, m the largest `keep_…` share of |w| of every
    tensor; a list deals the shares to the peers in turns. `steps` steps of SGD a round apply the
    gradient at w ⊙ m to all of w (straight-through). Kept values travel with their places and are
    mixed by the neighbourhood's weights; where a neighbour sent nothing, `absent` says what stands
    in: "zero", or "own", the peer's own weight. With all weights kept this is D-PSGD.
    Source: the weight-based baseline in the release of Tian et al. 2025 (MCE-PL); a gradient for
    dropped weights too as in Lin et al. 2020 (dynamic pruning with feedback).
    """

    keep_representation: float | tuple[float, ...] = 0.3
    keep_decision: float | tuple[float, ...] = 0.9
    absent: Literal["zero", "own"] = "zero"
    steps: int = 1
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_count(steps=self.steps)
        self._keep, self._sgd  # noqa: B018  (their checks)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.DOUBLY_STOCHASTIC, Need.EXACT, Need.NO_MATRIX_BUFFERS})

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> MagnitudeState:
        """The weights as drawn, and masks of the mean share, which the model wears from now on."""
        w = clone(weights_of(learner))
        masks = _largest(w, self._keep.common(learner, w))
        put_on(learner, w, masks)
        momenta = self._sgd.at_rest(learner.params)
        return MagnitudeState(weights=w, masks=masks, momenta=momenta)

    def round(
        self, state: MagnitudeState, learner: Learner, links: Links
    ) -> Generator[Sent, Inbox, MagnitudeState]:
        """Train, exchange what the masks keep, mix."""
        w, momenta = clone(state.weights), clone(state.momenta)
        x = learner.params | w  # what has one dimension is the learner's own
        shares = self._shares(learner, w, links.now.me)
        masks = state.masks
        for _ in range(self.steps):
            self._sgd.step(x, learner.grad(learner.params), momenta)
            masks = _largest(w, shares)
            put_on(learner, w, masks)
        code = self._code(learner, w)
        outbox = links.now.broadcast(code.payload(learner.params, masks))
        inbox = yield Coded(outbox, functools.partial(self._read, code, x))
        mix_mean(x, inbox)
        masks = _largest(w, shares)
        put_on(learner, w, masks)
        return MagnitudeState(weights=w, masks=masks, momenta=momenta)

    def report(self, state: MagnitudeState) -> Mapping[str, float]:
        """Shares of kept weights, and of filters and neurons that are empty."""
        return figures_of(state.masks)

    def _read(self, code: SparseCode, own: Tensors, sender: PeerId, payload: Payload) -> Payload:
        """A neighbour's model as it enters the mean."""
        heard = code.read(sender, payload).tensors
        x, masks = part(heard, "x"), part(heard, "m")
        if self.absent == "own":
            x |= {name: x[name].where(mask, own[name]) for name, mask in masks.items()}
        return Payload(x)

    def _code(self, learner: Learner, w: Tensors) -> SparseCode:
        return SparseCode(
            like=learner.params,
            kept=lambda peer: num_ones(w, self._shares(learner, w, peer)),
        )

    def _shares(self, learner: Learner, w: Tensors, peer: PeerId) -> dict[str, float]:
        return self._keep.of_peer(peer, learner, w)

    @property
    def _keep(self) -> Keep:
        return Keep(in_turns(self.keep_representation), in_turns(self.keep_decision))

    @property
    def _sgd(self) -> SGD:
        return SGD(lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


def _largest(w: Tensors, shares: Mapping[str, float]) -> Tensors:
    return top_masks(tmap(torch.abs, w), shares)
