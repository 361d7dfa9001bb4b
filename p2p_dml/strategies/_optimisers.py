"""Optimisers for strategies that ask for gradients and step themselves.

They compute what torch.optim computes; what they remember is handed in, as it is a strategy's
state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from p2p_dml.strategies._checks import check_positive, check_share
from p2p_dml.types import Tensors

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum and weight decay.

    Tensors of one dimension are not decayed: among them may be some that are not trained.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)
        check_share(momentum=self.momentum)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay = {self.weight_decay}: expected at least 0")

    def at_rest(self, x: Mapping[str, Tensor]) -> Tensors:
        """Momenta before the first step; none if there is no momentum."""
        return {name: torch.zeros_like(each) for name, each in x.items() if self.momentum}

    def step(self, x: Mapping[str, Tensor], gradient: Tensors, momenta: Tensors) -> None:
        """Move `x` and `momenta` in place."""
        for name, each in x.items():
            move = gradient[name]
            if self.weight_decay and each.dim() > 1:
                move = move.add(each, alpha=self.weight_decay)
            if self.momentum:
                move = momenta[name].mul_(self.momentum).add_(move)
            each.detach().sub_(move, alpha=self.lr)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Adam's running means of gradients and of their squares, after so many steps."""

    mean: Tensors
    square: Tensors
    steps: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Adam with torch's defaults. Source: Kingma, Ba 2015, algorithm 1."""

    lr: float

    def __post_init__(self) -> None:
        check_positive(lr=self.lr)

    def at_rest(self, x: Mapping[str, Tensor]) -> Moments:
        """Moments before the first step."""
        mean, square = ({name: torch.zeros_like(each) for name, each in x.items()} for _ in "ms")
        return Moments(mean=mean, square=square)

    def step(self, x: Mapping[str, Tensor], gradient: Tensors, moments: Moments) -> Moments:
        """Move `x` and the tensors of `moments` in place; returns these with one more step."""
        count = moments.steps + 1
        size, root = self.lr / (1 - _BETA_1**count), math.sqrt(1 - _BETA_2**count)
        for name, each in x.items():
            g = gradient[name]
            mean = moments.mean[name].lerp_(g, 1 - _BETA_1)
            square = moments.square[name].mul_(_BETA_2).addcmul_(g, g, value=1 - _BETA_2)
            each.detach().addcdiv_(mean, (square.sqrt() / root).add_(_EPSILON), value=-size)
        return Moments(mean=moments.mean, square=moments.square, steps=count)
