"""DisPFL: a sparse model of each peer's own; what two of them share is averaged."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from p2p_dml.kernels.masks import top_share
from p2p_dml.strategies._checks import check_count, check_positive, check_share
from p2p_dml.strategies._draws import PrivateDraws
from p2p_dml.strategies._masked import figures_of, in_turns, num_ones, put_on, weights_of
from p2p_dml.strategies._optimisers import SGD
from p2p_dml.strategies._sparse import SparseCode
from p2p_dml.tensors import join
from p2p_dml.types import Coded, Inbox, Learner, Links, Need, PeerId, Sent, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DisPFLState:
    """`masks` of kept weights, all of them before the first round; `seed` of private draws."""

    masks: Tensors
    seed: int
    rounds: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DisPFL:
    """Decentralised sparse training: each peer keeps a share `density` of the weights, its own.

    A round: w <- m ⊙ (Σ_j w_j / Σ_j m_j) over oneself and all neighbours heard, coordinate by
    coordinate; `steps` steps of SGD on the kept weights. From the second round on it opens with
    the mask search that ends the paper's round, so that what is evaluated has been trained: of
    every tensor the smallest weights are dropped, and as many places are taken in where the
    gradient of a mini-batch is largest (`regrow` "gradient") or at "random", starting from 0.

    Densities of tensors follow the Erdős–Rényi kernel; a list deals `density` to the peers in
    turns. `prune` a and `prune_rounds` T: the share (a / 2) (1 + cos(π t / T)) of kept weights is
    dropped after round t + 1. The step size of round t + 1 is lr · lr_decay^t; `clip_norm`
    bounds the norm of a gradient, before it is masked (`inf`: not at all).
    Source: Dai et al. 2022, algorithms 1 and 2, settings of the published code, whose 5 passes over
    the data a round are `steps` of mini-batches here. Densities: Evci et al. 2020.
    """

    density: float | tuple[float, ...] = 0.5
    prune: float = 0.5
    prune_rounds: int = 500
    regrow: Literal["gradient", "random"] = "gradient"
    steps: int = 5
    lr: float = 0.1
    lr_decay: float = 0.998
    weight_decay: float = 5e-4
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        check_share(prune=self.prune)
        check_count(prune_rounds=self.prune_rounds, steps=self.steps)
        check_positive(lr_decay=self.lr_decay)
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm = {self.clip_norm}: expected a number above 0, or inf")
        densities = in_turns(self.density)
        if not densities or not all(0 < each <= 1 for each in densities):
            raise ValueError(f"density = {self.density}: expected shares above 0, at most 1")
        self._sgd(0)  # its checks

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.EXACT, Need.NO_MATRIX_BUFFERS})

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> DisPFLState:
        """The dense model; which weights a peer keeps is drawn in the first round."""
        masks = {name: torch.ones_like(x).bool() for name, x in weights_of(learner).items()}
        return DisPFLState(masks=masks, seed=seed)

    def round(
        self, state: DisPFLState, learner: Learner, links: Links
    ) -> Generator[Sent, Inbox, DisPFLState]:
        """Search a mask, exchange sparse models, average, train."""
        masks = self._next_masks(state, learner, links.now.me)
        put_on(learner, learner.params, masks)
        code = SparseCode(like=learner.params, kept=lambda peer: self._kept(learner, peer))
        payload = code.payload(learner.params, masks)
        inbox = yield Coded(links.now.broadcast(payload), code.read)
        _average(learner, masks, inbox)
        self._train(learner, masks, state.rounds)
        return DisPFLState(masks=masks, seed=state.seed, rounds=state.rounds + 1)

    def report(self, state: DisPFLState) -> Mapping[str, float]:
        """Shares of kept weights, and of filters and neurons that are empty."""
        return figures_of(state.masks)

    def _next_masks(self, state: DisPFLState, learner: Learner, me: PeerId) -> Tensors:
        """Masks drawn at random at first; later those of the last round, some places exchanged."""
        weights = weights_of(learner)
        draws = PrivateDraws(state.seed, state.rounds)
        if state.rounds == 0:
            each = zip(state.masks.items(), self._kept(learner, me), strict=True)
            return {name: _largest(draws.uniform(m), m, kept) for (name, m), kept in each}
        rate = self._prune_rate(state.rounds - 1)
        if rate == 0:
            return state.masks
        if self.regrow == "gradient":
            found = learner.grad(learner.params)
            scores = {name: found[name].abs() for name in weights}
        else:
            scores = {name: draws.uniform(x) for name, x in weights.items()}
        return {
            name: _exchanged(mask, weights[name], scores[name], rate)
            for name, mask in state.masks.items()
        }

    def _train(self, learner: Learner, masks: Tensors, t: int) -> None:
        """Steps of SGD, on the kept weights and on what has one dimension."""
        x, sgd = learner.params, self._sgd(t)
        for _ in range(self.steps):
            g = learner.grad(x)
            _clip(g, self.clip_norm)
            for name, mask in masks.items():
                g[name].mul_(mask)
            sgd.step(x, g, {})

    def _kept(self, learner: Learner, peer: PeerId) -> list[int]:
        """How many weights of each tensor a peer keeps."""
        densities, weights = in_turns(self.density), weights_of(learner)
        return num_ones(weights, kernel_densities(weights, densities[peer % len(densities)]))

    def _prune_rate(self, t: int) -> float:
        """The share of kept weights that is dropped after `t` + 1 rounds."""
        return self.prune / 2 * (1 + math.cos(math.pi * min(1.0, t / self.prune_rounds)))

    def _sgd(self, t: int) -> SGD:
        return SGD(lr=self.lr * self.lr_decay**t, weight_decay=self.weight_decay)


def kernel_densities(weights: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """Densities of tensors by the Erdős–Rényi kernel: Σ sizes / Π sizes times a common factor.

    The factor is such that a share `density` of all weights is kept; no density is above 1.
    Source: Evci et al. 2020 (RigL), section 3.
    """
    numels = {name: x.numel() for name, x in weights.items()}
    found: dict[str, float] = {}
    while rest := [name for name in weights if name not in found]:
        wanted = density * sum(numels.values()) - sum(numels[name] for name in found)
        factor = wanted / sum(sum(weights[name].shape) for name in rest)
        each = {name: factor * sum(weights[name].shape) / numels[name] for name in rest}
        full = [name for name in rest if each[name] > 1]
        found |= dict.fromkeys(full, 1.0) if full else each
    return found


def _average(learner: Learner, masks: Tensors, inbox: Inbox) -> None:
    """Coordinate by coordinate the mean over those that have it, in place."""
    own = learner.params
    heard, _ = inbox.with_own(join(x=own, m=masks))
    for name, x in own.items():
        total = functools.reduce(torch.add, [each[f"x/{name}"] for each in heard])
        if name in masks:
            counts = torch.stack([each[f"m/{name}"] for each in heard]).sum(0)
            x.detach().copy_(total / counts.clamp(min=1) * masks[name])
        else:
            x.detach().copy_(total / len(heard))


def _exchanged(mask: Tensor, weight: Tensor, score: Tensor, rate: float) -> Tensor:
    """`mask` without a share `rate` of its places, the smallest weights, and with as many others.

    Those have the largest `score` of what is then free.
    """
    num_kept = int(mask.count_nonzero())
    num_dropped = math.ceil(rate * num_kept)
    left = _largest(weight.abs(), mask, num_kept - num_dropped)
    return left | _largest(score, ~left, num_dropped)


def _largest(x: Tensor, among: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest values of those that `among` is set for, which is at least one.

    The others are left out, not marked by a number: many equal ones would be slow to sort.
    """
    values = x[among]
    return torch.zeros_like(among).masked_scatter_(among, top_share(values, count / len(values)))


def _clip(gradient: Tensors, max_norm: float) -> None:
    """Scale in place so that the norm over all tensors is at most `max_norm`; inf: not at all."""
    if math.isinf(max_norm):
        return
    norms = [torch.linalg.vector_norm(g) for g in gradient.values()]
    factor = (max_norm / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)).clamp(max=1.0)
    for g in gradient.values():
        g.mul_(factor)
