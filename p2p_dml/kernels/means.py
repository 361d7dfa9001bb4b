"""Means over models: the weighted mean and the weighted power mean.

The `mix_…` functions change the first argument in place, chunk by chunk: a round then needs no
memory of the model's size, whose page faults would cost more than the arithmetic. All others leave
their inputs alone.
"""

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


def weighted_power_mean(
    xs: Sequence[Tensor], weights: Sequence[float], p: float, out: Tensor | None = None
) -> Tensor:
    """Power mean of degree p of equally shaped tensors, sign-preserving; `out` may be one of xs.

    Weights sum to 1, p >= 1 is real; p = 1 is the weighted mean, bit for bit. Computed as
    M sgn(S)|S|^(1/p) with M = max_j |x_j| and S = sum_j a_j sgn(x_j) (|x_j|/M)^p per coordinate,
    so it neither under- nor overflows and never exceeds M.
    Source: Du et al. 2024 (HyperPrism), eq. (2). Raises ValueError if p < 1.
    """
    check_degree(p)
    if p == 1:
        return _weighted_sum(xs, weights, out)
    heard = [(x, a) for x, a in zip(xs, weights, strict=True) if a != 0]
    fold = partial(_power_mean, weights=[a for _, a in heard], p=p)
    return by_chunks([x for x, _ in heard], 4, fold, out)


def mix_mean(own: Mapping[str, Tensor], inbox: Inbox) -> None:
    """Replace `own` by the weighted mean with what was received; as it is if nobody was heard."""
    mix_power_mean(own, inbox, dict.fromkeys(own, 1.0))


def mix_power_mean(own: Mapping[str, Tensor], inbox: Inbox, degrees: Mapping[str, float]) -> None:
    """Replace `own` by the power mean with what was received, a degree for each tensor name."""
    if not inbox.messages:
        return
    models, weights = inbox.with_own(own)
    for name, x in own.items():
        weighted_power_mean([m[name] for m in models], weights, degrees[name], out=x.detach())


def _weighted_sum(
    xs: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None
) -> Tensor:
    return by_chunks(xs, 1, partial(_fold_sum, weights=weights), out)


def _fold_sum(
    xs: Sequence[Tensor], scratch: Tensor, out: Tensor, *, weights: Sequence[float]
) -> None:
    total = torch.mul(xs[0], weights[0], out=scratch[0])
    for x, weight in zip(xs[1:], weights[1:], strict=True):
        total.add_(x, alpha=weight)
    out.copy_(total)


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
