"""The power mean and its derivative in the degree: compiled, fused on a GPU, or by torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p2p_dml.kernels import _fused, _native
from p2p_dml.kernels._sizes import at_once

STACKED = 1 << 17
"""Elements of all models together that a power mean by torch works on at a time on a CPU."""

LOG_OF_ZERO = -1e4
"""Stands for ln 0: its exponential is 0 in every dtype, and 0 times it is 0, not NaN."""


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


def power_mean(
    xs: Sequence[Tensor],
    weights: Sequence[float],
    p: float,
    out: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """Power mean of degree p, and in the same pass its derivative in p into `slope` if given.

    `out` may be one of xs, `slope` may not and must be contiguous. For the mean see
    `means.weighted_power_mean`. With r_j = |x_j|/M, M = max_j |x_j|, S = sum_j a_j sgn(x_j) r_j^p
    and S' = dS/dp the derivative is M sgn(S)|S|^(1/p) (S'/(p S) - ln|S|/p^2), which does not depend
    on the scale of `xs`; 0 where the mean is 0. It is unbounded where inputs of both signs cancel
    (S -> 0); values are cut at +-M, because no coordinate of the power mean ever leaves [-M, M].
    Raises ValueError if p < 1.
    """
    check_degree(p)
    heard = [(x.detach(), a) for x, a in zip(xs, weights, strict=True) if a != 0]
    models, shares = [x for x, _ in heard], [a for _, a in heard]
    result = out if out is not None and out.is_contiguous() else empty_like(xs[0])
    if _native.takes([*models, result]):
        _native.power_mean(models, shares, p, result, slope)
    elif _fused.takes([*models, result]):
        _fused.power_mean(models, shares, p, result, slope)
    else:
        _by_stacks(models, shares, p, result.view(-1), None if slope is None else slope.view(-1))
    return result if out is None or result is out else out.copy_(result)


def empty_like(x: Tensor) -> Tensor:
    """A new contiguous tensor of the same shape, dtype and device."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _by_stacks(
    models: Sequence[Tensor], weights: Sequence[float], p: float, out: Tensor, slope: Tensor | None
) -> None:
    """With torch, some coordinates of all models at a time; half precision in float32."""
    flat, rows = [x.reshape(-1) for x in models], len(models)
    size = at_once(out, max(1, STACKED // rows), rows)
    dtype = torch.promote_types(out.dtype, torch.float32)
    for begin in range(0, out.numel(), size):
        piece = slice(begin, begin + size)
        parts, target = [x[piece].to(dtype) for x in flat], out[piece]
        steep = None if slope is None else slope[piece]
        if _native.takes(parts):
            wide = empty_like(parts[0])
            wide_steep = None if slope is None else empty_like(wide)
            _native.power_mean(parts, weights, p, wide, wide_steep)
            target.copy_(wide)
            if steep is not None and wide_steep is not None:
                steep.copy_(wide_steep)
        else:
            shares = torch.tensor(weights, dtype=dtype, device=out.device).unsqueeze(1)
            _power_mean(torch.stack(parts), shares, p, target, steep)


def _power_mean(stack: Tensor, shares: Tensor, p: float, out: Tensor, slope: Tensor | None) -> None:
    """One chunk: models `stack` [k, n], which is overwritten, and their weights [k, 1]."""
    power = torch.abs(stack)
    scale = power.amax(0)
    scale.masked_fill_(scale == 0, 1.0)
    ratio = stack.div_(scale)
    if slope is None:
        total = signed_power(ratio, p, out=power).mul_(shares).sum(0)
    else:
        log = power.div_(scale).log_().clamp_min_(LOG_OF_ZERO)
        raised = torch.mul(log, p).exp_()  # cheaper than pow, and the logarithm is needed anyway
        raised.copysign_(ratio).mul_(shares)
        total, change = raised.sum(0), raised.mul_(log).sum(0)
    # Rounding may carry |S| past 1, and M S past the largest finite number.
    root = signed_power(total, 1 / p, out=torch.empty_like(total)).clamp_(-1.0, 1.0)
    if slope is not None:
        # ln|w̄/M| has the derivative S'/(p S) - ln|S|/p²; where S = 0 they are not finite.
        growth = change.div_(total).div_(p).sub_(total.abs().log_().div_(p * p))
        growth.mul_(root).masked_fill_(total == 0, 0.0)
        slope.copy_(growth.clamp_(-1.0, 1.0).mul_(scale))
    out.copy_(root.mul_(scale))
