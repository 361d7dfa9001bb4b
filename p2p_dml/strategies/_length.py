"""The length of a combined model's tensors, apart from their direction.

A mean of unlike models is shorter than they are, round after round, and a power mean is longer than
a mean. In a network of several layers that alone matters: with short layers the others get small
gradients, and all learn slowly. A degree that is judged by its direction must not decide that too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from p2p_dml.kernels.means import weighted_power_mean
from p2p_dml.kernels.products import dots
from p2p_dml.types import Inbox


def power_mean_lengths(
    own: Mapping[str, Tensor], inbox: Inbox, degrees: Mapping[str, float], p: float
) -> dict[str, float]:
    """Euclidean length of each tensor's power mean of degree `p`, own model included.

    Only of tensors that are mixed with another of the `degrees`; none if nobody was heard.
    """
    if not inbox.messages:
        return {}
    models, weights = inbox.with_own(own)
    return {
        name: _length(weighted_power_mean([m[name] for m in models], weights, p))
        for name, degree in degrees.items()
        if degree != p
    }


def stretch(own: Mapping[str, Tensor], lengths: Mapping[str, float]) -> None:
    """Give tensors of `own` these lengths, in place; one that is (nearly) 0 or not finite stays."""
    for name, length in lengths.items():
        x = own[name].detach()
        factor = length / (_length(x) or math.nan)
        if factor <= torch.finfo(x.dtype).max:
            x.mul_(factor)


def _length(x: Tensor) -> float:
    return math.sqrt(dots(x, x)[0])
