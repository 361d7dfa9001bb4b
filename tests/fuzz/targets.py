"""All that reads what strangers or hostile neighbours may send, as functions of bytes.

Each returns in silence or raises something that it must not raise: what a reader may raise (a
WireError, of files and books a ConfigError or StartupError) is taken here, and the TrainingError of
a peer that has mixed numbers as large as numbers may be.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import zmq

from p2p_dml import checkpoint, wire
from p2p_dml.errors import ConfigError, StartupError, TrainingError, WireError
from p2p_dml.liveness import Liveness
from p2p_dml.mailbox import EveryMailbox, NewestMailbox, TaggedMailbox
from p2p_dml.strategies._mask_coding import CodingState, MaskCoding
from p2p_dml.transports._incoming import decode
from p2p_dml.transports._plane import Plane, told
from p2p_dml.transports._segments import Segment
from p2p_dml.transports.directory import Directory, _Inquiry
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Mailbox, Neighbourhood, Payload, Tag
from p2p_dml.wire import Header, Kind
from tests.fuzz.feed import Feed
from tests.fuzz.gossip import STRATEGIES, Attacked

Target = Callable[[bytes], None]

LIMIT = 1 << 16
DIGEST = b"d" * wire.DIGEST_BYTES
_NEIGHBOURS = 3
_LIVES = 500
"""Messages after which a transport or a peer is replaced: a finding shall not need many."""


def frames_of(data: bytes) -> list[zmq.Frame]:
    """A contact and the frames that `data` says: two bytes of length before each but the last."""
    feed, frames = Feed(data), [zmq.Frame(b"\0abcd")]
    while not feed.is_over and len(frames) < 5:
        size = int.from_bytes(feed.take(2), "little")
        frames.append(zmq.Frame(feed.take(size) if size < LIMIT - 1 else feed.rest()))
    return frames


def wire_frames(data: bytes) -> None:
    """Frames as they come off a socket."""
    with suppress(WireError):
        header, block = decode(frames_of(data), LIMIT)
        assert header.block_bytes <= LIMIT
        payload = wire.payload_of(header, block)
        for x in payload.tensors.values():
            x.sum()


def wire_header(data: bytes) -> None:
    """A header alone; what is read can be written again and is the same."""
    with suppress(WireError):
        header = wire.decode_header(data, LIMIT)
        again = wire.encode_header(header)
        assert wire.encode_header(wire.decode_header(again, LIMIT)) == again


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


class _Connected:
    """A peer's transport, replaced now and then."""

    def __init__(self) -> None:
        self._left = 0
        self._number = 0
        self._transport: ZeroMQTransport | None = None

    def take(self) -> ZeroMQTransport:
        if self._left == 0 or self._transport is None:
            if self._transport is not None:
                self._transport.close()
            self._number += 1
            self._left = _LIVES
            self._transport = self._new()
        self._left -= 1
        return self._transport

    def _new(self) -> ZeroMQTransport:
        boxes: list[Mailbox] = [TaggedMailbox(2), NewestMailbox(2), EveryMailbox()]
        address = f"ipc://{_folder()}/{self._number}.sock"
        limits = Limits(max_message_bytes=LIMIT, linger_s=0.0)
        mailbox = boxes[self._number % len(boxes)]
        new = ZeroMQTransport(0, address, DIGEST, 7, limits, lambda event: None, mailbox)
        nobody = {j: f"ipc://{_folder()}/nobody-{j}.sock" for j in range(1, 1 + _NEIGHBOURS)}
        new._hands.begin({0: address, **nobody}, address)
        return new


_CONNECTED = _Connected()


def _header_of(feed: Feed) -> Header:
    """A header that is mostly well-formed, so that it gets further than its first field."""
    scalars = {feed.text() or "joins/1": feed.number() for _ in range(feed.byte() % 3)}
    sizes = [feed.byte() % 9 for _ in range(feed.byte() % 3)]
    tensors = {f"t{i}": torch.zeros(n, dtype=torch.uint8) for i, n in enumerate(sizes)}
    return Header(
        kind=feed.pick(tuple(Kind)),
        digest=DIGEST if feed.byte() % 8 else feed.take(wire.DIGEST_BYTES),
        sender=feed.natural(),
        incarnation=feed.pick((1, 1, 2, 7)),
        tag=Tag(feed.natural(), feed.natural()),
        note=feed.pick(("", "tcp://127.0.0.1:1", "tcp://*:5", "relay", feed.text())),
        scalars=scalars,
        slots=wire.slots_of(tensors),
    )


def transport(data: bytes) -> None:
    """Messages of several connections to one peer: hellos, rounds, all other kinds, and noise."""
    peer, feed = _CONNECTED.take(), Feed(data)
    while not feed.is_over:
        contact = zmq.Frame(b"\0" + bytes([feed.byte() % 4]))
        if feed.byte() % 8 == 0:
            frames = [contact, *frames_of(feed.rest())[1:]]
        else:
            header = _header_of(feed)
            block = feed.take(header.block_bytes if feed.byte() % 8 else 3)
            frames = [contact, zmq.Frame(wire.encode_header(header)), zmq.Frame(block)]
        peer._on_message(frames)
    peer._mailbox.begin(Tag(feed.natural()))
    peer._mailbox.take(list(range(1, 1 + _NEIGHBOURS)))
    peer._liveness.take_changes()


