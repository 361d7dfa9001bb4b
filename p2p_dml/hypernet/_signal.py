"""What a degree learns from: how the descent lies to the slope of the last mix, group by group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from p2p_dml.kernels.products import dots


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
