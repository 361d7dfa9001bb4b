"""The compiled kernels of _native.c, if they were built and are not switched off.

They take float32 and float64 on the CPU and let go of the interpreter's lock. What they write into
a tensor raises its version counter, as an operation of torch in place would.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

SWITCH = "P2P_DML_NATIVE"
"""Environment variable: 0 leaves the compiled kernels alone, for comparison or to find a fault."""

_POINTERS, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_MODELS = [_POINTERS, _POINTERS, _INT64, _INT64, _INT, _INT]
_ARGUMENTS: Mapping[str, list[Any]] = {
    "p2p_mean": [*_MODELS, _POINTERS],
    "p2p_power_mean": [*_MODELS, ctypes.c_double, _POINTERS, _POINTERS],
    "p2p_dots": [_POINTERS, _INT64, _INT, _POINTERS],
    "p2p_copy": [_POINTERS, _INT64, _INT, _INT, _POINTERS],
}
_RESULTS = {"p2p_copy": _INT}


def load(switch: str) -> ctypes.CDLL | None:
    """The library; None if it is switched off, was not built or is of another machine."""
    spec = importlib.util.find_spec("p2p_dml.kernels._compiled")
    if switch == "0" or spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError:
        return None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _RESULTS.get(name)
    return library


library = load(os.environ.get(SWITCH, ""))


def takes(xs: Sequence[Tensor]) -> bool:
    """Whether the compiled kernels can be used for these tensors of one shape."""
    dtype = xs[0].dtype
    if library is None or dtype not in (torch.float32, torch.float64):
        return False
    return all(x.is_cpu and x.dtype == dtype for x in xs)


def mean(xs: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """Fill the contiguous `out`, which may be one of xs, with the sum of weight times x."""
    assert library is not None
    dense = [x.contiguous() for x in xs]
    pointers, shares = _addresses(dense), array("d", weights)
    library.p2p_mean(*_models(dense, pointers, shares), out.data_ptr())
    increment_version(out)


def copy(x: Tensor, out: Tensor) -> bool:
    """Fill the contiguous `out` with x; whether all of it is finite."""
    assert library is not None
    dense = x.contiguous()
    pointers, wide = _addresses([dense]), x.dtype == torch.float64
    threads = torch.get_num_threads()
    found = library.p2p_copy(_address(pointers), x.numel(), wide, threads, out.data_ptr())
    increment_version(out)
    return bool(found)


def power_mean(
    xs: Sequence[Tensor],
    weights: Sequence[float],
    p: float,
    out: Tensor | None,
    slope: Tensor | None,
) -> None:
    """Fill the contiguous `out`, which may be one of xs, and `slope`; None if not wanted."""
    assert library is not None
    dense = [x.contiguous() for x in xs]
    pointers, shares = _addresses(dense), array("d", weights)
    ends = [None if x is None else x.data_ptr() for x in (out, slope)]
    library.p2p_power_mean(*_models(dense, pointers, shares), p, *ends)
    increment_version([x for x in (out, slope) if x is not None])


def dots(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """x·y, x·x and y·y in float64."""
    assert library is not None
    dense, sums = [x.contiguous(), y.contiguous()], array("d", [0.0] * 3)
    pointers, wide = _addresses(dense), x.dtype == torch.float64
    library.p2p_dots(_address(pointers), x.numel(), wide, _address(sums))
    xy, xx, yy = sums
    return xy, xx, yy


def _models(
    xs: Sequence[Tensor], pointers: array[int], shares: array[float]
) -> tuple[int, int, int, int, bool, int]:
    """The first arguments of both means; `pointers` and `shares` must outlive the call."""
    n, wide = xs[0].numel(), xs[0].dtype == torch.float64
    return _address(pointers), _address(shares), len(xs), n, wide, torch.get_num_threads()


def _addresses(xs: Sequence[Tensor]) -> array[int]:
    return array("Q", [x.data_ptr() for x in xs])


def _address(values: array[int] | array[float]) -> int:
    return values.buffer_info()[0]
