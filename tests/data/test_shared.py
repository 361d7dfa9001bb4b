"""One copy of a data set for all processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from p2p_dml.data import Dataset, open_shared, share
from p2p_dml.errors import ConfigError, StorageError


def dataset(*, scaled: bool) -> Dataset:
    x = np.arange(24, dtype=np.uint8).reshape(6, 1, 2, 2)
    return Dataset(
        name="toy",
        train_x=x,
        train_y=np.arange(6) % 3,
        test_x=x[:2],
        test_y=np.array([2, 0]),
        num_classes=3,
        mean=(11.5,) if scaled else None,
        std=(6.9,) if scaled else None,
        groups=np.arange(6) // 2 if scaled else None,
    )


@pytest.mark.parametrize("scaled", [True, False])
def test_round_trip(tmp_path: Path, scaled: bool) -> None:
    before = dataset(scaled=scaled)
    share(before, tmp_path / "data")
    after = open_shared(tmp_path / "data")
    for name in ("train_x", "train_y", "test_x", "test_y", "groups"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert (after.name, after.num_classes) == ("toy", 3)
    assert (after.mean, after.std) == (before.mean, before.std)


def test_all_openers_see_the_same_pages_and_cannot_write(tmp_path: Path) -> None:
    share(dataset(scaled=True), tmp_path)
    first, second = open_shared(tmp_path), open_shared(tmp_path)
    writer = np.load(tmp_path / "train_x.npy", mmap_mode="r+")
    writer[3, 0, 1, 1] = 99
    assert (first.train_x[3, 0, 1, 1], second.train_x[3, 0, 1, 1]) == (99, 99)
    with pytest.raises(ValueError, match="read-only"):
        first.train_x[0] = 0


def test_folder_without_a_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no shared data set"):
        open_shared(tmp_path)


def test_half_a_set(tmp_path: Path) -> None:
    share(dataset(scaled=True), tmp_path)
    (tmp_path / "test_y.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match="no shared data set"):
        open_shared(tmp_path)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot share"):
        share(dataset(scaled=True), tmp_path / "file" / "below")
