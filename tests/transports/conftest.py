"""Peers over ZeroMQ in one process, and a stranger that may send them anything."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import pytest
import zmq

from p2p_dml import wire
from p2p_dml.events import Event, NeighbourChanged, Rejected
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Mailbox, Membership, PeerId, Tag
from p2p_dml.wire import Header, Kind

RUN = b"r" * 16
QUICK = Limits(startup_s=10.0, linger_s=0.2)
ANYWHERE = "tcp://127.0.0.1:*"


@final
class Peers:
    """Makes transports, opens them at once, and remembers what each reported."""

    def __init__(self) -> None:
        self.events: dict[ZeroMQTransport, list[Event]] = {}
        self.threads = ThreadPoolExecutor(8)

    def make(
        self,
        me: PeerId,
        *,
        limits: Limits = QUICK,
        digest: bytes = RUN,
        incarnation: int = 1,
        bind: str = ANYWHERE,
        mailbox: Mailbox | None = None,
        members: Membership | None = None,
    ) -> ZeroMQTransport:
        events: list[Event] = []
        transport = ZeroMQTransport(
            me, bind, digest, incarnation, limits, events.append, mailbox, members=members
        )
        self.events[transport] = events
        return transport

    def open(
        self, *transports: ZeroMQTransport, absent: Mapping[PeerId, str] | None = None
    ) -> None:
        """Bring all of them together; `absent` stand in the address book only."""
        for error in self.try_to_open(transports, absent):
            if error is not None:
                raise error

    def try_to_open(
        self, transports: Sequence[ZeroMQTransport], absent: Mapping[PeerId, str] | None = None
    ) -> list[BaseException | None]:
        book = {each.me: each.endpoint for each in transports}
        everybody = {**book, **(absent or {})}
        opening = [self.threads.submit(each.open, everybody, book) for each in transports]
        return [each.exception() for each in opening]

    def pair(self, limits: Limits = QUICK) -> tuple[ZeroMQTransport, ZeroMQTransport]:
        """Peers 0 and 1, connected."""
        both = self.make(0, limits=limits), self.make(1, limits=limits)
        self.open(*both)
        return both

    def close(self, transport: ZeroMQTransport) -> Future[None]:
        return self.threads.submit(transport.close)

    def changes(self, transport: ZeroMQTransport) -> list[tuple[PeerId, str, str]]:
        events = self.events[transport]
        return [(e.neighbour, e.state, e.why) for e in events if isinstance(e, NeighbourChanged)]

    def rejected(self, transport: ZeroMQTransport) -> list[tuple[PeerId | None, str]]:
        events = self.events[transport]
        return [(e.sender, e.why) for e in events if isinstance(e, Rejected)]

    @staticmethod
    def kill(transport: ZeroMQTransport) -> None:
        """End as SIGKILL ends a process: the connections break and nobody says goodbye."""
        transport._destroy()

    @staticmethod
    def read(transport: ZeroMQTransport) -> None:
        """Let a transport take in what is there; mail of rounds from 1 on is kept."""
        transport.collect(Tag(0), [], 0.0)

    def read_until(self, transport: ZeroMQTransport, done: Callable[[], object]) -> None:
        """Let a transport read until `done` is true; the test's time limit ends a vain wait."""
        while not done():
            self.read(transport)


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    for closing in [made.close(each) for each in made.events]:
        closing.result()
    made.threads.shutdown()


FreePorts = Callable[[int], int]
"""number -> the first of so many free ports of the loopback address, one after another."""


@pytest.fixture
def free_ports() -> FreePorts:
    def first_of(number: int) -> int:
        for first in range(20_000 + os.getpid() % 10_000, 32_000, number):
            try:
                for port in range(first, first + number):
                    socket.create_server(("127.0.0.1", port)).close()
            except OSError:
                continue
            return first
        raise AssertionError("no free ports")

    return first_of


@final
class Raw:
    """A stranger's sockets, on which anything can be sent."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.sockets: list[zmq.Socket[bytes]] = []

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        made = self.context.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, 10_000)
        self.sockets.append(made)
        return made

    def bound(self, endpoint: str = ANYWHERE) -> tuple[zmq.Socket[bytes], str]:
        """A socket that takes connections and holds one message each, and its address."""
        made = self.socket(zmq.ROUTER)
        made.setsockopt(zmq.RCVHWM, 1)
        made.bind(endpoint)
        return made, made.get_string(zmq.LAST_ENDPOINT)

    def dealer(self, endpoint: str) -> zmq.Socket[bytes]:
        made = self.socket(zmq.DEALER)
        made.connect(endpoint)
        return made

    def frame(self, kind: Kind, sender: PeerId = 1, digest: bytes = RUN) -> bytes:
        """The header of an empty message of round 1; what is of no round is of before it."""
        tag = Tag(1 if kind is Kind.ROUND else 0)
        return wire.encode_header(Header(kind, digest, sender, 7, tag))

    def ask(
        self, transport: ZeroMQTransport, stranger: zmq.Socket[bytes], *frames: bytes
    ) -> tuple[Kind, str]:
        """Send frames to a transport and let it read; the kind and note of its answer."""
        stranger.send_multipart(frames)
        while not stranger.poll(5):
            Peers.read(transport)
        header = wire.decode_header(stranger.recv(), 0)
        return header.kind, header.note

    def close(self) -> None:
        """Return when all ports are free."""
        self.context.destroy(linger=0)


@pytest.fixture
def raw() -> Iterator[Raw]:
    made = Raw()
    yield made
    made.close()


@pytest.fixture
def earlier() -> Iterator[Raw]:
    """A stranger that leaves before `raw` comes."""
    made = Raw()
    yield made
    made.close()
