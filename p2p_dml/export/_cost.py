"""What a model costs, and how far two models' outputs are apart."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, sample: Tensor) -> int:
    """Multiply-adds of linear layers and convolutions in a forward pass of `sample` [1, …]."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(sample)
    return int(counter.get_total_flops()) // 2  # torch counts a multiply-add as two operations


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
