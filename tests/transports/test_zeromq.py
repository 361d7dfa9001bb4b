"""What only sockets have: strangers, twins, garbage, and neighbours that come, stall and go."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import msgpack
import pytest
import torch
import zmq

from p2p_dml import wire
from p2p_dml.errors import StartupError
from p2p_dml.events import Event, NeighbourChanged, Rejected
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Payload, PeerId, Tag
from p2p_dml.wire import Header, Kind

RUN = b"r" * 16
OTHER_RUN = b"o" * 16
QUICK = Limits(startup_s=10.0, linger_s=0.2)
IMPATIENT = replace(QUICK, startup_s=0.3)
ANYWHERE = "tcp://127.0.0.1:*"
PATIENT_S = 60.0
"""Longer than a test may take: a test that waits this out has failed."""

pytestmark = pytest.mark.timeout(30)


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
    ) -> ZeroMQTransport:
        events: list[Event] = []
        transport = ZeroMQTransport(me, bind, digest, incarnation, limits, events.append)
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


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    for closing in [made.close(each) for each in made.events]:
        closing.result()
    made.threads.shutdown()


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


@pytest.fixture
def raw() -> Iterator[Raw]:
    made = Raw()
    yield made
    made.context.destroy(linger=0)


def kill(transport: ZeroMQTransport) -> None:
    """End as SIGKILL ends a process: the connections break and nobody says goodbye."""
    transport._context.destroy(linger=0)


def number(x: float, size: int = 1) -> Payload:
    return Payload({"x": torch.full((size,), x)})


def frame(kind: Kind, sender: PeerId = 1, digest: bytes = RUN) -> bytes:
    return wire.encode_header(Header(kind, digest, sender, 7, Tag(1)))


def ask(
    transport: ZeroMQTransport, stranger: zmq.Socket[bytes], *frames: bytes
) -> tuple[Kind, str]:
    """Send frames from a stranger; the kind and note of the answer."""
    stranger.send_multipart(frames)
    while not stranger.poll(5):
        read(transport)
    header = wire.decode_header(stranger.recv(), 0)
    return header.kind, header.note


def read(transport: ZeroMQTransport) -> None:
    """Let a transport take in what is there; mail of rounds from 1 on is kept."""
    transport.collect(Tag(0), [], 0.0)


def read_until(transport: ZeroMQTransport, done: Callable[[], object]) -> None:
    """Let a transport read until `done` is true; the test's time limit ends a vain wait."""
    while not done():
        read(transport)


def test_a_neighbour_that_never_starts_is_named_with_its_address(peers: Peers) -> None:
    a = peers.make(0, limits=IMPATIENT)
    nobody = "tcp://127.0.0.1:1"
    with pytest.raises(StartupError, match=rf"peer 0: no hello within 0\.3 s from .* {nobody}"):
        a.open({0: a.endpoint, 1: nobody}, [1])


def test_only_the_missing_are_named(peers: Peers) -> None:
    a, b = peers.make(0, limits=IMPATIENT), peers.make(1)
    book = {0: a.endpoint, 1: b.endpoint, 2: "tcp://127.0.0.1:1"}
    b_opens = peers.threads.submit(b.open, book, [0])
    with pytest.raises(StartupError, match="from peer 2 at"):
        a.open(book, [1, 2])
    assert b_opens.exception() is None


def test_peers_of_different_runs_say_why_on_both_sides(peers: Peers) -> None:
    a, b = peers.make(0, limits=IMPATIENT), peers.make(1, limits=IMPATIENT, digest=OTHER_RUN)
    for error in peers.try_to_open((a, b)):
        assert isinstance(error, StartupError)
        assert "of another run (digest" in str(error)
        assert "run file, seed and p2p_dml version must be the same" in str(error)


def test_another_wire_version_is_refused_with_the_reason(peers: Peers, raw: Raw) -> None:
    a = peers.make(0)
    fields = msgpack.unpackb(frame(Kind.HELLO))
    fields[1] = 99
    kind, note = ask(a, raw.dealer(a.endpoint), msgpack.packb(fields))
    assert (kind, note) == (Kind.REFUSED, "speaks wire version 99, this peer speaks 1")
    assert peers.rejected(a) == [(None, note)]


