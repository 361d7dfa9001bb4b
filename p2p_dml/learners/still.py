"""A model that is only parameters and a training that leaves them alone: what rounds alone cost.

In a run file: `model = { name = "p2p_dml.learners.still:vector", size = 1_000_000 }` and
`train = "p2p_dml.learners.still:rest"`.
"""

from __future__ import annotations

import time
from typing import final

from torch import Tensor, nn, zeros


@final
class Vector(nn.Module):
    """`size` parameters in one flat tensor; passes its input on."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x


def vector(*, size: int) -> nn.Module:
    """A `Vector` of zeros. Raises ValueError if `size` is not positive."""
    if size < 1:
        raise ValueError(f"size: expected at least 1, found {size}")
    return Vector(size)


def rest(model: nn.Module, round: int) -> dict[str, float]:
    """Do nothing for a round; say when, and the processor time of this process so far.

    `at`: seconds since the epoch. `cpu_s`: of all threads, those of the transport too.
    """
    return {"loss": 0.0, "at": time.time(), "cpu_s": time.process_time()}
