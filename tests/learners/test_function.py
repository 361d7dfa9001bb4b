"""The user's own training function: what it may return, and how its failures read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from p2p_dml.errors import ConfigError, TrainingError
from p2p_dml.learners import FunctionLearner, Metrics
from p2p_dml.types import Learner


def add_round(model: nn.Module, round: int) -> dict[str, object]:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(round)
    return {"loss": torch.tensor(0.5), "images": 12}


def learner(train: object = add_round, evaluate: object = None) -> FunctionLearner:
    return FunctionLearner(nn.BatchNorm1d(2), train, evaluate, peer=3)  # type: ignore[arg-type]


def test_calls_the_function_with_model_and_round() -> None:
    one = learner()
    typed: Learner = one
    one.seek(5)
    assert (typed.train(), typed.round) == (0.5, 5)
    assert one.metrics == {"images": 12.0}
    assert typed.params["weight"].tolist() == [6, 6]
    assert set(typed.params) == {"weight", "bias", "running_mean", "running_var"} == set(one.parts)


def test_a_plain_loss_will_do() -> None:
    one = learner(lambda model, round: 2)
    assert (one.train(), dict(one.metrics), one.num_samples) == (2.0, {}, 0)


def test_buffers_can_stay_local() -> None:
    one = FunctionLearner(nn.BatchNorm1d(2), add_round, peer=0, mix_buffers=False)
    assert set(one.params) == {"weight", "bias"}


def test_params_are_set_in_place() -> None:
    one = learner()
    one.params = {name: torch.full_like(x, 7) for name, x in one.params.items()}
    assert one.module.weight.tolist() == [7, 7]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"accuracy": 1.0}, "must return a mapping with 'loss'"),
        (None, "returned 'loss' = None, which is not a number"),
        ({"loss": "low"}, "returned 'loss' = 'low', which is not a number"),
        ({"loss": math.nan}, "returned the loss nan"),
        (math.inf, "returned the loss inf"),
    ],
)
def test_bad_returns(returned: object, message: str) -> None:
    one = learner(lambda model, round: returned)
    with pytest.raises(TrainingError, match=f"peer 3, round 0: the train function {message}"):
        one.train()


def divide(model: nn.Module, round: int = 0) -> float:
    return 1 / 0


def test_exceptions_name_their_place() -> None:
    one = learner(divide, divide)
    one.seek(7)
    place = r"ZeroDivisionError: division by zero \(test_function\.py:\d+ in divide\)"
    for call, function in ((one.train, "train"), (one.evaluate, "evaluate")):
        expected = f"peer 3, round 7: the {function} function raised {place}"
        with pytest.raises(TrainingError, match=expected) as caught:
            call()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_no_gradients() -> None:
    one = learner()
    with pytest.raises(TrainingError, match="asks for gradients"):
        one.grad(one.params)


def test_evaluation() -> None:
    assert learner().evaluate() == Metrics(None, None, 0)
    full = learner(evaluate=lambda model: {"accuracy": 0.5, "loss": 2, "samples": 8})
    assert full.evaluate() == Metrics(0.5, 2.0, 8)
    assert learner(evaluate=lambda model: {"accuracy": 1}).evaluate() == Metrics(1.0, None, 0)
    with pytest.raises(TrainingError, match="must return a mapping such as"):
        learner(evaluate=lambda model: 0.5).evaluate()


def test_checkpoint_is_the_model() -> None:
    one, other = learner(), learner()
    one.seek(4)
    one.train()
    other.load_state(one.state())
    assert other.params["weight"].tolist() == [5, 5]
    with pytest.raises(ConfigError, match="does not fit"):
        FunctionLearner(nn.Linear(2, 2), add_round, peer=0).load_state(one.state())
