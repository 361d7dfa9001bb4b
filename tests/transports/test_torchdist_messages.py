"""Payloads in flat buffers: what is written is read, and nothing else is."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from p2p_dml import wire
from p2p_dml.errors import ConfigError, TransportError
from p2p_dml.transports._dist_messages import (
    HEAD_BYTES,
    NO_LAYOUT,
    Layout,
    body_bytes,
    decode_layout,
    difference,
    letter_of,
    read_alike,
    read_coded,
    read_head,
)
from p2p_dml.types import Payload, Tag

SENDER, TAG = 3, Tag(7, 2)
PAYLOAD = Payload(
    {"x": torch.arange(6.0).view(2, 3), "mask": torch.tensor([True, False, True])}, {"w": 0.25}
)
LAYOUT = Layout(wire.slots_of(PAYLOAD.tensors))


def _written(payload: Payload, *, is_alike: bool) -> Tensor:
    letter = letter_of(payload, SENDER, TAG, is_alike=is_alike)
    flat = torch.full((letter.num_bytes,), 255, dtype=torch.uint8)
    letter.write(flat)
    return flat


def _expect_payload(found: Payload) -> None:
    assert dict(found.scalars) == dict(PAYLOAD.scalars)
    assert list(found.tensors) == list(PAYLOAD.tensors)
    for name, x in PAYLOAD.tensors.items():
        assert found.tensors[name].dtype == x.dtype
        assert torch.equal(found.tensors[name], x)


def test_payloads_that_look_alike() -> None:
    flat = _written(PAYLOAD, is_alike=True)
    assert flat.numel() == LAYOUT.num_bytes
    _expect_payload(read_alike(flat, LAYOUT, SENDER, TAG))


def test_payloads_with_a_header() -> None:
    flat = _written(PAYLOAD, is_alike=False)
    sizes = read_head(bytes(flat[:HEAD_BYTES].numpy()), SENDER, TAG, NO_LAYOUT)
    assert sizes[1] == LAYOUT.block_bytes
    assert flat.numel() == HEAD_BYTES + body_bytes(*sizes)
    _expect_payload(read_coded(flat[HEAD_BYTES:], sizes[0], SENDER))


def test_sizes_by_hand() -> None:
    """Six floats, then at the next multiple of 64 three bits: 65 bytes, after two and a head."""
    assert LAYOUT.block_bytes == 65
    assert LAYOUT.header_room == 1024 + 2 * 128
    assert LAYOUT.num_bytes == 64 + 1280 + 65
    assert body_bytes(65, 10) == 128 + 10


def test_a_layout_travels() -> None:
    assert decode_layout(LAYOUT.encode()) == LAYOUT
    assert decode_layout(Layout(()).encode()) == Layout(())


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": torch.zeros(3)}, "tensors [('x', 'float32', (3,))] instead of"),
        ({"y": torch.zeros(2, 3)}, "tensors [('y', 'float32', (2, 3))] instead of"),
        ({name: PAYLOAD.tensors[name] for name in ("mask", "x")}, "tensors in another order"),
    ],
)
def test_layouts_differ_in_words(tensors: dict[str, Tensor], words: str) -> None:
    other = Layout(wire.slots_of(tensors))
    assert other.mark != LAYOUT.mark
    assert difference(other, LAYOUT).startswith(words)


def test_scalars_have_room_but_not_for_any_number() -> None:
    many = {f"scalar number {i}": 0.5 for i in range(30)}
    flat = _written(Payload({}, many), is_alike=True)
    assert dict(read_alike(flat, Layout(()), SENDER, TAG).scalars) == many
    too_many = {f"scalar number {i}": 0.5 for i in range(60)}
    with pytest.raises(ConfigError, match=r"peer 3, round 7: the 60 scalars .* of 1024;"):
        letter_of(Payload({}, too_many), SENDER, TAG, is_alike=True)
    assert letter_of(Payload({}, too_many), SENDER, TAG, is_alike=False).header_room > 1024


def _set_byte(at: int, value: int) -> Callable[[Tensor], None]:
    def change(flat: Tensor) -> None:
        flat[at] = value

    return change


def _set_int(field: int, value: int) -> Callable[[Tensor], None]:
    """One of the numbers of the head: sender, round, exchange, bytes of header and of block."""

    def change(flat: Tensor) -> None:
        at = 8 + 8 * field
        flat[at : at + 8] = torch.tensor(list(struct.pack("<q", value)), dtype=torch.uint8)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set_byte(0, 0), "sent no message of this runtime"),
        (_set_int(0, 2), "expected peer 3, round 7, exchange 2; found peer 2, round 7, exchange 2"),
        (_set_int(1, 6), "found peer 3, round 6, exchange 2"),
        (_set_int(2, 0), "found peer 3, round 7, exchange 0"),
        (_set_int(3, 1 << 40), "says 1099511627776 and 65 bytes"),
        (_set_int(3, -1), "says -1 and 65 bytes"),
        (_set_int(4, 64), "and 64 bytes"),
        (_set_byte(48, 0), "another layout"),
        (_set_byte(HEAD_BYTES, 0), "cannot be read: header is not msgpack|does not begin"),
        (_set_byte(64 + 1280 + 64, 0xFF), "cannot be read: tensor 'mask': padding bits are set"),
    ],
)
def test_what_is_not_due_is_an_error_that_names_the_sender(
    change: Callable[[Tensor], None], words: str
) -> None:
    flat = _written(PAYLOAD, is_alike=True)
    change(flat)
    with pytest.raises(TransportError, match=words) as error:
        read_alike(flat, LAYOUT, SENDER, TAG)
    assert error.value.peer == SENDER


def test_a_header_must_fit_its_block() -> None:
    flat = _written(PAYLOAD, is_alike=False)
    size, _ = read_head(bytes(flat[:HEAD_BYTES].numpy()), SENDER, TAG, NO_LAYOUT)
    longer = torch.cat([flat[HEAD_BYTES:], torch.zeros(1, dtype=torch.uint8)])
    for body in (longer, flat[HEAD_BYTES:-1]):
        with pytest.raises(TransportError, match="peer 3 sent what cannot be read: block"):
            read_coded(body, size, SENDER)
