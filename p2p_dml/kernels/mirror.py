"""The mirror map of HyperPrism, its inverse, and the derivative of the power mean in its degree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from p2p_dml.kernels._power import by_chunks, check_degree, scale_of, signed_power
from p2p_dml.types import Tensors

LOG_OF_ZERO = -1e4
"""Stands for ln 0: its exponential is 0 in every dtype, and 0 times it is 0, not NaN."""


def mirror(w: Tensor, p: float) -> Tensor:
    """Map w to sgn(w)|w|^p, termwise (Du et al. 2024, section 3.2, for real p >= 1)."""
    check_degree(p)
    return signed_power(w.detach(), p, out=torch.empty_like(w))


def inverse_mirror(z: Tensor, p: float) -> Tensor:
    """Map z to sgn(z)|z|^(1/p), termwise."""
    check_degree(p)
    return signed_power(z.detach(), 1 / p, out=torch.empty_like(z))


def power_mean_slope(xs: Sequence[Tensor], weights: Sequence[float], p: float) -> Tensor:
    """Derivative in p of the weighted power mean of `xs`; a new tensor, 0 where the mean is 0.

    With r_j = |x_j|/M, M = max_j |x_j|, S = sum_j a_j sgn(x_j) r_j^p and S' = dS/dp it is
    M sgn(S)|S|^(1/p) (S'/(p S) - ln|S|/p^2), which does not depend on the scale of `xs`.
    It is unbounded where inputs of both signs cancel (S -> 0); values are cut at +-M, because
    no coordinate of the power mean ever leaves [-M, M].
    """
    check_degree(p)
    heard = [(x, a) for x, a in zip(xs, weights, strict=True) if a != 0]
    fold = partial(_slope, weights=[a for _, a in heard], p=p)
    return by_chunks([x for x, _ in heard], 6, fold)


def power_mean_slopes(
    models: Sequence[Mapping[str, Tensor]], weights: Sequence[float], degrees: Mapping[str, float]
) -> Tensors:
    """Derivative of the weighted power mean in its degree, name by name."""
    return {
        name: power_mean_slope([m[name] for m in models], weights, degrees[name])
        for name in models[0]
    }


def _slope(
    xs: Sequence[Tensor], scratch: Tensor, out: Tensor, *, weights: Sequence[float], p: float
) -> None:
    scale, total, change, ratio, log, power = scratch
    scale_of(xs, scale, power)
    total.zero_()
    change.zero_()
    for x, weight in zip(xs, weights, strict=True):
        torch.div(x, scale, out=ratio)
        torch.abs(ratio, out=log).log_().clamp_min_(LOG_OF_ZERO)
        torch.mul(log, p, out=power).exp_()  # cheaper than pow, and the logarithm is needed anyway
        torch.copysign(power, ratio, out=power)
        total.add_(power, alpha=weight)
        change.add_(power.mul_(log), alpha=weight)
    # ln|w̄/M| has the derivative S'/(p S) - ln|S|/p²; where S = 0 the quotients are not finite.
    growth = change.div_(total).div_(p).sub_(torch.log(total.abs(), out=log).div_(p * p))
    slope = signed_power(total, 1 / p, out=power).mul_(growth).masked_fill_(total == 0, 0.0)
    out.copy_(slope.clamp_(-1.0, 1.0).mul_(scale))
