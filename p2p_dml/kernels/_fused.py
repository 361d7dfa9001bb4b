"""The fused kernels for GPUs (_triton_means.py), where there are CUDA tensors and Triton is."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from p2p_dml.kernels import _native


def takes(xs: Sequence[Tensor]) -> bool:
    """Whether the fused kernels can be used for these tensors of one shape."""
    first = xs[0]
    if not first.is_cuda or first.dtype not in (torch.float32, torch.float64):
        return False
    alike = all(x.device == first.device and x.dtype == first.dtype for x in xs)
    return alike and kernels() is not None


def mean(xs: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """Fill the contiguous `out`, which may be one of xs, with the sum of weight times x."""
    found = kernels()
    assert found is not None
    found.mean(xs, weights, out)


def power_mean(
    xs: Sequence[Tensor], weights: Sequence[float], p: float, out: Tensor, slope: Tensor | None
) -> None:
    """Fill the contiguous `out`, which may be one of xs, and `slope` if it is wanted."""
    found = kernels()
    assert found is not None
    found.power_mean(xs, weights, p, out, slope)


@functools.cache
def kernels() -> ModuleType | None:
    """The module of the kernels; None where they cannot be used or are switched off.

    To be called once there are CUDA tensors, as it tries them. Imported late: that takes a second.
    """
    if os.environ.get(_native.SWITCH) == "0" or importlib.util.find_spec("triton") is None:
        return None
    try:
        found = importlib.import_module("p2p_dml.kernels._triton_means")
        one = torch.ones(1, device="cuda")
        found.mean([one], [1.0], one)
    except Exception:  # another Triton, no C compiler with Python's headers, an unknown GPU
        return None
    return found
