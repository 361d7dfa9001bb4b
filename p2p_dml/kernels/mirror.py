"""The mirror map of HyperPrism, its inverse, and the derivative of the power mean in its degree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p2p_dml.kernels._power import check_degree, empty_like, power_mean, signed_power


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
    slope = empty_like(xs[0])
    power_mean(xs, weights, p, slope=slope)
    return slope