def memory(data: bytes) -> None:
    """Where a neighbour says that its memory is: when it comes, and of what it lends."""
    feed, reader = Feed(data), Plane(0, lambda peer, why: None)
    lender = Plane(1, lambda peer, why: None)
    segment = Segment(LIMIT)
    while not feed.is_over:
        with suppress(WireError):
            place = lender.introduction()
            if feed.byte() % 4 == 0:
                place = {"memory": torch.tensor([feed.natural() for _ in range(4)])}
            reader.know(1, place)
        where = told(segment.descriptor, segment.token, feed.byte() % 16, feed.natural())
        if feed.byte() % 4 == 0:
            where = feed.take(feed.byte() % 40)
        with suppress(WireError):
            reader.borrow(1, np.frombuffer(where, dtype=np.uint8), feed.natural()).sum()
    for each in (reader, lender):
        each.close()
    segment.close()


def masks(data: bytes) -> None:
    """A mask in any coding, of a neighbour of which two masks are held."""
    feed = Feed(data)
    coding = MaskCoding(numels=(75, 130, 8), mode=feed.pick(("delta", "eager", "entropy")))
    scalars = {name: feed.number() for name in ("coding", "base", "have")}
    if feed.byte() % 2:
        scalars["base"] = float(feed.pick(_BASES))
    code = torch.frombuffer(bytearray(feed.rest() or b"\0"), dtype=torch.uint8)
    with suppress(WireError):
        read = coding.read(_HELD, 1, Payload({"mask": code}, scalars))
        coding.heard(_HELD, 9, {1: read})


def _held() -> CodingState:
    coding, state = MaskCoding(numels=(75, 130, 8)), CodingState()
    hood = Neighbourhood(0, 0.5, {1: 0.5}, {1: 0.5})
    for round in (1, 2):
        bits = torch.full((27,), 17 * round, dtype=torch.uint8)
        bits[-1] &= 0x1F
        outbox, state = coding.outbox(state, hood, round, bits)
        read = coding.read(state, 1, outbox[1])
        state = coding.heard(state, round, {1: read})
    return state


_HELD = _held()
_BASES = tuple(int(name) for name in _HELD.heard["1"].masks)


def state(data: bytes) -> None:
    """A checkpoint's bytes, as a neighbour may give them to one that comes in.

    If the first byte is odd, a well-formed file whose facts are the rest.
    """
    if data and data[0] % 2:
        facts = {"__metadata__": {"checkpoint": data[1:].decode(errors="replace")}}
        head = json.dumps(facts).encode()
        data = b"\0" + len(head).to_bytes(8, "little") + head
    with suppress(ConfigError):
        checkpoint.decode(data[1:])


def _directory() -> Directory:
    return Directory(f"ipc://{_folder()}/directory.sock", 4, None, lambda line: None)


@functools.cache
def _open_directory() -> Directory:
    return _directory()


def book(data: bytes) -> None:
    """What a directory is told, and what a peer is told by one."""
    feed = Feed(data)
    if feed.byte() % 2:
        with suppress(WireError):
            header, _ = decode(frames_of(feed.rest()), 0)
            _open_directory()._admit(b"\0abcd", header, None)
    else:
        hello = Header(Kind.HELLO, DIGEST, 0, 1, Tag(0))
        inquiry = _Inquiry("tcp://127.0.0.1:5700", hello, 4)
        with suppress(StartupError):
            inquiry._read(frames_of(feed.rest() or b"\0")[1:])


def liveness(data: bytes) -> None:
    """Any order of what a transport may observe; a connected peer is never taken for lost."""
    found, now = Liveness(0.5, patience=2), 0.0
    for byte in data:
        peer = byte % 3
        acts: list[Callable[[], object]] = [
            functools.partial(found.welcomed, peer),
            functools.partial(found.disconnected, peer, now),
            functools.partial(found.unreachable, peer),
            functools.partial(found.said_goodbye, peer),
            functools.partial(found.missed_deadline, peer, 1.0),
            functools.partial(found.delivered, peer),
            functools.partial(found.is_awaited, peer, now),
        ]
        acts[(byte >> 2) % len(acts)]()
        now += (byte >> 5) / 4
        assert not (found.is_connected(peer) and found.state(peer) in ("dead", "left"))
        assert found.recheck_s(now) >= 0


def _gossip(name: str) -> Target:
    attacked = functools.cache(lambda life: Attacked(name))
    count = iter(range(1 << 62))

    def target(data: bytes) -> None:
        try:
            attacked(0).hear(data)
        except TrainingError:  # of numbers as large as numbers may be
            attacked.cache_clear()
        if next(count) % _LIVES == _LIVES - 1:
            attacked.cache_clear()

    return target


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "wire-frames": wire_frames,
        "wire-header": wire_header,
        "transport": transport,
        "memory": memory,
        "masks": masks,
        "state": state,
        "book": book,
        "liveness": liveness,
        **{f"gossip-{name}": _gossip(name) for name in STRATEGIES},
    }
)
"""Targets by name; `gossip-…`: a strategy whose neighbours send it what they like."""
