"""The default network: bounded degrees, an output that never saturates, normalised steps.

ln p = base + h(E(v)): three layers of 64 over an embedding v, as in Du et al. 2024 (HyperPrism,
section 3.4), with two changes that keep it learning. The output is added to an independent base
and the input [cos, sin] has a constant norm (Ortiz et al. 2023), in place of a softmax, which
saturates. A step is normalised by the gradient's own length, so its size does not depend on the
size of the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from p2p_dml.hypernet._trunk import DEPTH, WIDTH, backward, draw, forward
from p2p_dml.types import Tensors

EMBEDDING = 16
LEAK = 0.1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HyperNetState:
    """Trainable float64 tensors by name, and the averaged signal of each of the G layer groups.

    Names: `embedding` [16], `hidden/0..2` [64, ·], `head` [G, 64], `base` [G].
    """

    weights: Tensors
    signal: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HyperNet:
    """Degrees in [1, p_max], one per layer group, learned by normalised gradient steps.

    `rate`: change of ln p per round at a signal of 1. `memory`: share of the averaged signal that
    is kept from round to round, in [0, 1). Raises ValueError for values out of range.
    """

    p_max: float = 15.0
    rate: float = 20.0
    memory: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.p_max < math.inf:
            raise ValueError(f"p_max = {self.p_max}: expected a finite number of at least 1")
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate = {self.rate}: expected a finite number of at least 0")
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory = {self.memory}: expected a number from 0 to below 1")

    def init(self, start: Mapping[str, float | None], generator: torch.Generator) -> HyperNetState:
        """Draw the private weights; `start` names the layer groups and their first degrees.

        None: ln p is drawn evenly from its range. Raises ValueError for a first degree outside
        [1, p_max].
        """
        for group, degree in start.items():
            if degree is not None and not 1 <= degree <= self.p_max:
                raise ValueError(f"{group}: expected a degree from 1 to {self.p_max}, got {degree}")
        weights = {
            "embedding": torch.randn(EMBEDDING, generator=generator, dtype=torch.float64),
            **draw(generator, 2 * EMBEDDING, LEAK),
            "head": torch.zeros((len(start), WIDTH), dtype=torch.float64),
        }
        base = torch.rand(len(start), generator=generator, dtype=torch.float64)
        base *= math.log(self.p_max)
        for row, degree in enumerate(start.values()):
            if degree is not None:
                base[row] = math.log(degree)
        return HyperNetState(weights=weights | {"base": base}, signal=dict.fromkeys(start, 0.0))

    def degrees(self, state: HyperNetState) -> dict[str, float]:
        """Degree of each layer group."""
        logs = _log_degrees(state.weights, _outputs(state.weights)).tolist()
        # Rounded, so that p = 1, the plain mean, is met exactly; exp may pass p_max by an ulp.
        return {
            group: min(round(math.exp(u), 12), self.p_max)
            for group, u in zip(state.signal, logs, strict=True)
        }

    def step(self, state: HyperNetState, signal: Mapping[str, float]) -> HyperNetState:
        """Ascend along each group's signal, which is not to depend on magnitudes.

        A group without a signal keeps its average and gets no step of its own.
        """
        average = dict(state.signal)
        for group, new in signal.items():
            average[group] = self.memory * average[group] + (1 - self.memory) * new
        changes = [self.rate * average[group] if group in signal else 0.0 for group in average]
        weights = _ascend(state.weights, changes)
        # Moving the base puts ln p back on its bound exactly and leaves the gradient alive there.
        u = _log_degrees(weights, _outputs(weights))
        weights["base"] += u.clamp(0.0, math.log(self.p_max)) - u
        return HyperNetState(weights=weights, signal=average)


def _outputs(weights: Mapping[str, Tensor]) -> list[Tensor]:
    angle = weights["embedding"] * (math.pi / 2)
    x = torch.cat([torch.cos(angle), torch.sin(angle)]) / math.sqrt(EMBEDDING)
    return forward(weights, x, LEAK)


def _log_degrees(weights: Mapping[str, Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """ln p of the groups, [G]."""
    return weights["base"] + weights["head"] @ outputs[-1]


def _ascend(weights: Mapping[str, Tensor], changes: Sequence[float]) -> Tensors:
    """New weights with ln p of each group changed by its value, to first order and one by one."""
    outputs = _outputs(weights)
    x_grad, *deltas = backward(weights, outputs, weights["head"], LEAK)  # rows: groups
    cosine, sine = outputs[0][:EMBEDDING], outputs[0][EMBEDDING:]
    v_grad = (x_grad[:, EMBEDDING:] * cosine - x_grad[:, :EMBEDDING] * sine) * (math.pi / 2)
    # The square of each group's gradient; 1 is the base's own derivative.
    lengths = 1 + outputs[-1].square().sum() + v_grad.square().sum(1)
    for delta, below in zip(deltas, outputs[:-1], strict=True):
        lengths = lengths + delta.square().sum(1) * below.square().sum()
    step = torch.tensor(changes, dtype=torch.float64) / lengths
    new = {
        "embedding": weights["embedding"] + step @ v_grad,
        "head": weights["head"] + torch.outer(step, outputs[-1]),
        "base": weights["base"] + step,
    }
    for depth in range(DEPTH):
        name = f"hidden/{depth}"
        new[name] = torch.addr(weights[name], step @ deltas[depth], outputs[depth])
    return new
