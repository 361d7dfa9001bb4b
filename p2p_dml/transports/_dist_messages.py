"""How a payload lies in one flat buffer: head, header, block, each at a multiple of ALIGNMENT.

The head (64 bytes) says who sent it, for which exchange, in which layout and how long the rest is.
Header and block are those of the wire format; of payloads that look alike the header holds only the
scalars, in a place of a size that follows from the layout.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from p2p_dml import wire
from p2p_dml.errors import ConfigError, TransportError, WireError
from p2p_dml.types import Payload, PeerId, Tag
from p2p_dml.wire import ALIGNMENT, Header, Kind, Slot

MAGIC = b"p2p-dist"
HEAD = struct.Struct("<8s5q8s8x")  # magic, sender, round, exchange, header and block bytes, layout
HEAD_BYTES = ALIGNMENT
NO_LAYOUT = bytes(8)
"""In the head of a message that brings a header of its own."""


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors that payloads which look alike have in common."""

    slots: tuple[Slot, ...]

    @property
    def header_room(self) -> int:
        """Bytes for the scalars, which may differ: enough for a dozen and two for each tensor."""
        return _aligned(1024 + 128 * len(self.slots))

    @property
    def block_bytes(self) -> int:
        return self.slots[-1].end if self.slots else 0

    @property
    def num_bytes(self) -> int:
        """Of a whole message."""
        return HEAD_BYTES + self.header_room + self.block_bytes

    @property
    def mark(self) -> bytes:
        """Eight bytes that tell it from others."""
        return _mark(self)

    def encode(self) -> bytes:
        """All of it, in the wire format."""
        return _header(Tag(0), 0, {}, self.slots)


@functools.lru_cache(maxsize=64)
def _mark(layout: Layout) -> bytes:
    return hashlib.blake2b(layout.encode(), digest_size=len(NO_LAYOUT)).digest()


def decode_layout(data: bytes) -> Layout:
    """What `encode` made. Raises WireError for anything else."""
    return Layout(wire.decode_header(data, wire.MAX_INT).slots)


def difference(a: Layout, b: Layout) -> str:
    """In what two layouts differ, in words."""
    ours, theirs = ([(s.name, s.dtype, s.shape) for s in each.slots] for each in (a, b))
    new, old = ([each for each in x if each not in y] for x, y in ((ours, theirs), (theirs, ours)))
    return f"tensors {new[:3]} instead of {old[:3]}" if new or old else "tensors in another order"


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _header(
    tag: Tag, sender: PeerId, scalars: Mapping[str, float], slots: tuple[Slot, ...]
) -> bytes:
    digest = bytes(wire.DIGEST_BYTES)  # compared once, when the group came together
    numbers = {name: float(x) for name, x in scalars.items()}
    return wire.encode_header(Header(Kind.ROUND, digest, sender, 0, tag, "", numbers, slots))


@final
@dataclass(frozen=True, slots=True)
class Letter:
    """A payload ready to be copied into a buffer; `layout` is its own, whether agreed or not."""

    payload: Payload
    layout: Layout
    head: bytes
    header: bytes
    header_room: int

    @property
    def block_bytes(self) -> int:
        return self.layout.block_bytes

    @property
    def num_bytes(self) -> int:
        """Of the buffer it needs."""
        return HEAD_BYTES + self.header_room + self.block_bytes

    def write(self, flat: Tensor) -> None:
        """Copy it into `flat`, uint8 [num_bytes], on any device: the one snapshot of a send."""
        first = bytearray(self.head + self.header)
        flat[: len(first)].copy_(torch.frombuffer(first, dtype=torch.uint8))
        block = flat[HEAD_BYTES + self.header_room :]
        wire.write_block(self.payload.tensors, self.layout.slots, block)


def letter_of(payload: Payload, sender: PeerId, tag: Tag, *, is_alike: bool) -> Letter:
    """Prepare a payload. Raises TypeError for a tensor that cannot be sent.

    Of payloads that look alike ConfigError if the scalars do not fit in their place.
    """
    layout = Layout(wire.slots_of(payload.tensors))
    header = _header(tag, sender, payload.scalars, () if is_alike else layout.slots)
    room = layout.header_room if is_alike else _aligned(len(header))
    if len(header) > room:
        raise ConfigError(
            f"peer {sender}, round {tag.round}: the {len(payload.scalars)} scalars of a payload "
            f"take {len(header)} bytes, of {room}; send them as a tensor, or yield a Coded outbox"
        )
    mark = layout.mark if is_alike else NO_LAYOUT
    sizes = len(header), layout.block_bytes
    head = HEAD.pack(MAGIC, sender, tag.round, tag.exchange, *sizes, mark)
    return Letter(payload, layout, head, header, room)


def read_head(data: bytes, sender: PeerId, tag: Tag, mark: bytes) -> tuple[int, int]:
    """Check a head against what is due; the sizes of header and block.

    Raises TransportError that names the sender and what it sent instead.
    """
    magic, found, round_, exchange, header_bytes, block_bytes, layout = HEAD.unpack(data)
    if magic != MAGIC:
        raise TransportError(f"peer {sender} sent no message of this runtime", sender)
    if (found, round_, exchange) != (sender, tag.round, tag.exchange):
        raise TransportError(
            f"out of step: expected peer {sender}, round {tag.round}, exchange {tag.exchange}; "
            f"found peer {found}, round {round_}, exchange {exchange}",
            sender,
        )
    if layout != mark:
        raise TransportError(f"peer {sender} sent a payload of another layout", sender)
    return header_bytes, block_bytes


def read_alike(flat: Tensor, layout: Layout, sender: PeerId, tag: Tag) -> Payload:
    """The payload in a whole message; its tensors are views of `flat`. Errors as of `read_head`."""
    first = flat[: HEAD_BYTES + layout.header_room].cpu().numpy().tobytes()
    size, block_bytes = read_head(first[:HEAD_BYTES], sender, tag, layout.mark)
    if not 0 <= size <= layout.header_room or block_bytes != layout.block_bytes:
        raise TransportError(f"peer {sender} says {size} and {block_bytes} bytes", sender)
    with _named(sender):
        header = wire.decode_header(first[HEAD_BYTES : HEAD_BYTES + size], 0)
        block = flat[HEAD_BYTES + layout.header_room :]
        return Payload(wire.read_block(layout.slots, block), header.scalars)


def body_bytes(header_bytes: int, block_bytes: int) -> int:
    """What follows a head that says so."""
    return _aligned(header_bytes) + block_bytes


def read_coded(body: Tensor, header_bytes: int, sender: PeerId) -> Payload:
    """The payload in what follows a head; its tensors are views of `body`. Errors as above."""
    block = body[_aligned(header_bytes) :]
    with _named(sender):
        header = wire.decode_header(body[:header_bytes].cpu().numpy().tobytes(), block.numel())
        if header.block_bytes != block.numel():
            raise WireError(f"block is {block.numel()} bytes, header says {header.block_bytes}")
        return Payload(wire.read_block(header.slots, block), header.scalars)


@contextmanager
def _named(sender: PeerId) -> Iterator[None]:
    try:
        yield
    except WireError as error:
        raise TransportError(f"peer {sender} sent what cannot be read: {error}", sender) from error
