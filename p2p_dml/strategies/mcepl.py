"""MCE-PL: personal masks over shared fixed weights; neighbours get one bit for each weight."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from torch import Tensor

from p2p_dml.errors import ConfigError
from p2p_dml.kernels.masks import count, pack
from p2p_dml.strategies._checks import check_positive
from p2p_dml.strategies._draws import PrivateDraws
from p2p_dml.strategies._mask_coding import CodingState, MaskCoding, Mode, sizes
from p2p_dml.strategies._masked import (
    Keep,
    check_least_kept,
    common_draws,
    draw_mask,
    draw_scores,
    figures_of,
    in_turns,
    num_ones,
    put_on,
    straight_through,
    top_masks,
    weights_of,
)
from p2p_dml.tensors import clone, num_elements, tmap
from p2p_dml.types import Coded, Inbox, Learner, Links, Need, PeerId, Sent, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MCEPLState:
    """Fixed `weights` w, `scores` z, the neighbours' mean mask `fused`, and what links have seen.

    `fused` holds shares in [0, 1], in the shapes of the weights. `seed` is for private draws,
    `figures` are those of the last round.
    """

    weights: Tensors
    scores: Tensors
    fused: Tensors
    seed: int
    links: CodingState = field(default_factory=CodingState)
    figures: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MCEPL:
    """Masks learned by scores, pulled to those of the neighbours, then tuned to one's own data.

    In each round, with g the straight-through gradient of the scores z on one mini-batch:
    z <- z - lr (g + weight_decay z); the mask of |z| + mean|z| m̄, with m̄ the neighbours' mean of
    the round before, is sent; z <- z - fine_tune g ⊙ m̄ with the new m̄, own mask not included; the
    mask of |z| + mean|z| m̄ is what the peer uses. Masks keep the largest `keep_…` share of every
    tensor; a list deals the shares to the peers in turns, and a `budget` of kept weights (a list:
    in turns) lowers all shares of a peer alike. Source: Tian et al. 2025, as in their release.

    `regulariser` λ adds λ Σ ‖y_o‖ over filters and neurons o to the loss, y = z + mean|z| sign z m̄;
    outputs with `least_kept` kept weights or fewer are taken out whole, after the mask is sent.

    Ablations: `fused` False leaves the neighbours out of the masks (the release's first term),
    `fine_tune` = 0 leaves out the second step; `fine_tune_by` "share" replaces m̄ in it by its mean,
    a plain larger step; `permuted` shuffles m̄ within each tensor, so that only its distribution is
    left. `coding`: how masks travel, see `MaskCoding`.
    """

    keep_representation: float | tuple[float, ...] = 0.3
    keep_decision: float | tuple[float, ...] = 0.9
    budget: int | tuple[int, ...] | None = None
    lr: float = 10.0
    weight_decay: float = 5e-4
    fine_tune: float = 10.0
    regulariser: float = 0.001
    least_kept: int = 0
    fused: bool = True
    fine_tune_by: Literal["masks", "share"] = "masks"
    permuted: bool = False
    coding: Mode = "delta"

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)
        for name in ("weight_decay", "fine_tune", "regulariser", "least_kept"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 0")
        if self.budget is not None and not all(b >= 1 for b in in_turns(self.budget)):
            raise ValueError(f"budget = {self.budget}: expected numbers of at least 1")
        self._keep  # noqa: B018  (its checks)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.EXACT, Need.FIRST_WEIGHTS, Need.NO_MATRIX_BUFFERS})

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> MCEPLState:
        """Scores and a first neighbours' mask that are the same at every peer."""
        weights = clone(weights_of(learner))
        check_least_kept(weights, self.least_kept)
        self._check_budget(learner, weights)
        draws = common_draws(weights)
        scores = draw_scores(weights, draws)
        fused = draw_mask(weights, self._keep.common(learner, weights), draws)
        return MCEPLState(weights=weights, scores=scores, fused=fused, seed=seed)

    def round(
        self, state: MCEPLState, learner: Learner, links: Links
    ) -> Generator[Sent, Inbox, MCEPLState]:
        """Step, send the half-way mask, tune by what the neighbours keep, put on the new mask."""
        me, w, z = links.now.me, state.weights, state.scores
        shares = self._shares(me, learner, w)
        if not state.figures:  # the first round: the learner still has all weights
            put_on(learner, w, self._worn(z, state.fused, shares))
        g = self._gradient(state, learner)
        z = tmap(lambda z, g: z - self.lr * (g + self.weight_decay * z), z, g)
        sent = top_masks(_fused(z, self._pull(state.fused)), shares)
        coding, bits = self._coding(w), pack(list(sent.values()))
        outbox, seen = coding.outbox(state.links, links.now, learner.round, bits)
        expected = functools.partial(self._ones, learner, w)
        read = functools.partial(coding.read, seen, expected=expected)
        inbox = yield Coded(outbox, read)
        fused = self._mean(state, [m.tensors["mask"] for m in inbox.messages.values()], learner)
        z = tmap(lambda z, g, m: z - self.fine_tune * g * self._share(m), z, g, fused)
        masks = self._worn(z, fused, shares)
        put_on(learner, w, masks)
        figures = sizes(bits, sum(coding.numels), outbox) | figures_of(masks)
        after = coding.heard(seen, learner.round, inbox.messages)
        return replace(state, scores=z, fused=fused, links=after, figures=figures)

    def report(self, state: MCEPLState) -> Mapping[str, float]:
        """Shares of kept weights and of empty filters and neurons, and sizes of a message."""
        return state.figures

    def _gradient(self, state: MCEPLState, learner: Learner) -> Tensors:
        """Straight-through gradient of loss and regulariser in the scores, at the masks worn."""
        found = straight_through(learner.grad(learner.params), state.weights, state.scores)
        if not self.regulariser:
            return found
        y = tmap(
            lambda y, z: y * z.sign(), _fused(state.scores, self._pull(state.fused)), state.scores
        )
        return tmap(lambda g, y: g + self.regulariser * _unit_outputs(y), found, y)

    def _worn(self, z: Tensors, fused: Tensors, shares: Mapping[str, float]) -> Tensors:
        """The masks that the peer uses."""
        return top_masks(_fused(z, self._pull(fused)), shares, self.least_kept)

    def _mean(self, state: MCEPLState, heard: Sequence[Tensor], learner: Learner) -> Tensors:
        """The neighbours' mean mask; if nobody was heard that of the last time."""
        if not heard:
            return state.fused
        w = state.weights
        each = torch.split(count(heard, num_elements(w)), [x.numel() for x in w.values()])
        flat = [c.to(x.device, x.dtype) / len(heard) for c, x in zip(each, w.values(), strict=True)]
        if self.permuted:
            draws = PrivateDraws(state.seed, learner.round)
            flat = [x[draws.uniform(x).argsort()] for x in flat]
        return {name: m.view(x.shape) for (name, x), m in zip(w.items(), flat, strict=True)}

    def _pull(self, fused: Tensors) -> Tensors:
        """What the neighbours' masks add to scores, in mean scores."""
        return fused if self.fused else tmap(torch.zeros_like, fused)

    def _share(self, fused: Tensor) -> Tensor:
        """What the second step is multiplied by."""
        return fused if self.fine_tune_by == "masks" else fused.mean()

    def _coding(self, weights: Tensors) -> MaskCoding:
        return MaskCoding(numels=tuple(w.numel() for w in weights.values()), mode=self.coding)

    def _ones(self, learner: Learner, weights: Tensors, peer: PeerId) -> list[int]:
        """How many weights of each tensor the masks of a peer keep."""
        return num_ones(weights, self._shares(peer, learner, weights))

    def _shares(self, peer: PeerId, learner: Learner, weights: Tensors) -> dict[str, float]:
        """What a peer keeps of each tensor, within its budget."""
        shares = self._keep.of_peer(peer, learner, weights)
        if self.budget is None:
            return shares
        budgets = in_turns(self.budget)
        kept = sum(share * weights[name].numel() for name, share in shares.items())
        factor = budgets[peer % len(budgets)] / kept
        if factor >= 1:
            return shares
        numels = {name: weights[name].numel() for name in shares}
        return {name: int(shares[name] * factor * n) / n for name, n in numels.items()}

    def _check_budget(self, learner: Learner, weights: Tensors) -> None:
        """Raise ConfigError if a budget leaves nothing of a tensor."""
        budgets = in_turns(self.budget)
        keep = self._keep
        kinds = math.lcm(len(budgets), len(keep.representation), len(keep.decision))
        for peer in range(kinds):
            shares = self._shares(peer, learner, weights)
            if nothing := [name for name, share in shares.items() if share == 0]:
                raise ConfigError(
                    f"strategy.budget = {budgets[peer % len(budgets)]}: nothing is left of "
                    f"{', '.join(nothing)}; expected a larger part of the "
                    f"{num_elements(weights)} weights"
                )

    @property
    def _keep(self) -> Keep:
        return Keep(in_turns(self.keep_representation), in_turns(self.keep_decision))


def _fused(z: Tensors, pull: Tensors) -> Tensors:
    """|y| = |z| + mean|z| m̄, tensor by tensor."""
    return tmap(lambda z, m: z.abs() + z.abs().mean() * m, z, pull)


def _unit_outputs(y: Tensor) -> Tensor:
    """Gradient of the sum of the lengths of filters or neurons y[o]; 0 for one that is 0."""
    lengths = y.flatten(1).norm(dim=1).clamp_min(torch.finfo(y.dtype).tiny)
    unit: Tensor = y / lengths.view(-1, *(1 for _ in y.shape[1:]))
    return unit
