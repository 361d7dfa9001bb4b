"""The network of the HyperPrism paper: softmax heads over odd degrees, plain gradient descent.

Source: Du et al. 2024, section 3.4 and eq. (7). Stated there: an embedding v that is trained, three
layers of 64, a softmax head per part of the model, the chain rule with a constant step. Not stated,
and chosen here: ReLU, an embedding of 64 normal values, He's draw of the layers, and what the
softmax weighs: the odd degrees, so that p = sum_k softmax_k P_k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from p2p_dml.hypernet._trunk import DEPTH, WIDTH, backward, draw, forward
from p2p_dml.types import Tensors

EMBEDDING = 64
LEAK = 0.0
STEEPEST = 64.0
"""Bound on the change of a logit per degree that a start asks for."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PaperNetState:
    """Trainable float64 tensors by name, and the degree that they give each of the G groups.

    Names: `embedding` [64], `hidden/0..2` [64, 64] and `offset/0..2` [64], `head` [G, K, 64] and
    `head_offset` [G, K], with K odd degrees.
    """

    weights: Tensors
    degrees: Mapping[str, float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PaperNet:
    """p = sum_k softmax_k P_k over the odd degrees P = 1, 3, … up to p_max; plain SGD.

    `rate` is the step, the paper's 0.01, on the raw -<Δ, dw̄/dp>. The degree never quite reaches 1
    or the largest odd degree. Raises ValueError for values out of range.
    """

    p_max: float = 15.0
    rate: float = 0.01

    def __post_init__(self) -> None:
        if not 3 <= self.p_max < math.inf:
            raise ValueError(
                f"p_max = {self.p_max}: expected a finite number of at least 3, as the paper's "
                "network chooses among odd degrees"
            )
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate = {self.rate}: expected a finite number of at least 0")

    def init(self, start: Mapping[str, float | None], generator: torch.Generator) -> PaperNetState:
        """Draw the private weights; None, as in the paper, takes the degree that is drawn.

        Any other is met by offsets of the softmax linear in its degrees. Raises ValueError for
        one that is not between 1 and the largest odd degree.
        """
        top = self._candidates[-1].item()
        for group, degree in start.items():
            if degree is not None and not 1 < degree < top:
                raise ValueError(f"{group}: expected a degree between 1 and {top}, got {degree}")
        weights = _draw(generator, len(start), len(self._candidates))
        for row, degree in enumerate(start.values()):
            if degree is not None:
                logits = _logits(weights, forward(weights, weights["embedding"], LEAK)[-1])[row]
                weights["head_offset"][row] = _tilt(logits, self._candidates, degree)
        return self._state(weights, tuple(start))

    def degrees(self, state: PaperNetState) -> dict[str, float]:
        """Degree of each layer group."""
        return dict(state.degrees)

    def step(self, state: PaperNetState, signal: Mapping[str, float]) -> PaperNetState:
        """One step of gradient descent on dL/dp = -<descent, dw̄/dp>, of all groups at once."""
        pulls = [signal.get(group, 0.0) for group in state.degrees]
        weights = self._descend(state.weights, self.rate * torch.tensor(pulls, dtype=torch.float64))
        return self._state(weights, tuple(state.degrees))

    def _descend(self, weights: Mapping[str, Tensor], pull: Tensor) -> Tensors:
        """New weights, moved by `pull` [G] times the gradient of each group's degree."""
        outputs = forward(weights, weights["embedding"], LEAK)
        share = torch.softmax(_logits(weights, outputs[-1]), 1)
        above = self._candidates - (share @ self._candidates).unsqueeze(1)
        logit = pull.unsqueeze(1) * share * above  # dp/dlogit_k = softmax_k (P_k - p)
        top = torch.einsum("gk,gkh->h", logit, weights["head"])
        x_grad, *deltas = backward(weights, outputs, top, LEAK)
        new = {
            "embedding": weights["embedding"] + x_grad,
            "head": weights["head"] + logit.unsqueeze(2) * outputs[-1],
            "head_offset": weights["head_offset"] + logit,
        }
        for depth in range(DEPTH):
            hidden, offset = f"hidden/{depth}", f"offset/{depth}"
            new[hidden] = torch.addr(weights[hidden], deltas[depth], outputs[depth])
            new[offset] = weights[offset] + deltas[depth]
        return new

    def _state(self, weights: Tensors, groups: tuple[str, ...]) -> PaperNetState:
        outputs = forward(weights, weights["embedding"], LEAK)
        share = torch.softmax(_logits(weights, outputs[-1]), 1)
        p = (share @ self._candidates).clamp(1.0, self._candidates[-1].item())
        return PaperNetState(weights=weights, degrees=dict(zip(groups, p.tolist(), strict=True)))

    @property
    def _candidates(self) -> Tensor:
        """The odd degrees, [K]."""
        return torch.arange(1, math.floor(self.p_max) + 1, 2, dtype=torch.float64)


def _draw(generator: torch.Generator, num_groups: int, num_degrees: int) -> Tensors:
    embedding = torch.randn(EMBEDDING, generator=generator, dtype=torch.float64)
    hidden = draw(generator, EMBEDDING, LEAK)
    shape = (num_groups, num_degrees, WIDTH)
    head = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(WIDTH)
    offsets = {f"offset/{depth}": torch.zeros(WIDTH, dtype=torch.float64) for depth in range(DEPTH)}
    return {
        "embedding": embedding,
        **hidden,
        **offsets,
        "head": head,
        "head_offset": torch.zeros(shape[:2], dtype=torch.float64),
    }


def _logits(weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    """Logits of the odd degrees for each group, [G, K]."""
    return weights["head"] @ hidden + weights["head_offset"]


def _tilt(logits: Tensor, candidates: Tensor, degree: float) -> Tensor:
    """Offsets, linear in the candidates, that give the softmax the mean `degree`; by bisection."""
    low, high = -STEEPEST, STEEPEST
    for _ in range(100):
        middle = (low + high) / 2
        share = torch.softmax(logits + middle * candidates, 0)
        if torch.dot(share, candidates) < degree:
            low = middle
        else:
            high = middle
    return (low + high) / 2 * candidates
