"""Arithmetic on dict[str, Tensor]: the one shape in which models, gradients and messages travel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from p2p_dml.types import Tensors


def tmap(
    function: Callable[..., Tensor], first: Mapping[str, Tensor], *rest: Mapping[str, Tensor]
) -> Tensors:
    """Apply `function` name by name; every mapping has the names of the first."""
    return {name: function(x, *(other[name] for other in rest)) for name, x in first.items()}


def clone(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copy values, detached from any autograd graph."""
    return {name: x.detach().clone() for name, x in tensors.items()}


def join(**channels: Mapping[str, Tensor]) -> Tensors:
    """Put several channels into one mapping: `join(x=a, y=b)` has names `x/…` and `y/…`."""
    return {
        f"{channel}/{name}": x
        for channel, tensors in channels.items()
        for name, x in tensors.items()
    }


def part(tensors: Mapping[str, Tensor], channel: str) -> Tensors:
    """Take one channel out of a `join`ed mapping."""
    prefix = channel + "/"
    return {name[len(prefix) :]: x for name, x in tensors.items() if name.startswith(prefix)}


def num_elements(tensors: Mapping[str, Tensor]) -> int:
    """Total number of elements."""
    return sum(x.numel() for x in tensors.values())


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Total size of the values in bytes."""
    return sum(x.nbytes for x in tensors.values())


def mismatch(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Say how `got` differs from `expected` in names, dtypes or shapes; None if it conforms."""
    if got.keys() != expected.keys():
        absent = sorted(expected.keys() - got.keys())
        extra = sorted(got.keys() - expected.keys())
        return f"tensor names differ: missing {absent or 'none'}, unexpected {extra or 'none'}"
    for name, x in got.items():
        want = expected[name]
        if x.dtype != want.dtype or x.shape != want.shape:
            return (
                f"tensor {name!r}: expected {want.dtype} {list(want.shape)}, "
                f"got {x.dtype} {list(x.shape)}"
            )
    return None


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity; None if all are finite.

    Sums tell, in a fiftieth of the time; finite numbers whose sum is not are then looked at.
    """
    floats = {name: x for name, x in tensors.items() if x.is_floating_point()}
    if not floats or math.isfinite(torch.stack([x.sum().double() for x in floats.values()]).sum()):
        return None
    return next((name for name, x in floats.items() if not torch.isfinite(x).all()), None)
