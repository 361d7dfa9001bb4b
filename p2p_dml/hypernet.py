"""A peer's private network: from a trainable embedding to a degree for each layer group.

ln p = base + h(E(v)): three layers of 64 over an embedding v, as in Du et al. 2024 (HyperPrism,
section 3.4), with two changes that keep it learning. The output is added to an independent base
and the input [cos, sin] has a constant norm (Ortiz et al. 2023), in place of a softmax, which
saturates. A step is normalised by the gradient's own length, so its size does not depend on the
size of the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from p2p_dml.tensors import clone
from p2p_dml.types import Tensors

EMBEDDING = 16
WIDTH = 64
DEPTH = 3
LEAK = 0.1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HyperNetState:
    """Trainable float64 tensors by name, and the averaged signal of each layer group.

    Names: `embedding` [16], `hidden/0..2` [64, ·], `head/GROUP` [64], `base/GROUP` [].
    """

    weights: Tensors
    signal: Mapping[str, float] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.signal)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HyperNet:
    """Degrees in [1, p_max], one per layer group, learned by normalised gradient steps.

    `rate`: change of ln p per round at a signal of 1. `memory`: share of the averaged signal that
    is kept from round to round, in [0, 1). Raises ValueError for values out of range.
    """

    p_max: float = 15.0
    rate: float = 8.0
    memory: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.p_max < math.inf:
            raise ValueError(f"p_max = {self.p_max}: expected a finite number of at least 1")
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate = {self.rate}: expected a finite number of at least 0")
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory = {self.memory}: expected a number from 0 to below 1")

    def init(self, start: Mapping[str, float], generator: torch.Generator) -> HyperNetState:
        """Draw the private weights; `start` names the layer groups and their first degrees.

        Raises ValueError for a first degree outside [1, p_max].
        """
        for group, degree in start.items():
            if not 1 <= degree <= self.p_max:
                raise ValueError(f"{group}: expected a degree from 1 to {self.p_max}, got {degree}")
        weights = _draw(generator)
        for group, degree in start.items():
            weights[f"head/{group}"] = torch.zeros(WIDTH, dtype=torch.float64)
            weights[f"base/{group}"] = torch.tensor(math.log(degree), dtype=torch.float64)
        return HyperNetState(weights=weights, signal=dict.fromkeys(start, 0.0))

    def degrees(self, state: HyperNetState) -> dict[str, float]:
        """Degree of each layer group."""
        logs = {group: _log_degree(state.weights, group).item() for group in state.groups}
        # Rounding ln p to 1e-12 meets p = 1, the plain mean, exactly; exp may pass p_max by an ulp.
        return {group: min(math.exp(round(u, 12)), self.p_max) for group, u in logs.items()}

    def step(self, state: HyperNetState, signal: Mapping[str, float]) -> HyperNetState:
        """Descend along `signal`, the magnitude-free -dL/dp of each group, in [-1, 1].

        A group without a signal keeps its average and gets no step of its own.
        """
        average = dict(state.signal)
        weights = clone(state.weights)
        for group, new in signal.items():
            average[group] = self.memory * average[group] + (1 - self.memory) * new
            _ascend(weights, state.weights, group, self.rate * average[group])
        self._project(weights, state.groups)
        return HyperNetState(weights=weights, signal=average)

    def _project(self, weights: Tensors, groups: tuple[str, ...]) -> None:
        # Moving the base puts ln p back on its bound exactly and leaves the gradient alive there.
        for group in groups:
            u = _log_degree(weights, group)
            weights[f"base/{group}"] += u.clamp(0.0, math.log(self.p_max)) - u


def _draw(generator: torch.Generator) -> Tensors:
    """Embedding and hidden layers, scaled so that every layer's output has a length near 1."""
    gain = math.sqrt(2 / ((1 + LEAK**2) * WIDTH))
    sizes = [2 * EMBEDDING] + [WIDTH] * (DEPTH - 1)
    weights = {"embedding": torch.randn(EMBEDDING, generator=generator, dtype=torch.float64)}
    for depth, size in enumerate(sizes):
        normal = torch.randn((WIDTH, size), generator=generator, dtype=torch.float64)
        weights[f"hidden/{depth}"] = gain * normal
    return weights


def _log_degree(weights: Mapping[str, Tensor], group: str) -> Tensor:
    angle = weights["embedding"] * (math.pi / 2)
    hidden = torch.cat([torch.cos(angle), torch.sin(angle)]) / math.sqrt(EMBEDDING)
    for depth in range(DEPTH):
        hidden = leaky_relu(weights[f"hidden/{depth}"] @ hidden, LEAK)
    return weights[f"base/{group}"] + weights[f"head/{group}"] @ hidden


def _ascend(weights: Tensors, at: Mapping[str, Tensor], group: str, change: float) -> None:
    """Move `weights` so that ln p of `group` changes by `change`, to first order at `at`."""
    shared = ("embedding", *(f"hidden/{depth}" for depth in range(DEPTH)))
    names = (*shared, f"head/{group}", f"base/{group}")
    with torch.enable_grad():
        leaves = {name: at[name].detach().clone().requires_grad_() for name in names}
        gradient = torch.autograd.grad(_log_degree(leaves, group), tuple(leaves.values()))
    # At least 1: the base's own derivative.
    squared_length = sum(g.square().sum().item() for g in gradient)
    for name, g in zip(names, gradient, strict=True):
        weights[name].add_(g, alpha=change / squared_length)
