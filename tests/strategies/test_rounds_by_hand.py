"""One round of each averaging strategy at one peer, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from p2p_dml.strategies import DPSGD, AllReduce, HyperPrism, Local
from p2p_dml.types import AnyStrategy, Coded, Inbox, Need, Neighbourhood, Part, Payload, Tensors

HOOD = Neighbourhood(1, 0.5, {0: 0.25, 2: 0.25}, {0: 0.25, 2: 0.25})


@dataclass
class OneNumber:
    """A model of one number; training adds 1."""

    w: Tensor = field(default_factory=lambda: torch.tensor([3.0], dtype=torch.float64))
    round: int = 1

    @property
    def params(self) -> Tensors:
        return {"w": self.w}

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        self.w.copy_(new["w"])

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"w": "decision"}

    def train(self) -> float:
        self.w += 1
        return 0.0

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        return {"w": -torch.ones_like(at["w"])}


@dataclass
class FixedLinks:
    now: Neighbourhood = HOOD

    def shared_bits(self, stream: int, count: int) -> Sequence[int]:
        return [stream] * count


def after_a_round(strategy: AnyStrategy, heard: Mapping[int, float]) -> float:
    learner = OneNumber()
    steps = strategy.round(strategy.init(learner, 0), learner, FixedLinks())
    outbox = next(steps)
    assert not isinstance(outbox, Coded)
    assert {to: p.tensors["w"].item() for to, p in outbox.items()} == {0: 4.0, 2: 4.0}
    values = {j: torch.tensor([x], dtype=torch.float64) for j, x in heard.items()}
    with pytest.raises(StopIteration):
        steps.send(Inbox(HOOD, {j: Payload({"w": x}) for j, x in values.items()}))
    return learner.w.item()


@pytest.mark.parametrize(
    ("strategy", "heard", "expected"),
    [
        (DPSGD(), {0: 8.0, 2: -4.0}, 0.25 * 8 + 0.5 * 4 - 0.25 * 4),
        (DPSGD(), {0: 8.0}, 0.25 * 8 + 0.75 * 4),
        (DPSGD(), {}, 4.0),
        (AllReduce(), {0: 8.0, 2: -6.0}, 2.0),
        (AllReduce(), {0: 8.0}, 6.0),
        (AllReduce(), {}, 4.0),
        (HyperPrism(degree=3.0), {0: 8.0, 2: -4.0}, (0.25 * 8**3 + 0.25 * 4**3) ** (1 / 3)),
        (HyperPrism(degree=3.0), {2: -8.0}, -((0.25 * 8**3 - 0.75 * 4**3) ** (1 / 3))),
        (HyperPrism(degree={"representation": 9.0}), {0: 8.0, 2: -4.0}, 3.0),
    ],
)
def test_train_send_mix(strategy: AnyStrategy, heard: Mapping[int, float], expected: float) -> None:
    assert after_a_round(strategy, heard) == pytest.approx(expected, abs=1e-13)


def test_local_trains_and_never_yields() -> None:
    learner = OneNumber()
    with pytest.raises(StopIteration):
        next(Local().round(None, learner, FixedLinks()))
    assert learner.w.item() == 4.0


def test_needs_are_those_of_the_theory() -> None:
    assert Local().needs == frozenset()
    assert AllReduce().needs == {Need.COMPLETE, Need.SYNCHRONOUS}
    assert DPSGD().needs == HyperPrism().needs == {Need.DOUBLY_STOCHASTIC}
