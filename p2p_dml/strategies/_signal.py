"""What judges a learned degree: how local training after a mix lies to what the degree had changed.

What a degree p changed in a mix is the secant w̄_p - w̄_1 from the plain mean: dw̄/dp averaged over
[1, p], times p - 1. Two things are taken from it that are not the degree's merit. The part along w̄
itself is scale, which the power mean always adds and which a classifier's decisions hardly depend
on; and a single peer's verdict speaks for its own data only, so that verdicts travel with the
models, one number for each layer group, and are pooled over the neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from p2p_dml.kernels.means import weighted_power_mean
from p2p_dml.kernels.products import dots
from p2p_dml.types import Inbox, Tensors

PROBE = 3.0
"""Least degree whose secant is taken: at p = 1 there is none, yet p must be able to rise again."""

VERDICT = "verdict/"
"""Prefix of the scalar that holds a sender's verdict on its last degree of a layer group."""


@final
@dataclass(frozen=True, slots=True)
class Alignment:
    """Inner product of two vectors, and the square of each one's length."""

    dot: float
    squared_a: float
    squared_b: float

    @property
    def cosine(self) -> float:
        """Cosine of the angle between them; NaN if one is 0 or holds values that are not finite."""
        length = math.sqrt(self.squared_a) * math.sqrt(self.squared_b)
        return self.dot / length if length else math.nan


def alignments(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], groups: Mapping[str, str]
) -> dict[str, Alignment]:
    """Alignment of a and b over the tensors of each group; `groups` says whose each tensor is.

    Summed in float64. Left out are groups at a right angle, and those without an angle: where a or
    b is 0 or has values that are not finite.
    """
    sums: dict[str, tuple[float, float, float]] = {}
    for name, group in groups.items():
        old, new = sums.get(group, (0.0, 0.0, 0.0)), dots(a[name], b[name])
        sums[group] = (old[0] + new[0], old[1] + new[1], old[2] + new[2])
    found = {group: Alignment(*total) for group, total in sorted(sums.items())}
    return {group: each for group, each in found.items() if each.dot and math.isfinite(each.cosine)}


def mix_with_secant(
    own: Mapping[str, Tensor], inbox: Inbox, degrees: Mapping[str, float], secants: Tensors
) -> None:
    """Replace `own` by the power mean with what was received, and fill `secants` with w̄_q - w̄_1.

    q = max(p, 3) for each tensor's degree p. If nobody was heard, `own` stays and secants are 0.
    """
    models, weights = inbox.with_own(own)
    for name, x in own.items():
        xs, p, out = [m[name] for m in models], degrees[name], x.detach()
        if len(xs) == 1:
            secants[name].zero_()
            continue
        mean = weighted_power_mean(xs, weights, 1.0, secants[name])
        ahead = out if p >= PROBE else weighted_power_mean(xs, weights, PROBE)
        if p == 1:
            out.copy_(mean)
        else:
            weighted_power_mean(xs, weights, p, out)
        torch.sub(ahead, mean, out=mean)


def remove_scale(changes: Tensors, models: Mapping[str, Tensor], groups: Mapping[str, str]) -> None:
    """Make each group's change, in place, orthogonal to the model's tensors of that group.

    One that is longer than the model by more than its numbers can say stays.
    """
    found = alignments(changes, models, groups)
    for name, group in groups.items():
        if group in found:
            share = found[group].dot / found[group].squared_b
            if abs(share) <= torch.finfo(changes[name].dtype).max:
                changes[name].sub_(models[name].detach(), alpha=share)


def verdicts(
    descent: Mapping[str, Tensor], changes: Mapping[str, Tensor], groups: Mapping[str, str]
) -> dict[str, float]:
    """Cosine of `descent` and what the degree changed, by group; above 0 it did good."""
    return {group: a.cosine for group, a in alignments(descent, changes, groups).items()}


def pooled(own: Mapping[str, float], inbox: Inbox) -> dict[str, float]:
    """Verdicts of the neighbourhood by group: the sum of k cosines over √k.

    Noise in it then has the same size however many are heard. Values that are not cosines do not
    count.
    """
    heard: dict[str, list[float]] = {group: [c] for group, c in own.items()}
    for payload in inbox.messages.values():
        for name, c in payload.scalars.items():
            if name.startswith(VERDICT) and -1 <= c <= 1:
                heard.setdefault(name.removeprefix(VERDICT), []).append(c)
    return {group: sum(cs) / math.sqrt(len(cs)) for group, cs in heard.items()}
