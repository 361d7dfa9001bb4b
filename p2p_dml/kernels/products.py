"""Inner products of large tensors, summed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from p2p_dml.kernels import _native
from p2p_dml.kernels._sizes import at_once

CHUNK = 1 << 16
"""Elements that torch turns into float64 at a time on a CPU, so that they stay in its cache."""


def dots(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """x·y, x·x and y·y of two tensors of one shape and dtype, summed in float64.

    The order of the sums depends on the number of values only, not on threads.
    """
    if _native.takes([x, y]):
        return _native.dots(x, y)
    size = at_once(x, CHUNK)
    a, b = (torch.split(t.detach().reshape(-1), size) for t in (x, y))
    sums = torch.zeros(3, dtype=torch.float64, device=x.device)
    for u, v in zip(a, b, strict=True):
        sums += _products(u.double(), v.double())
    xy, xx, yy = sums.tolist()  # the only wait for a device
    return xy, xx, yy


def _products(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([torch.dot(x, y), torch.dot(x, x), torch.dot(y, y)])
