"""Three layers of 64 that both networks stand on: drawn, run, and differentiated by hand.

By hand because it runs at every peer in every round: autograd takes several times as long on
layers this small. Tensors are float64, by the names `hidden/0..2` [64, ·] and, if there are
offsets, `offset/0..2` [64].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, linear

from p2p_dml.types import Tensors

WIDTH = 64
DEPTH = 3


def draw(generator: torch.Generator, size: int, leak: float) -> Tensors:
    """Layers over an input of `size`; the gain keeps the spread of values from layer to layer."""
    gain = math.sqrt(2 / ((1 + leak**2) * WIDTH))
    sizes = [size] + [WIDTH] * (DEPTH - 1)
    return {
        f"hidden/{depth}": gain
        * torch.randn((WIDTH, size), generator=generator, dtype=torch.float64)
        for depth, size in enumerate(sizes)
    }


def forward(weights: Mapping[str, Tensor], x: Tensor, leak: float) -> list[Tensor]:
    """The input and the output of each layer; `leak` is the slope of the negative side."""
    outputs = [x]
    for depth in range(DEPTH):
        offset = weights.get(f"offset/{depth}")
        z = linear(outputs[-1], weights[f"hidden/{depth}"], offset)
        outputs.append(leaky_relu(z, leak))
    return outputs


def backward(
    weights: Mapping[str, Tensor], outputs: Sequence[Tensor], top: Tensor, leak: float
) -> list[Tensor]:
    """From the gradient in the last output, [64] or [rows, 64], to those of the layers.

    Returns the gradient in the input, then that in each layer's sum before its bend; the gradient
    in `hidden/d` is the outer product of the latter and `outputs[d]`.
    """
    deltas: list[Tensor] = []
    for depth in reversed(range(DEPTH)):
        delta = torch.where(outputs[depth + 1] > 0, top, top * leak)
        deltas.append(delta)
        top = delta @ weights[f"hidden/{depth}"]
    return [top, *reversed(deltas)]
