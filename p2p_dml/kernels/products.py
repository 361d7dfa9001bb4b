"""Inner products of large tensors, summed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from p2p_dml.kernels import _native

CHUNK = 1 << 16
"""Elements that torch turns into float64 at a time: no memory of the tensors' size is needed."""


def dots(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """x·y, x·x and y·y of two tensors of one shape and dtype, summed in float64.

    The order of the sums depends on the number of values only, not on threads.
    """
    if _native.takes([x, y]):
        return _native.dots(x, y)
    a, b = (torch.split(t.detach().reshape(-1), CHUNK) for t in (x, y))
    parts = [_products(u.double(), v.double()) for u, v in zip(a, b, strict=True)]
    xy, xx, yy = (sum(terms) for terms in zip(*parts, strict=True))
    return xy, xx, yy


def _products(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    return torch.dot(x, y).item(), torch.dot(x, x).item(), torch.dot(y, y).item()
