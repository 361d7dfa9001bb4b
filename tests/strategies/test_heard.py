"""Messages without the numbers that a strategy needs count as missing."""

from __future__ import annotations

import math

import pytest
import torch

from p2p_dml.strategies._coded import Coded
from p2p_dml.strategies._heard import MOST, with_numbers
from p2p_dml.strategies._length import stretch
from p2p_dml.strategies._signal import remove_scale
from p2p_dml.types import Inbox, Neighbourhood, Payload

HOOD = Neighbourhood(0, 0.4, {1: 0.3, 2: 0.3}, {1: 0.3, 2: 0.3})


def inbox_of(*scalars: dict[str, float]) -> Inbox:
    x = {"x": torch.zeros(2)}
    return Inbox(HOOD, {j: Payload(x, each) for j, each in enumerate(scalars, 1)})


@pytest.mark.parametrize(
    ("scalars", "is_heard"),
    [
        ({"a": 1.0, "b": -2.0}, True),
        ({"a": 1.0, "b": -2.0, "c": math.nan}, True),
        ({"a": MOST, "b": -MOST}, True),
        ({"a": 1.0}, False),
        ({}, False),
        ({"a": math.nan, "b": 1.0}, False),
        ({"a": math.inf, "b": 1.0}, False),
        ({"a": 1.0, "b": -1e300}, False),
    ],
)
def test_who_lacks_a_number_is_missing_and_its_weight_is_ones_own(
    scalars: dict[str, float], is_heard: bool
) -> None:
    found = with_numbers(inbox_of({"a": 0.0, "b": 0.0}, scalars), ["a", "b"])
    assert [*found.messages] == ([1, 2] if is_heard else [1])
    assert found.self_weight == pytest.approx(0.4 if is_heard else 0.7)


def test_where_nothing_is_needed_the_inbox_is_as_it_was() -> None:
    inbox = inbox_of({}, {"a": math.nan})
    assert with_numbers(inbox, []) is inbox


@pytest.mark.parametrize("cell", [None, 0.0, -1.0, math.nan, math.inf])
def test_a_code_without_a_cell_is_not_read_and_the_cell_not_adopted(cell: float | None) -> None:
    code = Coded(cell=0.25, bits=8)
    model = {"x": torch.tensor([1.0, 2.0])}
    good = code.payload(model)
    scalars = {k: v for k, v in good.scalars.items() if k != "cell"}
    bad = Payload(good.tensors, scalars if cell is None else {**scalars, "cell": cell})
    inbox = Inbox(HOOD, {1: good, 2: bad})
    shift, num_read = code.mix(model, inbox)
    assert num_read == 1 and shift["x"].tolist() == [0.0, 0.0]
    assert code.next_cell(inbox, num_read, 0.25) == 0.5


def test_a_code_without_a_checksum_is_not_read() -> None:
    code = Coded(cell=0.25, bits=8)
    model = {"x": torch.tensor([1.0, 2.0])}
    bad = Payload(code.payload(model).tensors, {"cell": 0.25})
    assert code.mix(model, Inbox(HOOD, {1: bad}))[1] == 0


def test_a_neighbours_extreme_numbers_end_no_peer() -> None:
    """A factor that float64 holds and float32 does not."""
    tiny, huge = {"x": torch.full((2,), 1e-30)}, {"x": torch.full((2,), 1e30)}
    change = {"x": huge["x"].clone()}
    remove_scale(change, tiny, {"x": "all"})
    assert torch.equal(change["x"], huge["x"])
    stretch(tiny, {"x": 1e30})
    assert torch.equal(tiny["x"], torch.full((2,), 1e-30))
    stretch(tiny, {"x": math.sqrt(2) * 1e-3})
    torch.testing.assert_close(tiny["x"], torch.full((2,), 1e-3))
