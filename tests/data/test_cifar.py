"""CIFAR-10: tiny batches made here, refused pickles, the real test batch where it is found."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p_dml import data
from p2p_dml.data import _places
from p2p_dml.data.cifar import FOLDER, TEST_FILE, TRAIN_FILES, read_batch
from p2p_dml.errors import ConfigError


def batch(count: int = 2) -> dict[str, Any]:
    images = np.arange(count * 3072).astype(np.uint8).reshape(count, 3072)
    return {"data": images, "labels": list(range(count))}


def save(file: Path, content: object) -> Path:
    file.write_bytes(pickle.dumps(content, protocol=3))
    return file


class Runs:
    """Pickles to a call of `os.system`."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("exit 1",)


def test_reads_all_batches_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FOLDER).mkdir()
    for number, name in enumerate((*TRAIN_FILES, TEST_FILE), start=1):
        save(tmp_path / FOLDER / name, batch(number))
    monkeypatch.setenv(_places.VARIABLE, str(tmp_path))
    dataset = data.load({"name": "cifar10", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]})
    assert dataset.train_y.tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert dataset.test_x.shape == (6, 3, 32, 32)
    assert dataset.mean == (127.5, 127.5, 127.5)


def test_planes_are_red_green_blue(tmp_path: Path) -> None:
    content = batch()
    content["data"][:] = np.repeat([10, 20, 30], 1024)
    images, labels = read_batch(save(tmp_path / "batch", content))
    assert images[1, :, 5, 7].tolist() == [10, 20, 30]
    assert labels.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Runs(), "system is not allowed"),
        ({"data": Runs(), "labels": []}, "system is not allowed"),
        ({"data": np.array([print]), "labels": [0]}, "not allowed"),
        ({"data": np.zeros((2, 3072)), "labels": [0, 1]}, "element type 'f8'"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, r"\[2, 3072\]"),
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1]}, r"\[2, 3072\]"),
        ({"data": [[0] * 3072], "labels": [0]}, r"\[1, 3072\]"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "labels 0 to 9"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}, "labels 0 to 9"),
        ({"labels": [0]}, "KeyError"),
        ([1, 2], "TypeError"),
    ],
)
def test_refuses_anything_else(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_batch(save(tmp_path / "batch", content))
    assert "data fetch cifar10" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 100, 3000])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    file = save(tmp_path / "batch", batch())
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ConfigError, match="not a CIFAR-10 batch"):
        read_batch(file)


def test_the_real_test_batch() -> None:
    root = _places.holder([f"{FOLDER}/{TEST_FILE}"])
    if root is None:
        pytest.skip("CIFAR-10 is not on this machine")
    images, labels = read_batch(root / FOLDER / TEST_FILE)
    assert images.shape == (10_000, 3, 32, 32)
    assert np.bincount(labels).tolist() == [1000] * 10
