"""What a model costs, and how far two models' outputs are apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def multiply_adds(model: nn.Module, sample: Tensor) -> int:
    """Multiply-adds of linear layers and convolutions in a forward pass of `sample` [1, …].

    Those of other layers do not count, however they are computed.
    """
    counts: list[int] = []

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        counts.append(output.numel() * weight[0].numel())

    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    layers = [layer for layer in model.modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.inference_mode():
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def num_parameters(model: nn.Module) -> int:
    """Number of floating-point numbers that a model is made of."""
    return sum(x.numel() for x in model.state_dict().values() if x.is_floating_point())


def largest_difference(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[float, float]:
    """Largest absolute difference of two models' outputs on samples `x`, and largest output."""
    with torch.inference_mode():
        a, b = first(x).double(), second(x).double()
        return float((a - b).abs().max()), float(a.abs().max())


def time_ratio(
    first: nn.Module,
    second: nn.Module,
    x: Tensor,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """How long a forward pass of `second` takes where one of `first` takes 1.

    The shortest of `repeats` passes counts; the two take turns, so what slows the machine down for
    a while slows both.
    """
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(repeats):
            for model, taken in zip((first, second), times, strict=True):
                begin = clock()
                model(x)
                taken.append(clock() - begin)
    return min(times[1]) / min(times[0])
