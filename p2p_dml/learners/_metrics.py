"""What an evaluation gives, and what a local training gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch.nn.functional as F
from torch import Tensor

from p2p_dml.errors import TrainingError
from p2p_dml.types import PeerId

EvaluateOn = Literal["all", "own"]
"""What a peer is tested on: all test samples, or its own mix of classes."""


@final
@dataclass(frozen=True, slots=True)
class Metrics:
    """Accuracy in [0, 1] and mean loss over `samples` labels; None where they are not known."""

    accuracy: float | None
    loss: float | None
    samples: int


@final
@dataclass(frozen=True, slots=True)
class Score:
    """Sums over at least one test sample: of those that were right, and of the losses."""

    right: float
    loss: float
    samples: int

    @property
    def metrics(self) -> Metrics:
        """The means."""
        return Metrics(self.right / self.samples, self.loss / self.samples, self.samples)


def on_own_mix(counts: Mapping[int, int], scores: Mapping[int, Score]) -> Metrics:
    """Accuracy and loss of a peer on its own mix of classes: means over them, by their shares.

    `counts`: how many training samples of each class the peer has; `scores`: of its model on the
    test samples of each. With equal counts, and equally many test samples of each class, this is
    the accuracy on all test samples of the peer's classes (Tian et al. 2025, MCE-PL).
    """
    total = sum(counts.values())
    pairs = [(n, scores[label]) for label, n in counts.items()]
    # Counts, not shares: so a model that is always right has 1.0, whatever the shares.
    right = math.fsum(n * (score.right / score.samples) for n, score in pairs)
    loss = math.fsum(n * (score.loss / score.samples) for n, score in pairs)
    return Metrics(right / total, loss / total, sum(score.samples for _, score in pairs))


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, …, classes] and labels [B, …]."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


def mean_loss(losses: Sequence[float], peer: PeerId, round: int, lr: float) -> float:
    """Mean of the losses of a round's steps; TrainingError naming one that is not finite."""
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise TrainingError(
                f"peer {peer}, round {round}: loss is {loss} after step {step} of "
                f"{len(losses)}; lower [train] lr (now {lr}) or set clip_norm"
            )
    return sum(losses) / len(losses)
