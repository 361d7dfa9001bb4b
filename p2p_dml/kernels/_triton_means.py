"""Means of models on a GPU in one pass over its memory, by Triton, which comes with CUDA's torch.

Imported only where CUDA tensors and Triton are (see `_fused`). A program works on BLOCK coordinates
of a few models at a time. It reads these twice, the second time from the cache: for the largest
values, which sums are relative to, and for the sums. Where later models have larger values, what
was summed so far is scaled down to them.

Models lie wherever they are, so their addresses are handed over in a table in the device's memory,
and a program that was compiled for some number of models works for all. The table also has the
weights and the degree: Triton makes arguments that are Python floats float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

_BLOCK_BYTES = 4096
"""A program's coordinates of one model: two vectors for each thread."""

_NUM_WARPS = 4
_VECTOR_BYTES = 16

_AT_ONCE = tl.constexpr(8)  # models, so that those of all programs at work stay in the cache
_LN_2 = tl.constexpr(0.6931471805599453)
_LOG_OF_ZERO = tl.constexpr(-1e4)  # its exponential is 0 in every dtype, and 0 times it is no NaN
_SMALLEST, _LARGEST = tl.constexpr(2.0**-126), tl.constexpr(2.0**126)
_NAN_COUNTS = tl.constexpr(tl.PropagateNan.ALL)

_program: Callable[[Callable[..., Any]], Any] = triton.jit


