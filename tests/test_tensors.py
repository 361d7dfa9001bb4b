"""Arithmetic on named tensors, by hand numbers and round trips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p2p_dml import tensors
from p2p_dml.types import Tensors

A: Tensors = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0])}
B: Tensors = {"b": torch.tensor([50.0]), "w": torch.tensor([[10.0, 20.0], [30.0, 40.0]])}


def test_tmap_pairs_by_name_and_keeps_the_first_order() -> None:
    total = tensors.tmap(lambda x, y: x + y, A, B)
    assert list(total) == ["w", "b"]
    assert total["w"].tolist() == [[11.0, 22.0], [33.0, 44.0]]
    assert total["b"].tolist() == [55.0]


def test_tmap_of_one_and_of_three() -> None:
    assert tensors.tmap(torch.neg, A)["b"].tolist() == [-5.0]
    assert tensors.tmap(lambda x, y, z: x * y - z, A, B, A)["b"].tolist() == [245.0]


def test_clone_copies_and_detaches() -> None:
    live = {"w": torch.ones(2, requires_grad=True)}
    copy = tensors.clone(live)
    with torch.no_grad():
        live["w"].mul_(7.0)
    assert copy["w"].tolist() == [1.0, 1.0]
    assert not copy["w"].requires_grad


def test_join_and_part_are_inverse() -> None:
    both = tensors.join(x=A, y=B)
    assert list(both) == ["x/w", "x/b", "y/b", "y/w"]
    assert list(tensors.part(both, "x")) == ["w", "b"]
    assert all(tensors.part(both, "y")[name] is B[name] for name in B)


def test_part_takes_whole_names_only() -> None:
    both = {"x/a/b": A["b"], "xy/a": A["w"], "x": A["w"]}
    assert list(tensors.part(both, "x")) == ["a/b"]
    assert tensors.part(both, "z") == {}


def test_num_elements() -> None:
    assert tensors.num_elements(A) == 5
    assert tensors.num_elements({"scalar": torch.tensor(1.0), "none": torch.zeros(0, 3)}) == 1
    assert tensors.num_elements({}) == 0


def test_num_bytes_counts_every_dtype() -> None:
    mixed = {"a": torch.zeros(3, 5), "b": torch.zeros(2, dtype=torch.int8)}
    assert tensors.num_bytes(mixed) == 3 * 5 * 4 + 2
    assert tensors.num_bytes({}) == 0


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (A, None),
        (dict(reversed(A.items())), None),
        ({"w": A["w"]}, "tensor names differ: missing ['b'], unexpected none"),
        (A | {"c": A["b"]}, "tensor names differ: missing none, unexpected ['c']"),
        (A | {"b": torch.zeros(2)}, "'b': expected torch.float32 [1], got torch.float32 [2]"),
        (A | {"b": A["b"].double()}, "'b': expected torch.float32 [1], got torch.float64 [1]"),
        ({}, "tensor names differ: missing ['b', 'w'], unexpected none"),
    ],
)
def test_mismatch_says_what_differs(got: dict[str, Tensor], message: str | None) -> None:
    found = tensors.mismatch(got, A)
    assert (found is None) if message is None else (found is not None and message in found)


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({}, None),
        ({"i": torch.tensor([1]), "b": torch.tensor([True])}, None),
        ({"a": torch.ones(2), "x": torch.tensor([1.0, float("nan")])}, "x"),
        ({"x": torch.tensor([float("inf")]), "y": torch.tensor([float("-inf")])}, "x"),
        ({"x": torch.full((2,), 3e38)}, None),  # whose sum is no float32
        ({"x": torch.zeros(0)}, None),
    ],
)
def test_the_first_that_is_not_finite(found: Tensors, name: str | None) -> None:
    assert tensors.not_finite(found) == name
