"""Means over models: the weighted mean and the weighted power mean; inputs are never written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from p2p_dml.kernels._power import by_chunks, check_degree, scale_of, signed_power
from p2p_dml.types import Inbox, Tensors


def weighted_mean(models: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Sum weight times model in the given order, name by name; returns new tensors."""
    return {name: _weighted_sum([m[name] for m in models], weights) for name in models[0]}


def weighted_power_mean(xs: Sequence[Tensor], weights: Sequence[float], p: float) -> Tensor:
    """Power mean of degree p of equally shaped tensors, sign-preserving; a new tensor.

    Weights sum to 1, p >= 1 is real; p = 1 is the weighted mean, bit for bit. Computed as
    M sgn(S)|S|^(1/p) with M = max_j |x_j| and S = sum_j a_j sgn(x_j) (|x_j|/M)^p per coordinate,
    so it neither under- nor overflows and never exceeds M.
    Source: Du et al. 2024 (HyperPrism), eq. (2). Raises ValueError if p < 1.
    """
    check_degree(p)
    if p == 1:
        return _weighted_sum(xs, weights)
    heard = [(x, a) for x, a in zip(xs, weights, strict=True) if a != 0]
    fold = partial(_power_mean, weights=[a for _, a in heard], p=p)
    return by_chunks([x for x, _ in heard], 4, fold)


def weighted_power_means(
    models: Sequence[Mapping[str, Tensor]], weights: Sequence[float], degrees: Mapping[str, float]
) -> Tensors:
    """Weighted power mean of models, name by name, with a degree for each tensor name."""
    return {
        name: weighted_power_mean([m[name] for m in models], weights, degrees[name])
        for name in models[0]
    }


def mix(own: Mapping[str, Tensor], inbox: Inbox) -> Tensors:
    """Weighted mean of own and received tensors; own values unchanged if nobody was heard."""
    if not inbox.messages:
        return {name: x.detach().clone() for name, x in own.items()}
    return weighted_mean(*inbox.with_own(own))


def power_mix(own: Mapping[str, Tensor], inbox: Inbox, degrees: Mapping[str, float]) -> Tensors:
    """Weighted power mean of own and received tensors; own values if nobody was heard."""
    if not inbox.messages:
        return {name: x.detach().clone() for name, x in own.items()}
    return weighted_power_means(*inbox.with_own(own), degrees)


def _weighted_sum(xs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = xs[0].detach() * weights[0]
    for x, weight in zip(xs[1:], weights[1:], strict=True):
        total.add_(x.detach(), alpha=weight)
    return total


def _power_mean(
    xs: Sequence[Tensor], scratch: Tensor, out: Tensor, *, weights: Sequence[float], p: float
) -> None:
    scale, total, ratio, power = scratch
    scale_of(xs, scale, power)
    total.zero_()
    for x, weight in zip(xs, weights, strict=True):
        torch.div(x, scale, out=ratio)
        total.add_(signed_power(ratio, p, out=power), alpha=weight)
    # Rounding may carry |S| past 1, and M S past the largest finite number.
    root = signed_power(total, 1 / p, out=power).clamp_(-1.0, 1.0)
    out.copy_(root.mul_(scale))
