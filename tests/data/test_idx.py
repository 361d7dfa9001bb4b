"""MNIST and Fashion-MNIST: the format from files made here, the real set where it is found."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p2p_dml import data
from p2p_dml.data import _places
from p2p_dml.data.idx import FILES
from p2p_dml.errors import ConfigError

COUNTS = (3, 3, 2, 2)


def idx_bytes(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def contents() -> list[bytes]:
    """Four tiny IDX files; pixel values count up, labels are 0, 1, 2."""
    made = []
    for file, count in zip(FILES, COUNTS, strict=True):
        shape = (count, 28, 28) if "images" in file else (count,)
        made.append(idx_bytes(np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)))
    return made


def write(folder: Path, *, packed: bool) -> Path:
    folder.mkdir(parents=True)
    for file, content in zip(FILES, contents(), strict=True):
        name = file + ".gz" if packed else file
        (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "below"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")]
)
def test_reads_plain_and_gzipped_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, below: str, packed: bool
) -> None:
    write(tmp_path / below, packed=packed)
    monkeypatch.setenv(_places.VARIABLE, str(tmp_path))
    dataset = data.load({"name": name})
    assert dataset.train_x.shape == (3, 1, 28, 28)
    assert dataset.train_x[1, 0, 0, 0] == 784 % 256
    assert dataset.test_y.tolist() == [0, 1]


def test_mean_and_std_are_in_raw_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "MNIST/raw", packed=False)
    monkeypatch.setenv(_places.VARIABLE, str(tmp_path))
    dataset = data.load({"name": "mnist", "mean": 0.5, "std": 1.0})
    assert (dataset.mean, dataset.std) == ((127.5,), (255.0,))


def test_falls_back_to_the_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "shared/data/MNIST/raw", packed=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv(_places.VARIABLE, str(tmp_path / "elsewhere"))
    assert data.load({"name": "mnist"}).num_samples == 3


def test_missing_set_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "MNIST/raw", packed=True)
    (folder / f"{FILES[2]}.gz").unlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv(_places.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        data.load({"name": "mnist"})
    text = str(caught.value)
    assert "'mnist'" in text
    assert str(tmp_path) in text
    assert "../shared/data" in text
    assert "p2p-dml data fetch mnist" in text


Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, tuple[int, Damage, str]] = {
    "magic": (0, lambda old: b"\x00\x00\x09\x03" + old[4:], "magic number 2051"),
    "empty": (1, lambda old: b"", "magic number 2049"),
    "short header": (0, lambda old: old[:10], "header is truncated"),
    "too short": (0, lambda old: old[:-1], "expected 2352 bytes"),
    "too long": (3, lambda old: old + b"\x00", "found 3"),
    "not 28 x 28": (0, lambda old: idx_bytes(np.zeros((3, 8, 8), np.uint8)), "28 x 28"),
    "label 10": (1, lambda old: old[:-1] + b"\x0a", "labels 0 to 9"),
    "fewer labels": (1, lambda old: idx_bytes(np.zeros(2, np.uint8)), "expected 3 labels"),
    "no images": (2, lambda old: idx_bytes(np.zeros((0, 28, 28), np.uint8)), "labels"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    number, change, message = DAMAGES[damage]
    file = write(tmp_path / "MNIST/raw", packed=False) / FILES[number]
    file.write_bytes(change(file.read_bytes()))
    monkeypatch.setenv(_places.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=message) as caught:
        data.load({"name": "mnist"})
    assert "data fetch mnist" in str(caught.value)


@pytest.mark.parametrize("keep", [20, 2])
def test_truncated_gzip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    file = write(tmp_path / "MNIST/raw", packed=True) / f"{FILES[0]}.gz"
    file.write_bytes(file.read_bytes()[:keep])
    monkeypatch.setenv(_places.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        data.load({"name": "mnist"})


def test_the_real_set() -> None:
    if _places.holder(f"MNIST/raw/{file}" for file in FILES) is None:
        pytest.skip("MNIST is not on this machine")
    dataset = data.load({"name": "mnist"})
    counts = np.bincount(dataset.train_y).tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert dataset.test_x.shape == (10_000, 1, 28, 28)
    assert dataset.mean == pytest.approx((dataset.train_x.mean(),), abs=0.02)
    assert dataset.std == pytest.approx((dataset.train_x.std(),), abs=0.02)
