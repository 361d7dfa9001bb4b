"""Sums of differently mapped terms, mapped back: eq. (6) of HyperPrism, and line 9 as printed.

Slower than `means.weighted_power_mean`, which is the case of one degree and no gradient: all is
done on logarithms in float64, so that neither w^15 nor a gradient far above it is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from p2p_dml.kernels._power import check_degree
from p2p_dml.kernels._sizes import at_once

CHUNK = 1 << 14
"""Elements worked on at a time on a CPU: the float64 rows of a chunk stay in its cache."""

LOG_OF_ZERO = -1e8
"""Stands for ln 0; below that of every float64 to a power of any use, and 0 times it is 0."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """weight · sgn(x)|x|^degree. `moves`: its degree is the receiver's own, so the slope counts it.

    `weight` is not 0 and may be negative: a gradient is the term of degree 1 that is subtracted.
    """

    x: Tensor
    weight: float
    degree: float
    moves: bool = False


def mapped_mean(
    terms: Sequence[Term], p: float, out: Tensor | None = None, slope: Tensor | None = None
) -> Tensor:
    """Map the sum of the terms back with degree p: z = sum_j terms, w = sgn(z)|z|^(1/p).

    All tensors have one shape; `out` may be one of the terms'. `slope`, if given, is contiguous
    and filled with dw/dp = w (z'/(p z) - ln|z|/p^2), where z' is the derivative of the terms
    that move; 0 where w is 0. It is unbounded where terms cancel, and cut at M (1 + |ln M|), with
    M the largest that a single term maps back to.
    Source: Du et al. 2024 (HyperPrism), eq. (6) and algorithm 1. Raises ValueError if p < 1.
    """
    check_degree(p)
    x = terms[0].x
    in_place = out is not None and out.is_contiguous()
    result = out if out is not None and in_place else x.new_empty(x.shape)
    target, steep = result.view(-1), None if slope is None else slope.view(-1)
    flat = [term.x.detach().reshape(-1) for term in terms]
    size = at_once(target, CHUNK, len(terms))
    for begin in range(0, target.numel(), size):
        piece = slice(begin, begin + size)
        stack = torch.stack([x[piece].double() for x in flat])
        _fold(stack, terms, p, target[piece], None if steep is None else steep[piece])
    return result if out is None or in_place else out.copy_(result)


def _fold(
    stack: Tensor, terms: Sequence[Term], p: float, out: Tensor, slope: Tensor | None
) -> None:
    """One chunk: the x of all terms [k, n]."""
    degrees, weights, moves = (
        torch.tensor(row, dtype=torch.float64, device=stack.device).unsqueeze(1)
        for row in zip(*((t.degree, t.weight, t.moves) for t in terms), strict=True)
    )
    logs = stack.abs().log_().clamp_min_(LOG_OF_ZERO)
    levels = logs * degrees
    top = levels.amax(0)
    shares = levels.sub_(top).exp_().mul_(stack.sign()).mul_(weights)
    total = shares.sum(0)
    size = total.abs().log_().add_(top)  # ln|z|
    mean = torch.exp(size / p).mul_(total.sign())
    if slope is not None:
        change = (shares * logs * moves).sum(0)
        growth = change.div_(total).div_(p).sub_(size.div_(p * p))
        bound = torch.exp(top / p).mul_(1 + top.abs() / p)
        steep = growth.mul_(mean).masked_fill_(total == 0, 0.0)
        slope.copy_(torch.clamp(steep, -bound, bound))
    out.copy_(mean)
