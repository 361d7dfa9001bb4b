"""The data set value: what it accepts, and the field that an error names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2p_dml.data import Dataset


def fields(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "toy",
        "train_x": np.zeros((6, 3, 4, 4), np.uint8),
        "train_y": np.arange(6) % 2,
        "test_x": np.zeros((2, 3, 4, 4), np.uint8),
        "test_y": np.array([0, 1]),
        "num_classes": 2,
    }
    return base | changes


def test_facts() -> None:
    dataset = Dataset(**fields(mean=(1.0, 2.0, 3.0), std=(1.0,), groups=np.arange(6)))
    assert (dataset.shape, dataset.num_samples, dataset.is_tokens) == ((3, 4, 4), 6, False)


def test_text_has_a_label_for_every_token() -> None:
    tokens = np.zeros((4, 5), np.int64)
    changes = {"train_x": tokens, "train_y": tokens, "test_x": tokens, "test_y": tokens}
    assert Dataset(**fields(**changes)).is_tokens


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_classes", {"num_classes": 0}),
        ("train_x", {"train_x": np.zeros((6, 3, 4, 4))}),
        ("train_x", {"train_x": np.zeros(6, np.uint8)}),
        ("train_y", {"train_y": np.zeros(5, np.int64)}),
        ("train_y", {"train_y": np.zeros(6, np.int32)}),
        ("train_y", {"train_y": np.full(6, 2)}),
        ("train_y", {"train_y": np.full(6, -1)}),
        ("test_y", {"test_y": np.array([0, 9])}),
        ("test_x", {"test_x": np.zeros((0, 3, 4, 4), np.uint8), "test_y": np.zeros(0, np.int64)}),
        ("test_x", {"test_x": np.zeros((2, 3, 4, 5), np.uint8)}),
        ("test_x", {"test_x": np.zeros((2, 3, 4, 4), np.float32)}),
        ("test_y", {"test_y": np.zeros((2, 3, 4, 4), np.int64)}),
        ("mean", {"mean": (0.0,)}),
        ("mean", {"mean": (0.0, 0.0), "std": (1.0,)}),
        ("mean", {"mean": (float("nan"),), "std": (1.0,)}),
        ("std", {"mean": (0.0,), "std": (0.0,)}),
        ("groups", {"groups": np.arange(5)}),
        ("groups", {"groups": np.zeros(6)}),
        ("groups", {"groups": np.array([0, 1, 2, 3, 4, -1])}),
    ],
)
def test_error_names_the_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=field):
        Dataset(**fields(**changes))


def test_tokens_are_not_scaled() -> None:
    tokens = np.zeros((4, 5), np.int64)
    changes = {"train_x": tokens, "train_y": tokens, "test_x": tokens, "test_y": tokens}
    with pytest.raises(ValueError, match="mean, std"):
        Dataset(**fields(**changes, mean=(0.0,), std=(1.0,)))
