"""The wire format: a msgpack header and one block of raw bytes. No pickle, nothing executable.

Frame 1, header: [magic, version, kind, digest, sender, incarnation, round, exchange, note,
{scalar: float}, [[name, dtype, shape, begin, end], …]].
Block: the tensors' little-endian bytes, each at a multiple of ALIGNMENT, in order; bool tensors
travel packed, eight to a byte, padding bits zero. It follows in frames of MAX_FRAME_BYTES, so that
one is encrypted while the one before it travels, and no frame is long in coming. Within a machine
and unencrypted these are MAX_NEAR_FRAME_BYTES: what came in one frame need not be joined.

Every field is type-checked and every size is bounded before anything is allocated. Whatever is
wrong with a message, `decode` raises WireError and nothing else.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import msgpack
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.kernels.copies import copy_checked
from p2p_dml.types import Payload, PeerId, Tag, Tensors

Buffer = bytes | bytearray | memoryview

MAGIC = "p2p_dml"
VERSION = 1
ALIGNMENT = 64
DIGEST_BYTES = 16
MAX_HEADER_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 20
MAX_NEAR_FRAME_BYTES = 1 << 26
MAX_TENSORS = 1 << 14
MAX_SCALARS = 1 << 10
MAX_DIMS = 8
MAX_NAME = 512
MAX_NUMEL = 1 << 40
MAX_INT = (1 << 63) - 1
NEVER = Tag(MAX_INT, MAX_INT)
"""In a hello: nothing is to come for now; another hello will say from when on."""


class Kind(IntEnum):
    """What a message is for."""

    HELLO = 0  # "I am peer 3 of run <digest>, and nothing of mine up to <tag> is still to come"
    WELCOME = 1  # answer to a hello that fits
    REFUSED = 2  # answer to one that does not; `note` says why
    ROUND = 3  # a payload of one exchange
    GOODBYE = 4  # "nothing more will come from me"
    FAREWELL = 5  # answer to a goodbye: everything before it was read
    BOOK = 6  # a directory's answer to a hello: where everybody is
    ASK = 7  # "let me have your model": of a peer that comes into a run that is under way
    STATE = 8  # the answer, a checkpoint of the sender's model
    MEMBERS = 9  # who takes part from which round on, where peers come and go
    LENT = 10  # a payload of one exchange; its block says where in the sender's memory it lies


_KINDS = {int(kind): kind for kind in Kind}

DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bit": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lies in the block: bytes [begin, end)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything of a message but its tensors' bytes."""

    kind: Kind
    digest: bytes
    sender: PeerId
    incarnation: int
    tag: Tag
    note: str = ""
    scalars: Mapping[str, float] = field(default_factory=dict)
    slots: tuple[Slot, ...] = ()

    @property
    def block_bytes(self) -> int:
        """Exact size of the block that belongs to this header."""
        return self.slots[-1].end if self.slots else 0

    def as_kind(self, kind: Kind) -> Header:
        """The same for a message of another kind."""
        return self if kind is self.kind else replace(self, kind=kind)


def slots_of(tensors: Mapping[str, Tensor]) -> tuple[Slot, ...]:
    """Lay tensors out in a block. Raises TypeError for a tensor that no peer would accept."""
    slots: list[Slot] = []
    end = 0
    for name, x in tensors.items():
        if x.dtype not in _DTYPE_NAMES:
            raise TypeError(f"tensor {name!r}: {x.dtype} cannot be sent; use one of {[*DTYPES]}")
        if len(name) > MAX_NAME or x.dim() > MAX_DIMS:
            raise TypeError(f"tensor {name!r}: name or number of dimensions is over the limit")
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        dtype = _DTYPE_NAMES[x.dtype]
        end = begin + _num_bytes(dtype, x.numel())
        slots.append(Slot(name, dtype, tuple(x.shape), begin, end))
    return tuple(slots)


def write_block(tensors: Mapping[str, Tensor], slots: Sequence[Slot], out: Tensor) -> bool:
    """Copy tensors (any device) into `out`, uint8 [>= block size]: the one snapshot of a send.

    Returns whether all their numbers are finite.
    """
    is_finite = True
    for slot in slots:
        x = tensors[slot.name].detach()
        place = out[slot.begin : slot.end]
        if x.dtype is torch.bool:
            bits = np.packbits(x.cpu().numpy().reshape(-1), bitorder="little")
            place.copy_(torch.from_numpy(bits))
        elif slot.end > slot.begin:
            is_finite &= copy_checked(x, place.view(x.dtype).view(x.shape))
    return is_finite


