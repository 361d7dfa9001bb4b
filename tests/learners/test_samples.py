"""What a peer holds of each class, and classes that it could not be tested on."""

from __future__ import annotations

import numpy as np
import pytest

from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError
from p2p_dml.learners import own_counts


def labelled(train: list[int], test: list[int]) -> Dataset:
    x = np.zeros((max(len(train), len(test)), 2), np.float32)
    return Dataset(
        name="toy",
        train_x=x[: len(train)],
        train_y=np.array(train),
        test_x=x[: len(test)],
        test_y=np.array(test),
        num_classes=9,
    )


def test_counts_are_of_the_rows_and_of_classes_that_occur() -> None:
    dataset = labelled([8, 0, 8, 5, 8], [0, 5, 8])
    assert own_counts(dataset, np.array([4, 0, 1])) == {0: 1, 8: 2}
    assert list(own_counts(dataset, np.arange(5))) == [0, 5, 8]


def test_classes_without_a_test_are_refused() -> None:
    dataset = labelled([8, 0, 7, 5], [0, 5])
    assert own_counts(dataset, np.array([1, 3])) == {0: 1, 5: 1}
    with pytest.raises(ConfigError, match="'toy' has no test samples of class 7; test on more"):
        own_counts(dataset, np.arange(4))


def test_text_cannot_be_tested_by_class() -> None:
    tokens = np.arange(60).reshape(10, 6) % 3
    text = Dataset(
        name="text", train_x=tokens, train_y=tokens, test_x=tokens, test_y=tokens, num_classes=3
    )
    with pytest.raises(ConfigError, match="'text' labels every character; expected \"all\""):
        own_counts(text, np.array([0]))
