"""The wire format: what is sent arrives, and whatever else arrives is a WireError."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from p2p_dml import wire
from p2p_dml.errors import WireError
from p2p_dml.types import Payload, Tag
from p2p_dml.wire import Header, Kind

DIGEST = b"0123456789abcdef"
LIMIT = 1 << 20


def encode(
    tensors: Mapping[str, Tensor], scalars: Mapping[str, float] | None = None
) -> tuple[bytes, bytes]:
    """Header and block of a message from peer 3."""
    slots = wire.slots_of(tensors)
    header = Header(Kind.ROUND, DIGEST, 3, 7, Tag(5, 1), "note", scalars or {}, slots)
    block = torch.zeros(header.block_bytes, dtype=torch.uint8)
    wire.write_block(tensors, slots, block)
    return wire.encode_header(header), block.numpy().tobytes()


def round_trip(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return wire.decode(*encode(tensors), LIMIT)[1].tensors


def assert_same(received: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> None:
    """Names in order, dtypes, shapes and bits."""
    assert list(received) == list(sent)
    for name, x in sent.items():
        got = received[name]
        assert (got.dtype, got.shape) == (x.dtype, x.shape)
        bits = [each.detach().reshape(-1).view(torch.uint8) for each in (got, x.contiguous())]
        assert torch.equal(*bits)


SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (63,), (64,), (65,), (0, 5), (5, 0, 2), (3, 4, 5)]


@pytest.mark.parametrize("dtype", wire.DTYPES.values())
def test_every_dtype_and_shape(dtype: torch.dtype) -> None:
    words = (torch.arange(1024) * 37 % 256).to(torch.uint8)
    values = words % 3 == 0 if dtype is torch.bool else words.view(dtype)
    sent = {str(shape): values[: math.prod(shape)].reshape(shape).clone() for shape in SHAPES}
    sent["eight dimensions"] = values[:2].reshape(1, 1, 1, 1, 2, 1, 1, 1).clone()
    assert_same(round_trip(sent), sent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.bfloat16])
def test_views_travel_by_value(dtype: torch.dtype) -> None:
    base = (torch.arange(60).view(3, 4, 5) % 7 - 1).to(dtype)
    sent = {
        "transposed": base.permute(2, 0, 1),
        "strided": base[:, ::2, 1:4],
        "expanded": base[0, 0, :1].expand(9),
    }
    assert_same(round_trip(sent), {name: x.contiguous() for name, x in sent.items()})


def test_parameters_that_need_gradients_travel() -> None:
    received = round_trip({"w": torch.ones(2, requires_grad=True)})["w"]
    assert (received.tolist(), received.requires_grad) == ([1.0, 1.0], False)


ARRAYS = st.builds(
    lambda name, dtype, shape, seed: (name, dtype, tuple(shape), seed),
    st.text(max_size=20),
    st.sampled_from(list(wire.DTYPES)),
    st.lists(st.integers(0, 5), max_size=4),
    st.integers(0, 2**32),
)


@given(st.lists(ARRAYS, max_size=6, unique_by=lambda array: array[0]))
def test_any_message_comes_back(arrays: list[tuple[str, str, tuple[int, ...], int]]) -> None:
    sent: dict[str, Tensor] = {}
    for name, dtype, shape, seed in arrays:
        words = np.random.Philox(key=seed).random_raw(max(1, math.prod(shape)))
        raw = torch.from_numpy(words.astype("<u8").view(np.uint8))
        values = raw > 127 if dtype == "bit" else raw.view(wire.DTYPES[dtype])
        sent[name] = values[: math.prod(shape)].reshape(shape)
    assert_same(round_trip(sent), sent)


@given(
    st.sampled_from(Kind),
    st.lists(st.integers(0, wire.MAX_INT), min_size=4, max_size=4),
    st.text(max_size=wire.MAX_NAME),
    st.dictionaries(st.text(max_size=9), st.floats(allow_nan=False), max_size=4),
)
def test_any_header_comes_back(
    kind: Kind, numbers: list[int], note: str, scalars: dict[str, float]
) -> None:
    sender, incarnation, round_, exchange = numbers
    header = Header(kind, DIGEST, sender, incarnation, Tag(round_, exchange), note, scalars)
    assert wire.decode_header(wire.encode_header(header), 0) == header


def test_layout_by_hand() -> None:
    """Twelve bytes; ten bits at the next multiple of 64; one double at the one after it."""
    tensors = {
        "x": torch.tensor([1.0, 2.0, 3.0]),
        "mask": torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 0, 1], dtype=torch.bool),
        "y": torch.tensor(0.5, dtype=torch.float64),
    }
    assert [(s.begin, s.end) for s in wire.slots_of(tensors)] == [(0, 12), (64, 66), (128, 136)]
    _, block = encode(tensors)
    assert block[:12] == np.array([1, 2, 3], "<f4").tobytes()
    assert block[64:66] == bytes([0b1000_0001, 0b0000_0010])
    assert block[128:] == np.array(0.5, "<f8").tobytes()


def test_every_tensor_is_aligned() -> None:
    slots = wire.slots_of({str(n): torch.zeros(n, dtype=torch.uint8) for n in range(130)})
    assert all(slot.begin % wire.ALIGNMENT == 0 for slot in slots)
    assert all(a.end <= b.begin < a.end + wire.ALIGNMENT for a, b in pairwise(slots))


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_every_buffer_can_be_decoded(buffer: type[bytes | bytearray | memoryview]) -> None:
    sent = {"x": torch.arange(100.0)}
    header, block = encode(sent)
    _, payload = wire.decode(buffer(header), buffer(block), LIMIT)
    assert_same(payload.tensors, sent)


def test_blocks_at_odd_addresses_are_decoded() -> None:
    sent = {"x": torch.arange(100.0, dtype=torch.float64)}
    header, block = encode(sent)
    odd = memoryview(bytearray(b"?" + block))[1:]
    assert_same(wire.decode(header, odd, LIMIT)[1].tensors, sent)


def test_large_blocks_are_not_copied() -> None:
    header, block = encode({"x": torch.zeros(1000)})
    kept = torch.frombuffer(bytearray(block), dtype=torch.uint8)
    x = wire.decode(header, kept.numpy().data, LIMIT)[1].tensors["x"]
    assert x.data_ptr() == kept.data_ptr()


def test_dtypes_outside_the_list_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match=r"tensor 'z': torch\.complex64 cannot be sent; use one of"):
        wire.slots_of({"z": torch.zeros(1, dtype=torch.complex64)})


def test_headers_nobody_would_accept_cannot_be_sent() -> None:
    slots = wire.slots_of({f"{i:0500}": torch.zeros(0) for i in range(2200)})
    with pytest.raises(ValueError, match="exceeds 1048576"):
        wire.encode_header(Header(Kind.ROUND, DIGEST, 0, 0, Tag(1), slots=slots))


# ---- refusals ------------------------------------------------------------------------------

PLAIN: list[object] = ["p2p_dml", 1, 3, DIGEST, 3, 7, 5, 1, "", {"a": 1.0}, []]


def with_field(place: int, value: object) -> bytes:
    data: bytes = msgpack.packb([*PLAIN[:place], value, *PLAIN[place + 1 :]])
    return data


def bad(place: int, message: str, *values: object) -> Iterable[tuple[int, object, str]]:
    return [(place, value, message) for value in values]


BAD_FIELDS = [
    *bad(0, "does not begin with the magic", "p2p", b"p2p_dml", None, 1, []),
    *bad(1, "speaks wire version", 0, 2, True, 1.0, "1", None, [[1]]),
    *bad(2, "kind: unknown", -1, len(Kind), True, 3.0, "ROUND", None, [3]),
    *bad(3, "digest: expected 16 bytes", b"", DIGEST * 2, "0" * 16, None, 5),
    *bad(4, "sender: expected a natural number", -1, 1 << 63, True, 1.0, "1", None, []),
    *bad(5, "incarnation: expected a natural number", -1, (1 << 64) - 1, False, 1.0, {}),
    *bad(6, "round: expected a natural number", -1, 1 << 63, True, 1.0, b"1", None),
    *bad(7, "exchange: expected a natural number", -(1 << 63), True, 0.0, "", None),
    *bad(8, "note: expected text", None, 5, b"x", "x" * 513, []),
    *bad(9, "scalars: expected a map", None, [], 1.0, "a", {str(i): 0.0 for i in range(1025)}),
    *bad(9, "scalars: expected text", {"x" * 513: 0.0}, {b"x": 0.0}),
    *bad(9, r"scalars\.x: expected a float", *({"x": x} for x in (1, True, None, "1", [1.0]))),
    *bad(10, "tensors: expected a list", None, {}, 1, "x"),
]


@pytest.mark.parametrize(("place", "value", "message"), BAD_FIELDS)
def test_every_wrong_field_is_named(place: int, value: object, message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.decode_header(with_field(place, value), LIMIT)


def entries(message: str, *values: object) -> Iterable[tuple[object, str]]:
    return [(value, message) for value in values]


NAMES: list[object] = [None, 1, b"x", "x" * 513]
DTYPES: list[object] = ["complex64", "object", "", None, 1, ["int8"], b"int8"]
NO_SHAPES: list[object] = [None, 1, "1", {}]
SIZES: list[object] = [-1, 1.0, True, None, "1", [1], 1 << 63]
LONG = [[0, 1 << 62], [1 << 41], [1 << 30, 1 << 30, 0], [1 << 62] * 8]
ENDS = [(0, 7), (0, 9), (64, 72), (-8, 0), (0.0, 8), (False, 8), (0, None), (8, 0)]
BAD_SLOTS = [
    *entries(r"expected \[name, dtype, shape, begin, end\]", None, {}, [], ["x"] * 6),
    *entries("tensor name: expected text", *([name, "int8", [], 0, 1] for name in NAMES)),
    *entries("tensor 'x': dtype .* is not allowed", *(["x", d, [], 0, 1] for d in DTYPES)),
    *entries("'x': expected a shape", *(["x", "int8", s, 0, 1] for s in NO_SHAPES)),
    (["x", "int8", [1] * 9, 0, 1], "tensor 'x': expected a shape of at most 8 dimensions"),
    *entries("'x' shape: expected a natural", *(["x", "int8", [s], 0, 1] for s in SIZES)),
    *entries("'x': shape exceeds 1099511627776 elem", *(["x", "int8", s, 0, 0] for s in LONG)),
    *entries(r"'x': expected bytes \[0, 8\)", *(["x", "float32", [2], *ends] for ends in ENDS)),
    (["x", "bit", [9], 0, 1], r"tensor 'x': expected bytes \[0, 2\)"),
    (["x", "int8", [LIMIT + 1], 0, LIMIT + 1], "block of 1048577 bytes announced, limit 1048576"),
]


@pytest.mark.parametrize("twin", [["x", "int8", [True], 0, 1], ["x", "int8", [1.0], 0, 1]])
def test_what_equals_a_known_layout_is_refused_all_the_same(twin: object) -> None:
    assert wire.decode_header(with_field(10, [["x", "int8", [1], 0, 1]]), LIMIT).slots
    with pytest.raises(WireError, match="'x' shape: expected a natural"):
        wire.decode_header(with_field(10, [twin]), LIMIT)


@pytest.mark.parametrize("depth", [10, 500, 1000])
def test_a_layout_of_many_brackets_is_refused(depth: int) -> None:
    nested: list[object] = []
    for _ in range(depth):
        nested = [nested]
    with pytest.raises(WireError):
        wire.decode_header(with_field(10, nested), LIMIT)


@pytest.mark.parametrize(("slot", "message"), BAD_SLOTS)
def test_every_wrong_tensor_entry_is_named(slot: object, message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.decode_header(with_field(10, [slot]), LIMIT)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (["x", "int8", [1], 64, 65], "tensor 'x' appears twice"),
        (["y", "int8", [1], 0, 1], r"tensor 'y': expected bytes \[64, 65\)"),  # overlaps
        (["y", "int8", [1], 1, 2], r"tensor 'y': expected bytes \[64, 65\)"),
        (["y", "int8", [1], 128, 129], r"tensor 'y': expected bytes \[64, 65\)"),  # a hole
    ],
)
def test_tensors_neither_overlap_nor_repeat(second: object, message: str) -> None:
    first = ["x", "int8", [1], 0, 1]
    with pytest.raises(WireError, match=message):
        wire.decode_header(with_field(10, [first, second]), LIMIT)


DEEP = b"\x91" * 1000 + b"\x01"
"""A thousand lists, one in the other, around a 1."""


@pytest.mark.parametrize("place", range(len(PLAIN)))
def test_deeply_nested_fields_are_refused(place: int) -> None:
    fields = [msgpack.packb(value) for value in PLAIN]
    fields[place] = DEEP
    with pytest.raises(WireError):
        wire.decode_header(b"\x9b" + b"".join(fields), LIMIT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x91" * 5000, "not msgpack"),
        (msgpack.packb(PLAIN)[:-1], "not msgpack"),
        (msgpack.packb(PLAIN) + b"\x00", "not msgpack"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "not msgpack"),
        (msgpack.packb(msgpack.Timestamp(1)), "not msgpack"),
        (msgpack.packb({1: 2}), "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),  # a list of 2^32 - 1 entries
        (b"\xc6\xff\xff\xff\xff", "not msgpack"),  # 4 GiB of bytes
        (msgpack.packb([0] * ((1 << 14) + 1)), "not msgpack"),
        (b"\xa2\xff\xff", "not msgpack"),  # text that is not UTF-8
        (msgpack.packb(None), "magic"),
        (msgpack.packb([]), "magic"),
        (msgpack.packb(["p2p_dml"]), "magic"),
        (msgpack.packb(PLAIN[:-1]), "10 fields, expected 11"),
        (msgpack.packb([*PLAIN, 0]), "12 fields, expected 11"),
        (bytes((1 << 20) + 1), "header is 1048577 bytes, limit 1048576"),
    ],
)
def test_what_is_no_header_at_all(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.decode_header(data, LIMIT)


def test_messages_about_long_values_stay_short() -> None:
    for place in (1, 2, 4):
        with pytest.raises(WireError) as caught:
            wire.decode_header(with_field(place, "x" * 100_000), LIMIT)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("change", [-1, 1, 64])
def test_the_block_must_have_its_size(change: int) -> None:
    header, block = encode({"x": torch.zeros(20)})
    with pytest.raises(WireError, match=f"block is {80 + change} bytes, header says 80"):
        wire.decode(header, (block + bytes(64))[: 80 + change], LIMIT)


def test_a_message_at_the_limit_is_accepted() -> None:
    header, block = encode({"x": torch.zeros(20)})
    assert wire.decode(header, block, 80)[1].tensors["x"].numel() == 20
    with pytest.raises(WireError, match="block of 80 bytes announced, limit 79"):
        wire.decode(header, block, 79)


@pytest.mark.parametrize("bit", range(8))
def test_padding_bits_must_be_zero(bit: int) -> None:
    header, block = encode({"mask": torch.zeros(3, dtype=torch.bool)})
    flipped = bytes([block[0] ^ 1 << bit])
    if bit < 3:
        mask = wire.decode(header, flipped, LIMIT)[1].tensors["mask"]
        assert mask.tolist() == [place == bit for place in range(3)]
    else:
        with pytest.raises(WireError, match="tensor 'mask': padding bits are set"):
            wire.decode(header, flipped, LIMIT)


def test_a_payload_is_what_was_announced() -> None:
    header, payload = wire.decode(*encode({"x": torch.ones(2)}, {"loss": 0.25}), LIMIT)
    assert (header.sender, header.incarnation, header.tag) == (3, 7, Tag(5, 1))
    assert (header.note, header.block_bytes) == ("note", 8)
    assert isinstance(payload, Payload)
    assert payload.scalars == {"loss": 0.25}
