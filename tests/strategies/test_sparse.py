"""Sparse models on the wire: by hand, there and back, and every message that makes no sense."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.strategies._masked import figures_of
from p2p_dml.strategies._sparse import SparseCode
from p2p_dml.tensors import part
from p2p_dml.types import Payload, Tensors

MODEL = {
    "a.weight": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    "a.bias": torch.tensor([7.0, 8.0]),
    "b.weight": torch.tensor([[9.0, 10.0]]),
}
MASKS = {
    "a.weight": torch.tensor([[True, False, True], [False, False, True]]),
    "b.weight": torch.tensor([[False, True]]),
}
CODE = SparseCode(like=MODEL, kept=lambda sender: [3, 1])


def test_kept_values_and_their_places_travel_and_biases_as_they_are() -> None:
    sent = CODE.payload(MODEL, MASKS)
    assert set(sent.tensors) == {"values", "mask", "dense/a.bias"}
    assert sent.tensors["values"].tolist() == [1, 3, 6, 10]
    assert sent.tensors["mask"].tolist() == [0b10100101]
    assert sent.tensors["dense/a.bias"].tolist() == [7, 8]


def test_what_was_dropped_is_0_at_the_other_end() -> None:
    read = CODE.read(4, CODE.payload(MODEL, MASKS)).tensors
    x, m = part(read, "x"), part(read, "m")
    assert list(x) == list(MODEL)
    assert x["a.weight"].tolist() == [[1, 0, 3], [0, 0, 6]]
    assert x["b.weight"].tolist() == [[0, 10]]
    assert x["a.bias"].tolist() == [7, 8]
    assert {name: mask.tolist() for name, mask in m.items()} == {
        name: mask.tolist() for name, mask in MASKS.items()
    }


@given(
    seed=st.integers(0, 2**32),
    shapes=st.lists(
        st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4
    ).filter(lambda shapes: any(len(shape) > 1 for shape in shapes)),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_there_and_back(
    seed: int, shapes: list[list[int]], density: float, dtype: torch.dtype
) -> None:
    draws = torch.Generator().manual_seed(seed)
    model: Tensors = {
        str(i): torch.randn(shape, generator=draws, dtype=dtype) for i, shape in enumerate(shapes)
    }
    weights = {name: x for name, x in model.items() if x.dim() > 1}
    masks = {name: torch.rand(x.shape, generator=draws) < density for name, x in weights.items()}
    kept = [int(mask.sum()) for mask in masks.values()]
    code = SparseCode(like=model, kept=lambda sender: kept)
    read = part(code.read(0, code.payload(model, masks)).tensors, "x")
    for name, x in model.items():
        assert torch.equal(read[name], x * masks[name] if name in masks else x)


def changed(**tensors: Tensor) -> Payload:
    return Payload({**CODE.payload(MODEL, MASKS).tensors, **tensors})


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (Payload({}), "missing"),
        (Payload(MODEL), "unexpected"),
        (changed(more=torch.zeros(1)), "unexpected"),
        (Payload(CODE.payload(MODEL, MASKS).tensors, {"round": 1.0}), "scalars"),
        (changed(mask=torch.zeros(0, dtype=torch.uint8)), r"expected torch.uint8 \[1\]"),
        (changed(mask=torch.zeros(2, dtype=torch.uint8)), r"got torch.uint8 \[2\]"),
        (changed(mask=torch.zeros(1, 1, dtype=torch.uint8)), r"got torch.uint8 \[1, 1\]"),
        (changed(mask=torch.zeros(1, dtype=torch.int8)), "got torch.int8"),
        (changed(values=torch.zeros(3)), r"'values': expected torch.float32 \[4\]"),
        (changed(values=torch.zeros(5)), r"'values': expected torch.float32 \[4\]"),
        (changed(values=torch.zeros(2, 2)), r"got torch.float32 \[2, 2\]"),
        (changed(values=torch.zeros(4, dtype=torch.float64)), "got torch.float64"),
        (changed(**{"dense/a.bias": torch.zeros(3)}), "a.bias"),
        (changed(mask=torch.tensor([0b11100001], dtype=torch.uint8)), r"\[2, 2\] ones"),
        (changed(mask=torch.tensor([0b00000000], dtype=torch.uint8)), r"\[0, 0\] ones"),
    ],
)
def test_messages_that_make_no_sense_are_refused(payload: Payload, why: str) -> None:
    with pytest.raises(WireError, match=why):
        CODE.read(0, payload)


def test_bits_behind_the_last_weight_are_refused() -> None:
    model = {"w": torch.ones(1, 5)}
    code = SparseCode(like=model, kept=lambda sender: [2])
    bits = torch.tensor([0b00100010], dtype=torch.uint8)
    with pytest.raises(WireError, match="behind its 5 values"):
        code.read(0, Payload({"values": torch.ones(2), "mask": bits}))


def test_the_number_of_ones_is_that_of_the_sender() -> None:
    code = SparseCode(like=MODEL, kept=lambda sender: [3, sender])
    sent = code.payload(MODEL, MASKS)
    code.read(1, sent)
    with pytest.raises(WireError, match="values"):
        code.read(2, sent)


def test_figures_by_hand() -> None:
    """4 of 8 weights; of two and one outputs none and then one is empty."""
    assert figures_of(MASKS) == {"share/kept": 0.5, "share/empty outputs": 0.0}
    without = {**MASKS, "b.weight": torch.zeros(1, 2).bool()}
    assert figures_of(without) == {"share/kept": 3 / 8, "share/empty outputs": 1 / 3}