@pytest.mark.parametrize("claimed", [0, 5])
def test_ids_outside_the_run_are_refused(peers: Peers, raw: Raw, claimed: PeerId) -> None:
    a, _ = peers.pair()
    kind, note = ask(a, raw.dealer(a.endpoint), frame(Kind.HELLO, claimed))
    assert kind is Kind.REFUSED
    assert f"peer id {claimed} is this peer's own or not of this run" in note


def test_a_second_peer_with_a_taken_id_is_refused(peers: Peers) -> None:
    a, b = peers.pair()
    twin = peers.make(1, incarnation=2)
    opening = peers.threads.submit(twin.open, {0: a.endpoint, 1: twin.endpoint}, [0])
    read_until(a, opening.done)
    with pytest.raises(StartupError, match="a peer 1 is here and alive: two peers with one id"):
        opening.result()
    b.post(Tag(1), {0: number(1.0)})
    assert list(a.collect(Tag(1), [1], PATIENT_S).on_time) == [1]


def test_of_two_peers_with_one_id_the_first_is_told_when_it_loses_its_place(
    peers: Peers, raw: Raw
) -> None:
    a = peers.make(0)
    first = raw.dealer(a.endpoint)
    assert ask(a, first, frame(Kind.HELLO))[0] is Kind.WELCOME
    second = raw.dealer(a.endpoint)
    header = replace(wire.decode_header(frame(Kind.HELLO), 0), incarnation=8)
    assert ask(a, second, wire.encode_header(header))[0] is Kind.WELCOME
    told = wire.decode_header(first.recv(), 0)
    assert (told.kind, "two peers with one id" in told.note) == (Kind.REFUSED, True)


def test_a_wrong_address_book_is_noticed(peers: Peers) -> None:
    a, b = peers.make(0, limits=IMPATIENT), peers.make(1, limits=IMPATIENT)
    opening = peers.threads.submit(b.open, {0: a.endpoint, 1: b.endpoint}, [0])
    with pytest.raises(StartupError, match=r"peer 2 at \S+ answers as peer 1"):
        a.open({0: a.endpoint, 1: b.endpoint, 2: b.endpoint}, [2])
    opening.exception()  # whether it met peer 0 before that left is a matter of chance


def test_a_taken_port_is_named(peers: Peers) -> None:
    a = peers.make(0)
    with pytest.raises(StartupError, match=f"peer 1: cannot listen on {a.endpoint}: Address"):
        peers.make(1, bind=a.endpoint)


@pytest.mark.parametrize("bind", ["nowhere", "tcp://127.0.0.1:x", "ipc:///nonexistent/folder/0"])
def test_an_address_that_cannot_be_bound(peers: Peers, bind: str) -> None:
    with pytest.raises(StartupError, match=f"peer 0: cannot listen on {bind}: "):
        peers.make(0, bind=bind)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:5803", "cannot use '127.0.0.1:5803', the address of peer 1: "),
        ("tcp://127.0.0.1:port", "the address of peer 1: "),
        (f"tcp://{'a' * 70}:5803", "cannot resolve the host of tcp://a+:5803"),
    ],
)
def test_an_address_that_cannot_be_used(peers: Peers, address: str, message: str) -> None:
    a = peers.make(0)
    with pytest.raises(StartupError, match=message):
        a.open({0: a.endpoint, 1: address}, [1])


GARBAGE = [
    [b""],
    [b"\xc1"],
    [b"hello?"],
    [b"\x91" * 2000],
    [msgpack.packb(["p2p_dml"])],
    [frame(Kind.HELLO), b"a block that no header announced"],
    [frame(Kind.HELLO)[:-1]],
]


