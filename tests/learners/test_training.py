"""The table [train]: defaults, numbers of steps, and values that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from p2p_dml import tables
from p2p_dml.errors import ConfigError
from p2p_dml.learners import Training
from p2p_dml.learners._training import optimiser_state


@pytest.mark.parametrize(
    ("table", "num_samples", "expected"),
    [
        ({}, 100, 4),
        ({"epochs": 3}, 100, 12),
        ({"epochs": 2, "batch_size": 100}, 100, 2),
        ({"steps": 7}, 100, 7),
        ({"batch_size": 64}, 1, 1),
    ],
)
def test_number_of_steps(table: dict[str, object], num_samples: int, expected: int) -> None:
    assert tables.build(Training, table, "train").num_steps(num_samples) == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"steps": 2, "epochs": 1}, "steps, epochs: expected one"),
        ({"lr": 0.0}, "lr: expected a positive number, found 0.0"),
        ({"lr": float("inf")}, "lr: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"steps": 0}, "steps: expected"),
        ({"epochs": -1}, "epochs: expected"),
        ({"clip_norm": 0.0}, "clip_norm: expected"),
        ({"momentum": 1.0}, "momentum: expected 0 to below 1"),
        ({"optimiser": "adam", "momentum": 0.9}, "momentum: is for sgd, not adam"),
        ({"weight_decay": -0.1}, "weight_decay: expected 0 or more"),
        ({"optimiser": "lion"}, r"train\.optimiser"),
        ({"parallel": "fsdp2"}, r"train\.parallel"),
        ({"parallel": "ddp", "compile": True}, "compile: does not go with parallel = 'ddp'"),
        ({"optimizer": "sgd"}, "did you mean 'optimiser'"),
        ({"steps": 1.5}, r"train\.steps"),
    ],
)
def test_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tables.build(Training, table, "train")


@pytest.mark.parametrize(
    ("training", "kind"),
    [
        (Training(momentum=0.9, weight_decay=0.1), torch.optim.SGD),
        (Training(optimiser="adam", weight_decay=0.1), torch.optim.Adam),
        (Training(optimiser="adamw", weight_decay=0.1), torch.optim.AdamW),
    ],
)
def test_optimisers(training: Training, kind: type[torch.optim.Optimizer]) -> None:
    optimiser = training.make_optimiser([nn.Parameter(torch.ones(1))])
    assert type(optimiser) is kind
    group = optimiser.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.1)
    assert group.get("momentum", 0.0) == training.momentum


@pytest.mark.parametrize(
    ("training", "keys"),
    [
        (Training(momentum=0.9), {"momentum_buffer"}),
        (Training(optimiser="adam"), {"exp_avg", "exp_avg_sq", "step"}),
    ],
)
def test_an_optimiser_s_state_by_names_and_back(training: Training, keys: set[str]) -> None:
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(3))]
    optimiser = training.make_optimiser(params)
    params[0].grad, params[2].grad = torch.ones(2), torch.ones(3)  # the second has none
    optimiser.step()
    state = optimiser_state(optimiser)
    assert list(state) == [f"{index}/{key}" for index in (0, 2) for key in sorted(keys)]
    entries = training.state_entries(state)
    assert entries.keys() == {0, 2}
    assert all(tuple(entry) == training.state_keys() for entry in entries.values())
    key = training.state_keys()[0]
    assert torch.equal(entries[2][key], state[f"2/{key}"])
    entries[2][key].zero_()  # a copy
    assert state[f"2/{key}"].all()


def test_the_state_of_another_optimiser() -> None:
    with pytest.raises(ConfigError, match="of another optimiser than 'sgd': it has 'exp_avg'"):
        Training().state_entries({"0/exp_avg": torch.ones(1)})
