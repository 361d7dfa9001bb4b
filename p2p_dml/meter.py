"""What a round costs: figures summed over its exchanges, and the learner with its time noted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from p2p_dml.events import PHASES
from p2p_dml.pace import Clock
from p2p_dml.types import Learner, Part, PeerId, Tensors


@final
@dataclass
class Tally:
    """Figures of one round, summed over its exchanges."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    bytes_out: int = 0
    bytes_in: int = 0
    expected: set[PeerId] = field(default_factory=set)
    missing: set[PeerId] = field(default_factory=set)
    late: int = 0
    lost_weight: float = 0.0
    ages: list[int] = field(default_factory=list)
    ahead: int = 0


@final
class Meter:
    """The learner as a strategy sees it, with the time and loss of its training noted."""

    def __init__(self, learner: Learner, clock: Clock) -> None:
        self._learner = learner
        self._clock = clock
        self.seconds = 0.0
        self.loss: float | None = None

    @property
    def params(self) -> Tensors:
        return self._learner.params

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        self._learner.params = dict(new)

    @property
    def parts(self) -> Mapping[str, Part]:
        return self._learner.parts

    @property
    def round(self) -> int:
        return self._learner.round

    def train(self) -> float:
        begin = self._clock.now()
        self.loss = self._learner.train()
        self.seconds += self._clock.now() - begin
        return self.loss

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        begin = self._clock.now()
        gradient = self._learner.grad(at)
        self.seconds += self._clock.now() - begin
        return gradient
