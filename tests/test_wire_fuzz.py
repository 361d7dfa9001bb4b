"""Twenty thousand damaged messages: each decodes to something valid or raises WireError."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from copy import deepcopy

import msgpack
import pytest
import torch

from p2p_dml import wire
from p2p_dml.errors import WireError
from p2p_dml.types import Tag
from p2p_dml.wire import Header, Kind

LIMIT = 1 << 16
TIMES = 2_000

Rng = random.Random
Message = tuple[bytes, bytes]


def message(*sizes: int) -> Message:
    """A valid message with tensors of all dtypes in turn, of the given sizes."""
    dtypes = list(wire.DTYPES.values())
    tensors = {f"t{i}": torch.ones(n, dtype=dtypes[i % 10]) for i, n in enumerate(sizes)}
    slots = wire.slots_of(tensors)
    header = Header(Kind.ROUND, b"d" * 16, 3, 7, Tag(5, 1), "note", {"a": 0.5, "b": 2.0}, slots)
    block = torch.zeros(header.block_bytes, dtype=torch.uint8)
    wire.write_block(tensors, slots, block)
    return wire.encode_header(header), block.numpy().tobytes()


SAMPLES = [message(), message(5), message(0, 3), message(*range(1, 21)), message(*[0] * 9, 9)]

STRANGE: list[object] = [
    *(None, True, False, -1, 0, 1, 7, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63),
    *((1 << 64) - 1, -(1 << 63), 0.0, -1.5, math.nan, math.inf, "", "t0", "bit", "float32"),
    *("\x00", "é" * 200, "x" * 600, b"", b"d" * 16, b"x" * 300, [], [1], [0] * 9, [[[[]]]]),
    *({}, {"a": 1.0}, {b"a": 1}, {"a": {"a": {}}}, msgpack.ExtType(1, b"abc")),
    *(msgpack.Timestamp(5), ["t0", "int8", [1], 0, 1], [[0, 1 << 62], [1 << 62]]),
]
"""Values of every kind that msgpack can carry, to stand where others are expected."""


def flip_bits(rng: Rng, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4) if data else 0):
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(rng: Rng, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def insert(rng: Rng, data: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + rng.randbytes(rng.randint(1, 12)) + data[place:]


def repeat(rng: Rng, data: bytes) -> bytes:
    begin = rng.randint(0, len(data))
    end = rng.randint(begin, min(len(data), begin + 40))
    return data[:end] + data[begin:end] + data[end:]


def splice(rng: Rng, data: bytes) -> bytes:
    other = rng.choice(SAMPLES)[0]
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def replace(rng: Rng, data: bytes) -> bytes:
    """Put strange values in places of the header's tree, at any depth."""
    fields = msgpack.unpackb(data)
    for _ in range(rng.randint(1, 2)):
        inside = fields
        while (below := [x for x in inside if isinstance(x, list) and x]) and rng.random() < 0.7:
            inside = rng.choice(below)
        inside[rng.randrange(len(inside))] = deepcopy(rng.choice(STRANGE))
    return bytes(msgpack.packb(fields))


def rearrange(rng: Rng, data: bytes) -> bytes:
    """Repeat, drop or swap tensors' entries: duplicate names, overlaps, holes."""
    fields = msgpack.unpackb(data)
    fields[10] = rng.choices(fields[10], k=rng.randint(0, 4)) if fields[10] else [fields[9]]
    return bytes(msgpack.packb(fields))


def nest(rng: Rng, data: bytes) -> bytes:
    """Put a deep tower of lists or maps in the place of a field."""
    fields = [msgpack.packb(field) for field in msgpack.unpackb(data)]
    level = rng.choice([b"\x91", b"\x81\xa1a", b"\x92\x00"])
    fields[rng.randrange(11)] = level * rng.choice([3, 100, 500, 1000, 1100, 3000]) + b"\x01"
    return b"\x9b" + b"".join(fields)


MUTATIONS: list[Callable[[Rng, bytes], bytes]] = [
    *(flip_bits, truncate, insert, repeat, splice, replace, rearrange, nest)
]


def outcome(data: bytes, block: bytes) -> str:
    """Decode and check what came of it."""
    try:
        header, payload = wire.decode(data, block, LIMIT)
    except WireError as error:
        assert str(error)
        return "refused"
    assert len(block) == header.block_bytes <= LIMIT
    assert [*payload.tensors] == [slot.name for slot in header.slots]
    for slot, x in zip(header.slots, payload.tensors.values(), strict=True):
        assert (x.dtype, tuple(x.shape)) == (wire.DTYPES[slot.dtype], slot.shape)
        x.sum()  # the values can be read
    wire.encode_header(header)
    return "valid"


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_damaged_headers(mutate: Callable[[Rng, bytes], bytes]) -> None:
    rng = Rng(mutate.__name__)
    outcomes = []
    for turn in range(TIMES):
        data, block = SAMPLES[turn % len(SAMPLES)]
        outcomes.append(outcome(mutate(rng, data), block))
    assert outcomes.count("refused") > TIMES // 3


@pytest.mark.parametrize(
    ("mutate", "expected"),
    [
        (flip_bits, {"valid", "refused"}),  # refused where padding bits were flipped
        (truncate, {"valid", "refused"}),  # valid where nothing was cut off
        (insert, {"refused"}),
        (repeat, {"valid", "refused"}),
    ],
)
def test_damaged_blocks(mutate: Callable[[Rng, bytes], bytes], expected: set[str]) -> None:
    rng = Rng(mutate.__name__)
    outcomes = []
    for turn in range(TIMES // 2):
        data, block = SAMPLES[turn % len(SAMPLES)]
        outcomes.append(outcome(data, mutate(rng, block)))
    assert set(outcomes) == expected


def test_noise() -> None:
    rng = Rng(1)
    for _ in range(TIMES // 2):
        assert outcome(rng.randbytes(rng.randint(0, 200)), b"") == "refused"


def test_the_samples_are_valid() -> None:
    assert [outcome(*sample) for sample in SAMPLES] == ["valid"] * len(SAMPLES)
