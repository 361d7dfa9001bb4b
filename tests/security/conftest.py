"""Peers with keys in one process, and those who would like to be one of them."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import final

import pytest
import torch
import zmq

from p2p_dml import wire
from p2p_dml.events import Event, Rejected
from p2p_dml.keys import KeyPair, Keys, new_pair
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Payload, PeerId, Tag
from p2p_dml.wire import Header, Kind

RUN = b"r" * 16
QUICK = Limits(startup_s=10.0, linger_s=0.2, handshake_s=0.5)
LISTED = 4
"""Peers of the run; those without a transport are keys that somebody got hold of."""

OUTSIDE = "127.0.0.2"
"""Where attackers come from, so that they can be told from peers."""


@final
class Village:
    """The honest peers, each with its keys; remembers what each reported."""

    def __init__(self) -> None:
        self.pairs = {peer: new_pair() for peer in range(LISTED)}
        self.events: dict[ZeroMQTransport, list[Event]] = {}
        self.threads = ThreadPoolExecutor(4)

    def keys(self, me: PeerId) -> Keys:
        return Keys(
            public={peer: pair.public for peer, pair in self.pairs.items()}, own=self.pairs[me]
        )

    def make(
        self, me: PeerId, *, limits: Limits = QUICK, incarnation: int = 1, is_open: bool = False
    ) -> ZeroMQTransport:
        """Peer `me`; `is_open`: without keys."""
        events: list[Event] = []
        keys = None if is_open else self.keys(me)
        made = ZeroMQTransport(
            me, "tcp://127.0.0.1:*", RUN, incarnation, limits, events.append, None, keys
        )
        self.events[made] = events
        return made

    def open(
        self,
        *transports: ZeroMQTransport,
        via: Mapping[PeerId, str] | None = None,
        awaited: Sequence[PeerId] | None = None,
    ) -> list[BaseException | None]:
        """Bring them together, over the addresses of `via` where it has one; their errors.

        `awaited`: whom they meet, all of them if None.
        """
        own = {each.me: each.endpoint for each in transports}
        absent = {peer: "tcp://127.0.0.1:1" for peer in self.pairs}
        book = absent | own | dict(via or {})
        opening = [
            self.threads.submit(each.open, book | {each.me: own[each.me]}, awaited or own)
            for each in transports
        ]
        return [each.exception() for each in opening]

    def pair(self, *, is_open: bool = False) -> tuple[ZeroMQTransport, ZeroMQTransport]:
        """Peers 0 and 1, connected."""
        both = self.make(0, is_open=is_open), self.make(1, is_open=is_open)
        assert self.open(*both) == [None, None]
        return both

    def close(self, transport: ZeroMQTransport) -> Future[None]:
        return self.threads.submit(transport.close)

    def refused(self, transport: ZeroMQTransport) -> Counter[tuple[PeerId | None, str]]:
        """How often it refused whom, and why."""
        found: Counter[tuple[PeerId | None, str]] = Counter()
        for event in self.events[transport]:
            if isinstance(event, Rejected):
                found[event.sender, event.why] += event.times
        return found

    def tell(
        self, transport: ZeroMQTransport, enough: Callable[[Counter[str]], object]
    ) -> Counter[str]:
        """Let it read until what it has refused so far, by reason, is `enough`.

        The test's time limit ends a vain wait. The transport has closed when this returns.
        """
        while not enough(self.so_far(transport)):
            self.read(transport)
        transport.close()
        return self.so_far(transport)

    @staticmethod
    def read(transport: ZeroMQTransport) -> None:
        """Let a transport take in what is there; mail of rounds from 1 on is kept."""
        transport.collect(Tag(0), [], 0.0)

    @staticmethod
    def number(x: float, size: int = 1) -> Payload:
        return Payload({"x": torch.full((size,), x)})

    @staticmethod
    def hear(a: ZeroMQTransport, b: ZeroMQTransport, round_: int) -> bool:
        """Whether `a` hears `b` in a round, in good time."""
        b.post(Tag(round_), {a.me: Village.number(float(round_))})
        mail = a.collect(Tag(round_), [b.me], 20.0)
        return bool(mail.on_time) and mail.on_time[b.me].tensors["x"].tolist() == [float(round_)]

    def whys(
        self, transport: ZeroMQTransport, enough: Callable[[Counter[str]], object]
    ) -> Counter[str]:
        """`tell`, without the addresses: of who is gone at once libzmq may not tell it."""
        whys: Counter[str] = Counter()
        for told, times in self.tell(transport, enough).items():
            whys[told.removeprefix("127.0.0.2 ").removeprefix("an unknown address ")] += times
        return whys

    @staticmethod
    def so_far(transport: ZeroMQTransport) -> Counter[str]:
        """How often a transport has refused something, by the reason, told or not."""
        told: Counter[str] = Counter()
        for (_, why), times in transport._refusals._counts.items():
            told[why] += times
        return told


@pytest.fixture
def village() -> Iterator[Village]:
    made = Village()
    yield made
    for closing in [made.close(each) for each in made.events]:
        closing.result()
    made.threads.shutdown()


@final
class Mallory:
    """Somebody with sockets, from `OUTSIDE`."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._lines: list[socket.socket] = []

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, 10_000)
        self._sockets.append(made)
        return made

    def dial(
        self,
        target: ZeroMQTransport,
        pair: KeyPair | None = None,
        server: str = "",
        name: bytes = b"",
    ) -> zmq.Socket[bytes]:
        """A socket to a peer; encrypted to the holder of `server`, if there is a pair of keys."""
        made = self._socket(zmq.DEALER)
        made.setsockopt(zmq.RECONNECT_IVL, -1)
        if name:
            made.setsockopt(zmq.ROUTING_ID, name)
        if pair:
            made.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
            made.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
            made.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
        made.connect(f"tcp://{OUTSIDE}:0;{target.endpoint.removeprefix('tcp://')}")
        return made

    def trap(self, pair: KeyPair) -> zmq.Socket[bytes]:
        """A socket that takes connections made to the holder of `pair`."""
        made = self._socket(zmq.ROUTER)
        made.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
        made.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        made.setsockopt(zmq.CURVE_SERVER, 1)
        made.bind("tcp://127.0.0.1:*")
        return made

    def line(self, target: ZeroMQTransport) -> socket.socket:
        """A raw connection to a peer."""
        host, _, port = target.endpoint.removeprefix("tcp://").partition(":")
        made = socket.create_connection((host, int(port)), 10.0, source_address=(OUTSIDE, 0))
        self._lines.append(made)
        return made

    @staticmethod
    def frame(
        kind: Kind,
        sender: PeerId,
        round_: int | None = None,
        *,
        digest: bytes = RUN,
        incarnation: int = 1,
        note: str = "",
    ) -> bytes:
        """The header of an empty message; by default of round 1, or of before it if of none."""
        tag = Tag(int(kind is Kind.ROUND) if round_ is None else round_)
        return wire.encode_header(Header(kind, digest, sender, incarnation, tag, note))

    @staticmethod
    def ask(target: ZeroMQTransport, line: zmq.Socket[bytes], *frames: bytes) -> tuple[Kind, str]:
        """Send frames and let the target read; the kind and note of its answer."""
        line.send_multipart(frames)
        while not line.poll(5):
            Village.read(target)
        header = wire.decode_header(line.recv(), 0)
        return header.kind, header.note

    @staticmethod
    def is_closed(line: socket.socket) -> bool:
        """Whether the other end closes, within the line's time limit."""
        with suppress(ConnectionError):
            while line.recv(1 << 16):
                continue
        return True

    @staticmethod
    def greeting(mechanism: str) -> bytes:
        """The first 64 bytes of ZMTP 3.0 (RFC 23)."""
        start = b"\xff" + bytes(8) + b"\x7f\x03\x00"
        return (start + mechanism.encode().ljust(20, b"\0")).ljust(64, b"\0")

    @staticmethod
    def ready() -> bytes:
        """The command that ends a handshake without keys."""
        return b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"

    @staticmethod
    def announcement(size: int, *, is_command: bool) -> bytes:
        """The head of a long frame of ZMTP: flags and eight bytes of size."""
        return bytes([0x06 if is_command else 0x02]) + struct.pack(">Q", size)

    @staticmethod
    def resident_bytes() -> int:
        """Physical memory of this process."""
        with open("/proc/self/statm", encoding="ascii") as fields:
            return int(fields.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @staticmethod
    def num_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def close(self) -> None:
        for each in self._lines:
            each.close()
        self._context.destroy(linger=0)


@final
class Tap:
    """A line to a peer on which everything is recorded that is said to it."""

    def __init__(self, target: ZeroMQTransport) -> None:
        host, _, port = target.endpoint.removeprefix("tcp://").partition(":")
        self.heard = b""
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with suppress(OSError):
            caller, _ = self._listener.accept()
            self._ends.append(caller)
            callee = socket.create_connection(self._target)
            self._ends.append(callee)
            back = threading.Thread(target=self._carry, args=(callee, caller))
            back.start()
            self._carry(caller, callee, is_heard=True)
            back.join()

    def _carry(self, source: socket.socket, to: socket.socket, *, is_heard: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.heard += data if is_heard else b""
                to.sendall(data)
        for each in (source, to):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._ends:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in (self._listener, *self._ends):
            each.close()


@pytest.fixture
def tap() -> Iterator[Callable[[ZeroMQTransport], Tap]]:
    """Makes a tap on the way to a peer."""
    made: list[Tap] = []

    def lay(target: ZeroMQTransport) -> Tap:
        made.append(Tap(target))
        return made[-1]

    yield lay
    for each in made:
        each.close()


@pytest.fixture
def mallory() -> Iterator[Mallory]:
    made = Mallory()
    yield made
    made.close()