def encode_block(tensors: Mapping[str, Tensor], slots: Sequence[Slot]) -> bytes:
    """The block of a small message."""
    block = torch.zeros(slots[-1].end if slots else 0, dtype=torch.uint8)
    write_block(tensors, slots, block)
    return block.numpy().tobytes()


def encode_header(header: Header) -> bytes:
    """Serialise a header. Raises ValueError if it is larger than any peer would accept."""
    fields = [
        MAGIC,
        VERSION,
        int(header.kind),
        header.digest,
        header.sender,
        header.incarnation,
        header.tag.round,
        header.tag.exchange,
        header.note,
        dict(header.scalars),
        [[s.name, s.dtype, s.shape, s.begin, s.end] for s in header.slots],
    ]
    data: bytes = msgpack.packb(fields)
    if len(data) > MAX_HEADER_BYTES:
        raise ValueError(f"header of {len(data)} bytes exceeds {MAX_HEADER_BYTES}")
    return data


def decode_header(data: Buffer, max_block_bytes: int) -> Header:
    """Parse and check a header; WireError says which field is wrong."""
    if memoryview(data).nbytes > MAX_HEADER_BYTES:
        raise WireError(f"header is {memoryview(data).nbytes} bytes, limit {MAX_HEADER_BYTES}")
    try:
        fields = msgpack.unpackb(data, max_ext_len=0, max_array_len=MAX_TENSORS, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"header is not msgpack: {error}") from error
    if not isinstance(fields, tuple) or len(fields) < 2 or fields[0] != MAGIC:
        raise WireError("header does not begin with the magic of this runtime")
    if type(fields[1]) is not int or fields[1] != VERSION:
        raise WireError(f"speaks wire version {_brief(fields[1])}, this peer speaks {VERSION}")
    if len(fields) != 11:
        raise WireError(f"header has {len(fields)} fields, expected 11")
    kind, digest, sender, incarnation, round_, exchange, note, scalars, slots = fields[2:]
    if type(kind) is not int or kind not in _KINDS:
        raise WireError(f"kind: unknown {_brief(kind)}")
    if type(digest) is not bytes or len(digest) != DIGEST_BYTES:
        raise WireError(f"digest: expected {DIGEST_BYTES} bytes")
    header = Header(
        kind=_KINDS[kind],
        digest=digest,
        sender=_natural(sender, "sender"),
        incarnation=_natural(incarnation, "incarnation"),
        tag=Tag(_natural(round_, "round"), _natural(exchange, "exchange")),
        note=_text(note, "note"),
        scalars=_scalars(scalars),
        slots=_slots(slots),
    )
    if header.block_bytes > max_block_bytes:
        raise WireError(f"block of {header.block_bytes} bytes announced, limit {max_block_bytes}")
    return header


def decode(data: Buffer, block: Buffer, max_block_bytes: int) -> tuple[Header, Payload]:
    """Parse a whole message; the payload's tensors are views of `block`, not copies."""
    header = decode_header(data, max_block_bytes)
    is_empty = memoryview(block).nbytes == 0
    raw = np.empty(0, np.uint8) if is_empty else np.frombuffer(block, dtype=np.uint8)
    return header, payload_of(header, raw)


def payload_of(header: Header, raw: NDArray[np.uint8], *, is_finite: bool = False) -> Payload:
    """The payload of a message; its tensors are views of the block. Raises WireError.

    `is_finite`: they are known to hold no NaN and no infinity.
    """
    if raw.size != header.block_bytes:
        raise WireError(f"block is {raw.size} bytes, header says {header.block_bytes}")
    if raw.ctypes.data % 8 or not raw.flags.writeable:
        raw = raw.copy()  # small messages share a receive buffer and may lie at odd addresses
    return Payload(read_block(header.slots, torch.from_numpy(raw)), header.scalars, is_finite)


def read_block(slots: Sequence[Slot], block: Tensor) -> Tensors:
    """The tensors of a block, uint8 [>= block size], by name: views of it, on its device.

    Only bool tensors are copies. Raises WireError if their padding bits are set.
    """
    return {slot.name: _read(slot, block) for slot in slots}