def test_garbage_is_told_once_and_disturbs_nobody(peers: Peers, raw: Raw) -> None:
    a, b = peers.pair()
    host, _, port = a.endpoint.removeprefix("tcp://").partition(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        for _ in range(2):
            stranger = raw.dealer(a.endpoint)
            for frames in GARBAGE:
                assert ask(a, stranger, *frames)[0] is Kind.REFUSED
        b.post(Tag(1), {0: number(4.0)})
        mail = a.collect(Tag(1), [1], PATIENT_S)
    assert mail.on_time[1].tensors["x"].item() == 4.0
    told = peers.rejected(a)
    assert len(told) == len(set(told)) >= 5
    assert {sender for sender, _ in told} == {None}
    assert peers.changes(a) == []


def test_nothing_is_accepted_before_hello(peers: Peers, raw: Raw) -> None:
    a, b = peers.pair()
    stranger = raw.dealer(a.endpoint)
    stranger.send(frame(Kind.ROUND))
    assert ask(a, stranger, b"")[0] is Kind.REFUSED  # answered after the message was read
    assert not a.collect(Tag(1), [1], 0.0).on_time
    b.post(Tag(1), {0: number(1.0)})
    assert list(a.collect(Tag(1), [1], PATIENT_S).on_time) == [1]


@pytest.mark.parametrize(
    "forged", [frame(Kind.ROUND, sender=0), frame(Kind.ROUND, digest=OTHER_RUN)]
)
def test_later_headers_must_agree_with_the_hello(peers: Peers, raw: Raw, forged: bytes) -> None:
    a = peers.make(0)
    stranger = raw.dealer(a.endpoint)
    assert ask(a, stranger, frame(Kind.HELLO))[0] is Kind.WELCOME
    stranger.send(forged)
    read_until(a, lambda: peers.rejected(a))
    ((sender, why),) = peers.rejected(a)
    assert (sender, "of another run" in why) == (1, True)
    assert not a.collect(Tag(1), [0, 1], 0.0).on_time


@pytest.mark.parametrize("bind", [ANYWHERE, "ipc"])
def test_a_killed_neighbour_is_not_waited_for(
    peers: Peers, bind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ipc")
    binds = [ANYWHERE if bind != "ipc" else f"ipc://{folder}/{me}" for me in range(3)]
    a, b, c = (peers.make(me, bind=each) for me, each in enumerate(binds))
    peers.open(a, b, c)
    c.post(Tag(1), {0: number(3.0)})
    kill(b)
    assert list(a.collect(Tag(1), [1, 2], PATIENT_S).on_time) == [2]
    assert peers.changes(a) == [(1, "dead", "connection lost")]
    assert a.post(Tag(2), {1: number(1.0)}) == 0
    assert not a.collect(Tag(2), [1], PATIENT_S).on_time


def test_what_a_killed_neighbour_sent_last_is_still_read(peers: Peers) -> None:
    a, b = peers.pair()
    b.post(Tag(1), {0: number(1.0)})
    assert list(a.collect(Tag(1), [1], PATIENT_S).on_time) == [1]
    b.post(Tag(2), {0: number(2.0)})
    while not a._in.poll(10):  # it has left the sender's memory
        continue
    kill(b)
    assert a.collect(Tag(2), [1], PATIENT_S).on_time[1].tensors["x"].item() == 2.0


def test_a_slow_neighbour_is_waited_for_again(peers: Peers) -> None:
    a, b = peers.pair()
    assert not a.collect(Tag(1), [1], 0.05).on_time
    assert not a.collect(Tag(2), [1], 0.05).on_time
    b.post(Tag(1), {0: number(1.0)})
    b.post(Tag(3), {0: number(3.0)})
    mail = a.collect(Tag(3), [1], PATIENT_S)
    assert list(mail.on_time) == [1]
    assert [m.tag for m in mail.late] == [Tag(1)]
    assert peers.changes(a) == [
        (1, "slow", "nothing within 0.05 s, still connected"),
        (1, "alive", "delivers again"),
    ]


def test_a_neighbour_comes_back_at_its_address(peers: Peers) -> None:
    a, b = peers.pair()
    kill(b)
    again = peers.make(1, incarnation=2, bind=b.endpoint)
    opening = peers.threads.submit(again.open, {0: a.endpoint, 1: again.endpoint}, [0])
    read_until(a, opening.done)
    opening.result()
    for one, other in ((a, again), (again, a)):
        one.post(Tag(1), {other.me: number(one.me)})
    for one, other in ((a, again), (again, a)):
        assert list(one.collect(Tag(1), [other.me], PATIENT_S).on_time) == [other.me]
    assert peers.rejected(a) == []


def test_hello_gets_through_behind_messages_for_an_earlier_incarnation(
    peers: Peers, raw: Raw
) -> None:
    a = peers.make(0, limits=replace(QUICK, queue_messages=8))
    first, endpoint = raw.bound()
    opening = peers.threads.submit(a.open, {0: a.endpoint, 1: endpoint}, [1])
    contact, _ = first.recv_multipart()
    first.send_multipart([contact, frame(Kind.WELCOME)])
    raw.dealer(a.endpoint).send(frame(Kind.HELLO))
    opening.result()
    while a.post(Tag(1), {1: number(1.0, 1 << 20)}):
        continue
    first.close()
    second, _ = raw.bound(endpoint)
    for _ in range(20):  # the connection stands again, and the queue is still full
        read(a)
        second.poll(10)
    while wire.decode_header(second.recv_multipart()[1], 1 << 30).kind is not Kind.HELLO:
        read(a)
        read_until(a, lambda: second.poll(5))


def test_a_later_neighbour_that_nobody_started_counts_as_dead(peers: Peers) -> None:
    a, b = peers.make(0), peers.make(1)
    peers.open(a, b, absent={2: "tcp://127.0.0.1:1"})
    a.expect([2])
    b.post(Tag(1), {0: number(1.0)})
    assert list(a.collect(Tag(1), [1, 2], PATIENT_S).on_time) == [1]
    assert peers.changes(a) == [(2, "dead", "nobody listens at its address")]


def test_a_later_neighbour_that_never_answers_counts_as_dead(peers: Peers, raw: Raw) -> None:
    _, endpoint = raw.bound()
    a, b = peers.make(0), peers.make(1)
    peers.open(a, b, absent={2: endpoint})
    a.post(Tag(1), {2: number(1.0)})
    assert not a.collect(Tag(1), [2], 0.1).on_time
    assert peers.changes(a) == [(2, "dead", "no connection within 0.1 s")]
    assert not a.collect(Tag(2), [2], PATIENT_S).on_time


def test_what_is_posted_before_the_connection_stands_arrives(peers: Peers) -> None:
    a, b = peers.make(0), peers.make(1)
    book = {0: a.endpoint, 1: b.endpoint}
    for each in (a, b):
        each.open(book, [])
    assert a.post(Tag(1), {1: number(1.0)}) == 4
    closing = peers.close(a)
    assert list(b.collect(Tag(1), [0], PATIENT_S).on_time) == [0]
    read_until(b, closing.done)
    closing.result()
    assert peers.changes(b) == [(0, "left", "said goodbye")]


PATIENT = replace(QUICK, linger_s=PATIENT_S)


def test_what_is_posted_right_before_close_arrives(peers: Peers) -> None:
    a, b = peers.pair(PATIENT)
    for round_ in (1, 2, 3):
        b.post(Tag(round_), {0: number(round_, 1 << 18)})
    closing = peers.close(b)
    for round_ in (1, 2, 3):
        mail = a.collect(Tag(round_), [1], PATIENT_S)
        assert mail.on_time[1].tensors["x"][-1].item() == round_
    assert not a.collect(Tag(4), [1], PATIENT_S).on_time
    closing.result()
    assert peers.changes(a) == [(1, "left", "said goodbye")]
    assert a.post(Tag(5), {1: number(5.0)}) == 0


def test_a_full_queue_does_not_block_and_loses_nothing_it_took(peers: Peers) -> None:
    narrow = replace(PATIENT, queue_messages=2)
    a, b = peers.pair(narrow)
    taken = 0
    while b.post(Tag(1 + taken), {0: number(taken, 1 << 18)}):
        taken += 1
    closing = peers.close(b)
    late = a.collect(Tag(1_000_000), [1], PATIENT_S).late
    closing.result()
    assert [m.tag.round for m in late] == list(range(1, 1 + taken))
    assert peers.changes(a) == [(1, "left", "said goodbye")]


def test_neighbours_that_close_together_do_not_wait_for_each_other(peers: Peers) -> None:
    for closing in [peers.close(each) for each in peers.pair(PATIENT)]:
        closing.result()


def test_too_many_messages_ahead_of_time_are_dropped(peers: Peers) -> None:
    a, b = peers.make(0, limits=replace(QUICK, queue_messages=2)), peers.make(1)
    peers.open(a, b)
    for round_ in (5, 6, 7, 8):
        b.post(Tag(round_), {0: number(round_)})
    read_until(a, lambda: peers.rejected(a))
    assert peers.rejected(a) == [(1, "too many messages ahead of time")]
    assert list(a.collect(Tag(5), [1], PATIENT_S).on_time) == [1]


def test_a_message_over_the_limit_never_arrives(peers: Peers) -> None:
    a = peers.make(0, limits=replace(QUICK, max_message_bytes=1 << 20))
    b = peers.make(1)
    peers.open(a, b)
    b.post(Tag(1), {0: number(1.0, 1 << 19)})
    assert not a.collect(Tag(1), [1], 0.3).on_time
