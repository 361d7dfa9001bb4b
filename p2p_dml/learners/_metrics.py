"""What an evaluation gives, and what a local training gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from p2p_dml.errors import TrainingError
from p2p_dml.types import PeerId


@final
@dataclass(frozen=True, slots=True)
class Metrics:
    """Accuracy in [0, 1] and mean loss over `samples` labels; None where they are not known."""

    accuracy: float | None
    loss: float | None
    samples: int


def mean_loss(losses: Sequence[float], peer: PeerId, round: int, lr: float) -> float:
    """Mean of the losses of a round's steps; TrainingError naming one that is not finite."""
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise TrainingError(
                f"peer {peer}, round {round}: loss is {loss} after step {step} of "
                f"{len(losses)}; lower [train] lr (now {lr}) or set clip_norm"
            )
    return sum(losses) / len(losses)