def mean(xs: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """Fill the contiguous `out`, which may be one of xs, with the sum of weight times x."""
    dense = [x.contiguous() for x in xs]
    table, aligned = _table(dense, weights), _are_aligned(dense)
    if out.numel():
        with torch.cuda.device(_device(out)):
            _mean[_grid(out)](
                table,
                out,
                out.numel(),
                len(dense),
                BLOCK=_block(out),
                ALIGNED=aligned,
                num_warps=_NUM_WARPS,
            )
    increment_version(out)


def power_mean(
    xs: Sequence[Tensor], weights: Sequence[float], p: float, out: Tensor, slope: Tensor | None
) -> None:
    """Fill the contiguous `out`, which may be one of xs, and `slope` if it is wanted."""
    dense, ends = [x.contiguous() for x in xs], [x for x in (out, slope) if x is not None]
    table, aligned = _table(dense, [*weights, p]), _are_aligned(dense)
    if out.numel():
        with torch.cuda.device(_device(out)):
            _power_mean[_grid(out)](
                table,
                out,
                ends[-1],
                out.numel(),
                len(dense),
                BLOCK=_block(out),
                ALIGNED=aligned,
                STEEP=slope is not None,
                num_warps=_NUM_WARPS,
            )
    increment_version(ends)


def _device(x: Tensor) -> int:
    """The number of a tensor's device; -1, for none, on the CPU (Triton's interpreter)."""
    return x.get_device()


def _block(out: Tensor) -> int:
    """How many coordinates a program works on."""
    return _BLOCK_BYTES // out.element_size()


def _grid(out: Tensor) -> tuple[int]:
    return (-(-out.numel() // _block(out)),)


def _table(xs: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
    """Addresses of the models, then numbers as the bits of float64, on the models' device."""
    addresses = torch.tensor([x.data_ptr() for x in xs], dtype=torch.int64)
    bits = torch.tensor(numbers, dtype=torch.float64).view(torch.int64)
    table = torch.cat([addresses, bits])
    # From pageable memory the copy would wait for what the device has to do before.
    return table.pin_memory().to(xs[0].device, non_blocking=True) if xs[0].is_cuda else table


def _are_aligned(xs: Sequence[Tensor]) -> bool:
    """Whether all can be read several values at a time."""
    return all(x.data_ptr() % _VECTOR_BYTES == 0 for x in xs)


@_program
def _values(
    table: tl.tensor,
    j: tl.tensor,
    out: tl.tensor,
    at: tl.tensor,
    inside: tl.tensor,
    ALIGNED: tl.constexpr,
) -> tl.tensor:
    """The coordinates `at` of model j, of the dtype of `out`."""
    address = tl.load(table + j).to(out.dtype)
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return tl.load(address + at, mask=inside, other=0.0)


@_program
def _number(table: tl.tensor, j: tl.tensor) -> tl.tensor:
    return tl.load(table + j).to(tl.float64, bitcast=True)


@_program
def _log(x: tl.tensor) -> tl.tensor:
    return tl.maximum(tl.log2(x), _LOG_OF_ZERO, propagate_nan=_NAN_COUNTS)


@_program
def _between(x: tl.tensor, low: tl.constexpr, high: tl.constexpr) -> tl.tensor:
    x = tl.maximum(x, low, propagate_nan=_NAN_COUNTS)
    return tl.minimum(x, high, propagate_nan=_NAN_COUNTS)


@_program
def _scale(largest: tl.tensor) -> tl.tensor:
    """1/M, cut where it would overflow or lose digits."""
    return 1.0 / _between(largest, _SMALLEST, _LARGEST)


@_program
def _mean(
    table: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    dtype: tl.constexpr = out.dtype.element_ty
    total = tl.zeros([BLOCK], dtype)
    for j in tl.range(0, k, loop_unroll_factor=4):
        x = _values(table, j, out, at, inside, ALIGNED)
        total += x * _number(table, k + j).to(dtype)
    tl.store(out + at, total, mask=inside)


@_program
def _power_mean(
    table: tl.tensor,
    out: tl.tensor,
    slope: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    STEEP: tl.constexpr,
) -> None:
    """As in `_power`: M sgn(S)|S|^(1/p), its slope M sgn(S)|S|^(1/p) (S'/(p S) - ln|S|/p^2)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    dtype: tl.constexpr = out.dtype.element_ty
    p = _number(table, 2 * k).to(dtype)
    largest = tl.zeros([BLOCK], dtype)
    total = tl.zeros([BLOCK], dtype)
    change = tl.zeros([BLOCK], dtype)
    for begin in tl.range(0, k, _AT_ONCE):
        end = tl.minimum(begin + _AT_ONCE, k)
        before = largest
        for j in tl.range(begin, end, loop_unroll_factor=4):
            x = _values(table, j, out, at, inside, ALIGNED)
            largest = tl.maximum(largest, tl.abs(x), propagate_nan=_NAN_COUNTS)
        # Dividing each by M would cost as much as all else. M is scaled like the others, so its own
        # logarithm makes up for what the scale is not 1/M.
        scale = _scale(largest)
        top = _log(largest * scale)
        shift = _log(before * scale) - top
        factor = tl.exp2(shift * p)
        change = factor * (change + shift * total)
        total = factor * total
        for j in tl.range(begin, end, loop_unroll_factor=2):
            x = _values(table, j, out, at, inside, ALIGNED)
            log = _log(tl.abs(x) * scale) - top
            term = tl.exp2(log * p) * _number(table, k + j).to(dtype)
            term = tl.where(x < 0.0, -term, term)
            total += term
            change += term * log
    level = tl.log2(tl.abs(total)) / p
    # Rounding may carry |S| past 1, and M S past the largest finite number.
    root = tl.exp2(tl.minimum(level, 0.0, propagate_nan=_NAN_COUNTS))
    root = tl.where(total < 0.0, -root, root)
    tl.store(out + at, root * largest, mask=inside)
    if STEEP:
        steep = _slope(total, change, level, p) * root
        tl.store(slope + at, _between(steep, -1.0, 1.0) * largest, mask=inside)


@_program
def _slope(total: tl.tensor, change: tl.tensor, level: tl.tensor, p: tl.tensor) -> tl.tensor:
    """d ln(w̄/M) / dp = S'/(p S) - ln|S|/p^2; 0 where S is 0, there it is not finite."""
    return tl.where(total == 0.0, 0.0, _LN_2 * (change / total - level) / p)
