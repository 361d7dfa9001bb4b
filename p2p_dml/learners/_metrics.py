"""What an evaluation gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Metrics:
    """Accuracy in [0, 1] and mean loss over `samples` labels; None where they are not known."""

    accuracy: float | None
    loss: float | None
    samples: int
