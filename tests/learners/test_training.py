"""The table [train]: defaults, numbers of steps, and values that are refused."""

from __future__ import annotations

import pytest

from p2p_dml import tables
from p2p_dml.errors import ConfigError
from p2p_dml.learners import Training


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
