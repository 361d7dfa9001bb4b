"""Values and a bitmap: every bit comes back, sizes by hand, files that are something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.export import load_sparse, save_sparse
from p2p_dml.export._sparse import SPARSE_FILE


def _sparse(*shape: int, share: float, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(shape, generator=generator)
    return (x * (torch.rand(shape, generator=generator) < share)).abs().to(dtype)


STATE: Mapping[str, Tensor] = {
    "z.weight": _sparse(13, 7, share=0.3),
    "a.weight": _sparse(4, 3, 5, 5, share=0.1, dtype=torch.float64),
    "half": _sparse(31, share=0.4, dtype=torch.bfloat16),
    "transposed": _sparse(9, 5, share=0.2).t(),
    "dense": torch.arange(1.0, 9.0),
    "empty": torch.zeros(0, 3),
    "zeros": torch.zeros(3, 3),
    "number": torch.tensor(2.5),
    "count": torch.tensor([0, 0, 0, 0, 0, 0, 0, 5]),
    "flags": torch.tensor([True, False, False]),
    "odd": torch.tensor([0.0, -0.0, float("nan"), float("-inf"), 1e-45] + [0.0] * 20),
}


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_every_bit_comes_back(tmp_path: Path) -> None:
    save_sparse(STATE, tmp_path)
    found = load_sparse(tmp_path)
    assert list(found) == list(STATE)
    for name, x in STATE.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
        assert _bytes(found[name]) == _bytes(x)


def test_what_is_in_the_file(tmp_path: Path) -> None:
    x = torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -2.0, 0.0]])
    save_sparse({"x": x, "y": torch.ones(2)}, tmp_path)
    tensors = load_file(tmp_path / SPARSE_FILE)
    assert {name: t.tolist() for name, t in tensors.items()} == {
        "values/x": [3.0, -2.0],
        "bitmap/x": [0b00000010, 0b00000001],  # places 1 and 8
        "whole/y": [1.0, 1.0],
    }


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_size_is_that_of_the_values_and_a_bit_each(share: float, tmp_path: Path) -> None:
    x = _sparse(200, 500, share=share)
    save_sparse({"x": x}, tmp_path)
    expected = 4 * int(x.count_nonzero()) + 100_000 // 8
    assert 0 <= (tmp_path / SPARSE_FILE).stat().st_size - expected < 500


Change = Callable[[dict[str, Tensor], dict[str, str]], None]


def _replaced(name: str, value: Tensor) -> Change:
    return lambda tensors, metadata: tensors.update({name: value})


def _noted(key: str, value: object) -> Change:
    return lambda tensors, metadata: metadata.update({key: json.dumps(value)})


def _without(name: str) -> Change:
    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tensors.pop(name, None)
        metadata.pop(name, None)

    return change


BITS = torch.tensor([0b00000010, 0b00000001], dtype=torch.uint8)
BROKEN: Mapping[str, tuple[Change, str]] = {
    "a value too many": (_replaced("values/x", torch.ones(3)), "2 ones among 16 bits"),
    "values of two axes": (_replaced("values/x", torch.ones(1, 2)), "2 ones among"),
    "a bit behind the end": (
        _replaced("bitmap/x", torch.tensor([2, 128], dtype=torch.uint8)),
        "for 10 places",
    ),
    "a byte too many": (_replaced("bitmap/x", torch.cat([BITS, BITS])), r"expected .* \[2\]"),
    "other bytes": (_replaced("bitmap/x", BITS.to(torch.int16)), "found torch.int16"),
    "another shape": (_noted("shapes", {"x": [5, 5]}), r"shape \[5, 5\]"),
    "negative shape": (_noted("shapes", {"x": [-2, -5]}), r"shape \[-2, -5\]"),
    "a huge shape": (_noted("shapes", {"x": [1 << 40, 1 << 20]}), "expected a bitmap"),
    "no shape": (_noted("shapes", {}), "not of the same tensors"),
    "shape of a word": (_noted("shapes", {"x": "5"}), "shapes"),
    "other names": (_noted("order", ["y"]), r"expected tensors \['y'\]"),
    "no order": (_without("order"), "'order'"),
    "no bitmap": (_without("bitmap/x"), "not of the same tensors"),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_does_not_fit_together(change: Change, says: str, tmp_path: Path) -> None:
    tensors = {"values/x": torch.tensor([3.0, -2.0]), "bitmap/x": BITS.clone()}
    metadata = {"shapes": '{"x": [2, 5]}', "order": '["x"]'}
    path = tmp_path / SPARSE_FILE
    save_file(tensors, path, metadata)
    assert load_sparse(tmp_path)["x"].flatten().nonzero().flatten().tolist() == [1, 8]
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(ConfigError, match=says) as caught:
        load_sparse(tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=SPARSE_FILE):
        load_sparse(tmp_path)
    (tmp_path / SPARSE_FILE).write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_sparse(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=SPARSE_FILE):
        save_sparse(STATE, tmp_path / "file")
