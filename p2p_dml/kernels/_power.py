"""Signed powers and scaled chunks, shared by the power mean and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK = 1 << 16
"""Elements worked on at a time: the scratch rows of a chunk stay in the processor's cache."""

Fold = Callable[[Sequence[Tensor], Tensor, Tensor], None]
"""(chunks of the inputs, scratch rows [rows, n], chunk of the result to fill)."""


def check_degree(p: float) -> None:
    """Raise ValueError unless 1 <= p < infinity."""
    if not 1 <= p < float("inf"):
        raise ValueError(f"degree {p!r}: expected a finite number of at least 1")


def signed_power(x: Tensor, p: float, out: Tensor) -> Tensor:
    """Fill `out` with sgn(x)|x|^p, termwise; `out` must not overlap x. Needs p > 0."""
    if float(p).is_integer() and int(p) % 2 == 1:
        return _odd_power(x, int(p), out)
    torch.abs(x, out=out)
    return torch.copysign(out.pow_(p), x, out=out)


def _odd_power(x: Tensor, p: int, out: Tensor) -> Tensor:
    # An odd power keeps the sign by itself; squarings cost a tenth of pow.
    out.copy_(x)
    for bit in bin(p)[3:]:
        out.mul_(out)
        if bit == "1":
            out.mul_(x)
    return out


def scale_of(xs: Sequence[Tensor], out: Tensor, scratch: Tensor) -> Tensor:
    """Fill `out` with max_j |x_j| per coordinate, 1 where all are 0 (to be divided by)."""
    torch.abs(xs[0], out=out)
    for x in xs[1:]:
        torch.maximum(out, torch.abs(x, out=scratch), out=out)
    return out.masked_fill_(out == 0, 1.0)


def by_chunks(xs: Sequence[Tensor], rows: int, fold: Fold, out: Tensor | None = None) -> Tensor:
    """Run `fold` over flat chunks of equally shaped tensors; returns `out`, new if not given.

    `out` may be one of xs: a chunk is written after all of it was read. Then no memory of the
    tensors' size is needed. Scratch is float32 for half-precision inputs and of the inputs' dtype
    otherwise.
    """
    if out is None or not out.is_contiguous():
        result = torch.empty(xs[0].shape, dtype=xs[0].dtype, device=xs[0].device)
    else:
        result = out
    target, flat = result.view(-1), [x.detach().reshape(-1) for x in xs]
    dtype = torch.promote_types(result.dtype, torch.float32)
    scratch = torch.empty((rows, min(CHUNK, target.numel())), dtype=dtype, device=target.device)
    for begin in range(0, target.numel(), CHUNK):
        piece = target[begin : begin + CHUNK]
        parts = [x[begin : begin + CHUNK].to(dtype) for x in flat]
        fold(parts, scratch[:, : piece.numel()], piece)
    return result if out is None or result is out else out.copy_(result)
