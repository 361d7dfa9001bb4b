"""FedPM by gossip: probabilities of masks are learned, and samples of them are averaged."""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from p2p_dml.kernels.masks import pack, unpack
from p2p_dml.strategies._checks import check_count
from p2p_dml.strategies._draws import PrivateDraws
from p2p_dml.strategies._mask_coding import CodingState, MaskCoding
from p2p_dml.strategies._masked import common_draws, figures_of, put_on, weights_of
from p2p_dml.strategies._optimisers import SGD, Adam, Moments
from p2p_dml.tensors import clone, not_finite, tmap
from p2p_dml.types import Coded, Inbox, Learner, Links, Need, Sent, Tensors

CLIP = 0.01
"""What a 0 counts in a mean of samples, and 1 - CLIP what a 1 counts: keeps scores finite."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FedPMState:
    """Fixed `weights` w and `scores` s, of which the masks' probabilities are θ = sigmoid s.

    `masks`: a sample of them, worn if samples are evaluated. `moments` are Adam's, `seed` is for
    private draws.
    """

    weights: Tensors
    scores: Tensors
    masks: Tensors
    moments: Moments
    seed: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FedPM:
    """Probabilistic masks over fixed weights, averaged with the neighbours' in place of a server.

    `steps` local steps along ∂L/∂s = ∂L/∂(w ⊙ m) ⊙ w ⊙ θ (1 - θ), each at a fresh m ~ Bernoulli(θ).
    Then one sample is sent, a bit for each weight, and θ becomes the mean of all samples heard and
    one's own, the mode of a Beta(1, 1) posterior: `combine` "mean", or "weights" for the mixing
    weights of the neighbourhood. Samples count as 0.01 and 0.99. If nobody was heard θ stays.

    `evaluated`: the model is w ⊙ m with another sample m ("sample"), or w ⊙ θ ("mean"). `coding`:
    "entropy" codes samples where that is shorter; changes of masks are not sent, as samples have
    little in common. Moments of Adam stay when θ is averaged, as in the published code, from where
    `optimiser` and `lr` are too; 3 passes over the data a round are `steps` of mini-batches here.
    The authors draw weights of one size (`[model] init = "signed_constant"`) and mask biases too.
    Source: Isik et al. 2023, algorithm 1, with its Bayesian aggregation.
    """

    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = 0.1
    steps: int = 3
    combine: Literal["mean", "weights"] = "mean"
    evaluated: Literal["sample", "mean"] = "sample"
    coding: Literal["packed", "entropy"] = "entropy"

    def __post_init__(self) -> None:
        check_count(steps=self.steps)
        Adam(lr=self.lr)  # its checks

    @property
    def needs(self) -> frozenset[Need]:
        mean = {Need.DOUBLY_STOCHASTIC} if self.combine == "weights" else set()
        return frozenset({Need.EXACT, Need.FIRST_WEIGHTS, Need.NO_MATRIX_BUFFERS} | mean)

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> FedPMState:
        """Standard normal scores, the same at every peer; the model wears a first sample."""
        w = clone(weights_of(learner))
        draws = common_draws(w)
        s = {name: _normal(x, draws) for name, x in w.items()}
        moments = Adam(lr=self.lr).at_rest(s if self.optimiser == "adam" else {})
        masks = self._wear(learner, w, s, PrivateDraws(seed, 0))
        return FedPMState(weights=w, scores=s, masks=masks, moments=moments, seed=seed)

    def round(
        self, state: FedPMState, learner: Learner, links: Links
    ) -> Generator[Sent, Inbox, FedPMState]:
        """Learn probabilities, send a sample, average samples, wear the next one."""
        w, draws = state.weights, PrivateDraws(state.seed, learner.round)
        s, moments = self._learned(state, learner, draws)
        if wrong := not_finite(s):
            raise FloatingPointError(f"{wrong}: its scores are not all numbers")
        bits = pack([*draws.sample(tmap(torch.sigmoid, s)).values()]).cpu()
        coding = MaskCoding(numels=tuple(x.numel() for x in w.values()), mode=self.coding)
        seen = CodingState()  # changes of masks, which would need a memory, are not sent
        outbox, _ = coding.outbox(seen, links.now, learner.round, bits)
        inbox = yield Coded(outbox, functools.partial(coding.read, seen))
        if inbox.messages:
            s = self._averaged(w, inbox, bits)
        masks = self._wear(learner, w, s, draws)
        return FedPMState(weights=w, scores=s, masks=masks, moments=moments, seed=state.seed)

    def report(self, state: FedPMState) -> Mapping[str, float]:
        """Shares of kept weights, and of filters and neurons that are empty, in the last sample."""
        return figures_of(state.masks)

    def _learned(
        self, state: FedPMState, learner: Learner, draws: PrivateDraws
    ) -> tuple[Tensors, Moments]:
        """Scores and moments after the local steps."""
        w, s, moments = state.weights, clone(state.scores), _copied(state.moments)
        for _ in range(self.steps):
            shares = tmap(torch.sigmoid, s)
            put_on(learner, w, draws.sample(shares))
            found = learner.grad(learner.params)
            g = {name: found[name] * w[name] * p * (1 - p) for name, p in shares.items()}
            if self.optimiser == "adam":
                moments = Adam(lr=self.lr).step(s, g, moments)
            else:
                SGD(lr=self.lr).step(s, g, {})
        return s, moments

    def _averaged(self, w: Tensors, inbox: Inbox, bits: Tensor) -> Tensors:
        """Scores of the mean of all samples heard and the own one, `bits`."""
        samples, weights = inbox.with_own({"mask": bits})
        if self.combine == "mean":
            weights = [1 / len(samples)] * len(samples)
        shares = tmap(torch.zeros_like, w)
        for sample, weight in zip(samples, weights, strict=True):
            masks = unpack(sample["mask"], [x.shape for x in w.values()])
            for share, mask in zip(shares.values(), masks, strict=True):
                share.add_(mask.to(share.device), alpha=weight)
        return tmap(lambda share: torch.logit(CLIP + (1 - 2 * CLIP) * share), shares)

    def _wear(self, learner: Learner, w: Tensors, s: Tensors, draws: PrivateDraws) -> Tensors:
        """Put a sample on the model, or the mean of all; returns the sample."""
        shares = tmap(torch.sigmoid, s)
        masks = draws.sample(shares)
        put_on(learner, w, masks if self.evaluated == "sample" else shares)
        return masks


def _normal(like: Tensor, draws: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=draws, dtype=torch.float64)
    return drawn.to(like.device, like.dtype)


def _copied(moments: Moments) -> Moments:
    """Moments that may be changed in place."""
    return replace(moments, mean=clone(moments.mean), square=clone(moments.square))
