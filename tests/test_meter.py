"""The learner as a strategy sees it: time and loss of its training noted, nothing else changed."""

from __future__ import annotations

import torch
from torch import nn

from p2p_dml.learners import FunctionLearner
from p2p_dml.meter import Meter, Tally
from p2p_dml.pace import VirtualClock


def test_time_and_loss_of_training_are_noted() -> None:
    clock, losses = VirtualClock(), iter((0.5, 0.25))

    def train(module: nn.Module, round: int) -> float:
        clock.sleep(2.0)
        return next(losses)

    learner = FunctionLearner(nn.ParameterDict({"x": torch.zeros(1)}), train, peer=0)
    learner.seek(7)
    meter = Meter(learner, clock)
    assert (meter.seconds, meter.loss, meter.round) == (0.0, None, 7)
    assert [meter.train(), meter.train()] == [0.5, 0.25]
    assert (meter.seconds, meter.loss) == (4.0, 0.25)
    meter.params = {"x": torch.ones(1)}
    assert learner.params["x"].item() == 1.0
    assert meter.parts == learner.parts


def test_a_tally_begins_at_nothing_and_shares_nothing() -> None:
    one, other = Tally(), Tally()
    one.seconds["train"] += 1.0
    one.missing.add(3)
    assert sum(other.seconds.values()) == 0.0
    assert not other.missing
