"""A peer's private network: what turns a trainable embedding into a degree for each layer group.

Both networks answer to `DegreeModel`; what they learn from, how descent after a mix lies to what
the degree had changed in it, is the strategy's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import torch

from p2p_dml.hypernet.bounded import HyperNet, HyperNetState
from p2p_dml.hypernet.paper import PaperNet, PaperNetState

N = TypeVar("N")


class DegreeModel(Protocol[N]):
    """Degrees of layer groups, and how they learn. What changes is in N: tensors and numbers."""

    def init(self, start: Mapping[str, float | None], generator: torch.Generator) -> N:
        """Draw a network; `start` names the groups and their first degrees, None: drawn as well.

        Raises ValueError for a first degree that the network cannot take.
        """
        ...

    def degrees(self, state: N) -> dict[str, float]:
        """Degree of each layer group, at least 1."""
        ...

    def step(self, state: N, signal: Mapping[str, float]) -> N:
        """Learn from -dL/dp of each group in the network's own measure; some may have none."""
        ...


AnyDegreeModel = DegreeModel[Any]

__all__ = [
    "AnyDegreeModel",
    "DegreeModel",
    "HyperNet",
    "HyperNetState",
    "PaperNet",
    "PaperNetState",
]
