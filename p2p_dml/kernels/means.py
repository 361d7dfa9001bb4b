"""Means over models: the weighted mean and the weighted power mean.

float32 and float64 are computed on the CPU by the compiled kernels if they were built (see
`kernels.backend`), on a GPU by fused ones where Triton is, everything else by torch; all sum in the
given order, and neither the number of threads nor the cutting into chunks shows in the result.

The `mix_…` functions change the first argument in place, chunk by chunk: a round then needs no
memory of the model's size, whose page faults would cost more than the arithmetic. All others leave
their inputs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from p2p_dml.kernels import _fused, _native
from p2p_dml.kernels._power import empty_like, power_mean
from p2p_dml.kernels._sizes import at_once
from p2p_dml.types import Inbox, Tensors

CHUNK = 1 << 16
"""Elements that torch works on at a time: a chunk's scratch stays in the processor's cache."""


def weighted_mean(models: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Sum weight times model in the given order, name by name; returns new tensors."""
    return {name: _weighted_sum([m[name] for m in models], weights) for name in models[0]}


def weighted_power_mean(
    xs: Sequence[Tensor], weights: Sequence[float], p: float, out: Tensor | None = None
) -> Tensor:
    """Power mean of degree p of equally shaped tensors, sign-preserving; `out` may be one of xs.

    Weights sum to 1, p >= 1 is real; p = 1 is the weighted mean, bit for bit. Computed as
    M sgn(S)|S|^(1/p) with M = max_j |x_j| and S = sum_j a_j sgn(x_j) (|x_j|/M)^p per coordinate,
    so it neither under- nor overflows and never exceeds M. Its relative error is a few
    units in the last place, and one more for each halving from M to it. NaN where an input is not
    finite; where M is below the smallest normal number, odd degrees from 7 on may give 0.
    Source: Du et al. 2024 (HyperPrism), eq. (2). Raises ValueError if p < 1.
    """
    return _weighted_sum(xs, weights, out) if p == 1 else power_mean(xs, weights, p, out)


def mix_mean(own: Mapping[str, Tensor], inbox: Inbox) -> None:
    """Replace `own` by the weighted mean with what was received; as it is if nobody was heard."""
    mix_power_mean(own, inbox, dict.fromkeys(own, 1.0))


def mix_power_mean(
    own: Mapping[str, Tensor],
    inbox: Inbox,
    degrees: Mapping[str, float],
    slopes: Mapping[str, Tensor] | None = None,
) -> None:
    """Replace `own` by the power mean with what was received, a degree for each tensor name.

    `slopes`, if given, are filled with the derivative of that mean in its degree; 0 if nobody was
    heard.
    """
    if not inbox.messages:
        for slope in (slopes or {}).values():
            slope.zero_()
        return
    models, weights = inbox.with_own(own)
    for name, x in own.items():
        xs, p, out = [m[name] for m in models], degrees[name], x.detach()
        if slopes is None:
            weighted_power_mean(xs, weights, p, out)
        elif p == 1:
            power_mean(xs, weights, p, slope=slopes[name])
            _weighted_sum(xs, weights, out)
        else:
            power_mean(xs, weights, p, out, slopes[name])


def _weighted_sum(
    xs: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None
) -> Tensor:
    result = out if out is not None and out.is_contiguous() else empty_like(xs[0])
    if _native.takes([*xs, result]):
        _native.mean([x.detach() for x in xs], weights, result)
    elif _fused.takes([*xs, result]):
        _fused.mean([x.detach() for x in xs], weights, result)
    else:
        _sum_by_chunks([x.detach().reshape(-1) for x in xs], weights, result.view(-1))
    return result if out is None or result is out else out.copy_(result)


def _sum_by_chunks(xs: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """With torch, so that no memory of the tensors' size is needed; half precision in float32."""
    dtype = torch.promote_types(out.dtype, torch.float32)
    size = at_once(out, CHUNK)
    scratch = torch.empty(min(size, out.numel()), dtype=dtype, device=out.device)
    for begin in range(0, out.numel(), size):
        first, *rest = (x[begin : begin + size].to(dtype) for x in xs)
        total = torch.mul(first, weights[0], out=scratch[: first.numel()])
        for x, weight in zip(rest, weights[1:], strict=True):
            total.add_(x, alpha=weight)
        out[begin : begin + size].copy_(total)