def _read(slot: Slot, flat: Tensor) -> Tensor:
    if slot.begin == slot.end:  # torch cannot view no bytes as another dtype
        return torch.empty(slot.shape, dtype=DTYPES[slot.dtype], device=flat.device)
    place = flat[slot.begin : slot.end]
    if slot.dtype != "bit":
        return place.view(DTYPES[slot.dtype]).view(slot.shape)
    numel = math.prod(slot.shape)
    bits = np.unpackbits(place.cpu().numpy(), bitorder="little")
    if bits[numel:].any():
        raise WireError(f"tensor {slot.name!r}: padding bits are set")
    return torch.from_numpy(bits[:numel].astype(np.bool_)).view(slot.shape).to(flat.device)


def _num_bytes(dtype: str, numel: int) -> int:
    return -(-numel // 8) if dtype == "bit" else numel * DTYPES[dtype].itemsize


def _brief(value: object) -> str:
    """Text of any decoded value, bounded in length and depth: a header may nest a thousand deep."""
    return reprlib.repr(value)


def _natural(value: object, where: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise WireError(f"{where}: expected a natural number, got {_brief(value)}")
    return value


def _text(value: object, where: str) -> str:
    if type(value) is not str or len(value) > MAX_NAME:
        raise WireError(f"{where}: expected text of at most {MAX_NAME} characters")
    return value


def _scalars(value: object) -> dict[str, float]:
    if type(value) is not dict or len(value) > MAX_SCALARS:
        raise WireError(f"scalars: expected a map of at most {MAX_SCALARS} entries")
    for name, number in value.items():
        _text(name, "scalars")
        if type(number) is not float:
            raise WireError(f"scalars.{name}: expected a float, got {type(number).__name__}")
    return value


def _slots(value: object) -> tuple[Slot, ...]:
    if type(value) is not tuple:
        raise WireError("tensors: expected a list")
    if len(value) > _FEW_TENSORS:
        return _checked_slots(value)
    try:
        packed = msgpack.packb(value)  # what is equal may be of other types: 1, 1.0 and True
    except ValueError:  # nested too deeply
        return _checked_slots(value)
    slots = _known_slots.get(packed)
    if slots is None:
        slots = _checked_slots(value)
        if len(_known_slots) >= _MAX_KNOWN:
            _known_slots.clear()
        _known_slots[packed] = slots
    return slots


def _checked_slots(value: tuple[object, ...]) -> tuple[Slot, ...]:
    slots: list[Slot] = []
    names: set[str] = set()
    end = 0
    for entry in value:
        slot = _slot(entry, -(-end // ALIGNMENT) * ALIGNMENT)
        if slot.name in names:
            raise WireError(f"tensor {slot.name!r} appears twice")
        names.add(slot.name)
        slots.append(slot)
        end = slot.end
    return tuple(slots)


_known_slots: dict[bytes, tuple[Slot, ...]] = {}  # message after message looks alike
_MAX_KNOWN = 16
_FEW_TENSORS = 512
"""Strangers could fill the memory with what is larger."""


def _slot(entry: object, begin: int) -> Slot:
    """Check one tensor's entry; it must begin where the previous one lets it."""
    if type(entry) is not tuple or len(entry) != 5:
        raise WireError("tensors: expected [name, dtype, shape, begin, end]")
    name = _text(entry[0], "tensor name")
    dtype, shape = entry[1], entry[2]
    if type(dtype) is not str or dtype not in DTYPES:
        raise WireError(f"tensor {name!r}: dtype {_brief(dtype)} is not allowed")
    if type(shape) is not tuple or len(shape) > MAX_DIMS:
        raise WireError(f"tensor {name!r}: expected a shape of at most {MAX_DIMS} dimensions")
    sizes = tuple(_natural(size, f"tensor {name!r} shape") for size in shape)
    if math.prod(max(size, 1) for size in sizes) > MAX_NUMEL:  # zeros must not hide the others
        raise WireError(f"tensor {name!r}: shape exceeds {MAX_NUMEL} elements")
    end = begin + _num_bytes(dtype, math.prod(sizes))
    if (
        type(entry[3]) is not int
        or type(entry[4]) is not int
        or (entry[3], entry[4]) != (begin, end)
    ):
        raise WireError(f"tensor {name!r}: expected bytes [{begin}, {end})")
    return Slot(name, dtype, sizes, begin, end)
