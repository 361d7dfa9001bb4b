"""What came is used if it makes sense and is a number; the rest is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from p2p_dml import reading
from p2p_dml.errors import WireError
from p2p_dml.types import Coded, Mail, Message, Payload, PeerId, Tag

OWN = {"x": torch.zeros(2)}
GOOD = Payload({"x": torch.ones(2)}, {"weight": 1.0})


def bad(x: float = 1.0, weight: float = 1.0) -> Payload:
    return Payload({"x": torch.tensor([1.0, x])}, {"weight": weight})


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (bad(x=math.nan), "tensor 'x' holds a NaN or an infinity"),
        (bad(x=-math.inf), "tensor 'x' holds a NaN or an infinity"),
        (bad(weight=math.nan), "scalar 'weight' is nan"),
        (Payload({"y": torch.ones(2)}), "tensor names differ: missing ['x'], unexpected ['y']"),
        (Payload({"x": torch.ones(3)}), "tensor 'x': expected torch.float32 [2], got"),
    ],
)
def test_what_cannot_be_used_is_refused_and_the_rest_is_not(payload: Payload, why: str) -> None:
    refused: list[tuple[PeerId, str]] = []
    read = reading.reader({5: Payload(OWN)}, {})
    mail = Mail({1: GOOD, 2: payload})
    good = reading.on_time(mail, read, lambda sender, why: refused.append((sender, why)))
    assert good == {1: GOOD}
    ((sender, said),) = refused
    assert sender == 2 and said.startswith(why)


def test_who_sends_nothing_expects_what_looks_like_its_model() -> None:
    read = reading.reader({}, OWN)
    assert read(1, GOOD) is GOOD
    with pytest.raises(WireError, match="names differ"):
        read(1, Payload({}))


def test_what_is_decoded_must_be_numbers_too() -> None:
    def decode(sender: PeerId, payload: Payload) -> Payload:
        return Payload({"x": 1 / payload.tensors["x"]})

    refused: list[PeerId] = []
    mail = Mail({1: GOOD, 2: Payload({"x": torch.zeros(2)})})
    read = reading.reader(Coded({}, decode), OWN)
    good = reading.on_time(mail, read, lambda sender, why: refused.append(sender))
    assert (list(good), refused) == ([1], [2])


def test_late_messages_must_be_numbers() -> None:
    refused: list[PeerId] = []
    late = [Message(1, Tag(1), GOOD), Message(2, Tag(1), bad(x=math.nan))]
    found = reading.late(Mail({}, late), lambda sender, why: refused.append(sender))
    assert (found, refused) == (late[:1], [2])


@pytest.mark.parametrize(
    "tensors",
    [{}, {"mask": torch.tensor([True])}, {"large": torch.full((4,), 3e38)}],
    ids=lambda tensors: ",".join(tensors),
)
def test_no_number_too_few_and_none_that_is_only_large(tensors: Mapping[str, torch.Tensor]) -> None:
    payload = Payload(tensors)
    found = reading.on_time(
        Mail({1: payload}), lambda sender, given: given, lambda sender, why: pytest.fail(why)
    )
    assert found == {1: payload}
