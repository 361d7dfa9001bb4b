"""A learner with somebody beside it, who hears of its rounds and may act around its training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol, final

from torch import Tensor

from p2p_dml.peer import LocalLearner, Metrics
from p2p_dml.types import Part, Tensors

Activity = Literal["train", "evaluate"]


class Attendant(Protocol):
    """Who is beside a learner."""

    def seek(self, round: int) -> None:
        """The learner is in `round` from now on."""
        ...

    def during(self, phase: Activity) -> AbstractContextManager[None]:
        """Entered around each training, each gradient that is asked for, and each evaluation."""
        ...


@final
class AttendedLearner:
    """The learner as the loop sees it."""

    def __init__(self, learner: LocalLearner, attendant: Attendant) -> None:
        self._learner = learner
        self._attendant = attendant

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

    @property
    def metrics(self) -> Mapping[str, float]:
        return self._learner.metrics

    def seek(self, round: int) -> None:
        self._attendant.seek(round)
        self._learner.seek(round)

    def train(self) -> float:
        with self._attendant.during("train"):
            return self._learner.train()

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        with self._attendant.during("train"):
            return self._learner.grad(at)

    def evaluate(self) -> Metrics:
        with self._attendant.during("evaluate"):
            return self._learner.evaluate()

    def state(self) -> Tensors:
        return self._learner.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._learner.load_state(state)
