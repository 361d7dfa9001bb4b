"""Data sets by name, and the user's own loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from p2p_dml import data
from p2p_dml.errors import ConfigError

LOADER = """
import numpy as np
from p2p_dml.data import Dataset

def load(size: int = 4) -> Dataset:
    x = np.zeros((size, 2), np.float32)
    y = np.zeros(size, np.int64)
    return Dataset(name="own", train_x=x, train_y=y, test_x=x, test_y=y, num_classes=1)

def wrong() -> int:
    return 3

def fails() -> Dataset:
    raise OSError("the disk is elsewhere")
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_data_loader.py").write_text(LOADER, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_data_loader"


def test_digits() -> None:
    dataset = data.load({"name": "digits"})
    again = data.load({"name": "digits"})
    assert (len(dataset.train_x), len(dataset.test_x)) == (1437, 360)
    assert dataset.shape == (1, 8, 8)
    assert dataset.train_x.max() == 16
    assert np.array_equal(dataset.train_x, again.train_x)
    counts = np.bincount(np.concatenate([dataset.train_y, dataset.test_y]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(dataset.test_y).min() > 20


def test_own_loader_takes_the_other_keys(own_module: str) -> None:
    dataset = data.load({"name": f"{own_module}:load", "size": 7})
    assert (dataset.name, dataset.num_samples) == ("own", 7)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, r"data\.name: expected a name"),
        ({"name": 3}, "found 3"),
        ({"name": "mnsit"}, "did you mean 'mnist'"),
        ({"name": "digits", "size": 3}, r"data\.size: unknown key"),
        ({"name": "own_data_loader:load", "size": "3"}, r"data\.size"),
        ({"name": "own_data_loader:load", "count": 3}, r"data\.count: unknown key"),
        ({"name": "own_data_loader:load", "size": 0}, "expected at least one sample"),
        ({"name": "own_data_loader:wrong"}, "must return a p2p_dml.data.Dataset, found int"),
        ({"name": "own_data_loader:fails"}, "OSError: the disk is elsewhere.*in fails"),
    ],
)
def test_errors(own_module: str, table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.load(table)


def test_testing_on_the_first_samples_only() -> None:
    whole, some = data.load({"name": "digits"}), data.load({"name": "digits", "test_samples": 7})
    assert np.array_equal(some.test_x, whole.test_x[:7])
    assert np.array_equal(some.test_y, whole.test_y[:7])
    assert some.num_samples == whole.num_samples


@pytest.mark.parametrize("limit", [0, 361, 2.5, True, "all"])
def test_a_wrong_number_of_test_samples_is_refused(limit: object) -> None:
    with pytest.raises(ConfigError, match=r"data\.test_samples: expected .* from 1 to 360, found"):
        data.load({"name": "digits", "test_samples": limit})
