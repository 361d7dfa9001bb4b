"""How peers come together over sockets: strangers, twins, wrong addresses and garbage."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import msgpack
import pytest
import torch

from p2p_dml import wire
from p2p_dml.errors import StartupError
from p2p_dml.links.elastic import Elastic, Members
from p2p_dml.links.static import Ring
from p2p_dml.transports.zeromq import Limits
from p2p_dml.types import Payload, PeerId, Tag
from p2p_dml.wire import Header, Kind

if TYPE_CHECKING:
    from tests.transports.conftest import Peers, Raw

RUN = b"r" * 16
OTHER_RUN = b"o" * 16
HELLO = wire.encode_header(Header(Kind.HELLO, RUN, 1, 7, Tag(1)))
IMPATIENT = Limits(startup_s=0.3, linger_s=0.2)
PATIENT_S = 60.0
"""Longer than a test may take: a test that waits this out has failed."""

pytestmark = pytest.mark.timeout(30)


def number(x: float) -> Payload:
    return Payload({"x": torch.tensor([x])})


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
    fields = msgpack.unpackb(raw.frame(Kind.HELLO))
    fields[1] = 99
    kind, note = raw.ask(a, raw.dealer(a.endpoint), msgpack.packb(fields))
    assert (kind, note) == (Kind.REFUSED, "speaks wire version 99, this peer speaks 1")
    assert peers.rejected(a) == [(None, f"{note} (from 127.0.0.1)")]


@pytest.mark.parametrize("claimed", [0, 5])
def test_ids_outside_the_run_are_refused(peers: Peers, raw: Raw, claimed: PeerId) -> None:
    a, _ = peers.pair()
    kind, note = raw.ask(a, raw.dealer(a.endpoint), raw.frame(Kind.HELLO, claimed))
    assert kind is Kind.REFUSED
    assert f"peer id {claimed} is this peer's own or not of this run" in note


@pytest.mark.parametrize(
    ("peer", "place", "why"),
    [
        (2, "tcp://127.0.0.1:5802", None),
        (4, "tcp://127.0.0.1:5804", "peer id 4 is this peer's own or not of this run"),
        (2, f"tcp://{'a' * 70}:5802", "cannot resolve the host of tcp://a"),
        (
            2,
            "tcp://127.0.0.1:port",
            "cannot use 'tcp://127.0.0.1:port', the address of",
        ),
        (2, "tcp://*:5802", "cannot use 'tcp://*:5802', the address of peer 2"),
        (2, "", "cannot use '', the address of peer 2"),
    ],
)
def test_of_newcomers_only_those_that_can_be_reached_get_in(
    peers: Peers, raw: Raw, peer: PeerId, place: str, why: str | None
) -> None:
    """An elastic run of two peers now and four at most."""
    members = [Elastic(Members(2, 4), lambda n: Ring(num_peers=n), 1) for _ in range(2)]
    a, b = (peers.make(me, members=members[me]) for me in range(2))
    peers.open(a, b)
    hello = Header(Kind.HELLO, RUN, peer, 7, wire.NEVER, place, {"3/joins": 9.0})
    kind, note = raw.ask(a, raw.dealer(a.endpoint), wire.encode_header(hello))
    assert kind is (Kind.REFUSED if why else Kind.WELCOME)
    assert (why or "") in note
    b.post(Tag(1), {0: number(1.0)})
    assert list(a.collect(Tag(1), [1], PATIENT_S).on_time) == [1]


def test_a_second_peer_with_a_taken_id_is_refused(peers: Peers) -> None:
    a, b = peers.pair()
    twin = peers.make(1, incarnation=2)
    opening = peers.threads.submit(twin.open, {0: a.endpoint, 1: twin.endpoint}, [0])
    peers.read_until(a, opening.done)
    with pytest.raises(StartupError, match="a peer 1 is here and alive: two peers with one id"):
        opening.result()
    b.post(Tag(1), {0: number(1.0)})
    assert list(a.collect(Tag(1), [1], PATIENT_S).on_time) == [1]


def test_of_two_peers_with_one_id_the_first_is_told_when_it_loses_its_place(
    peers: Peers, raw: Raw
) -> None:
    a = peers.make(0)
    first = raw.dealer(a.endpoint)
    assert raw.ask(a, first, raw.frame(Kind.HELLO))[0] is Kind.WELCOME
    second = raw.dealer(a.endpoint)
    header = replace(wire.decode_header(raw.frame(Kind.HELLO), 0), incarnation=8)
    assert raw.ask(a, second, wire.encode_header(header))[0] is Kind.WELCOME
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
    [HELLO, b"a block that no header announced"],
    [HELLO[:-1]],
]


def test_garbage_is_told_once_and_disturbs_nobody(peers: Peers, raw: Raw) -> None:
    a, b = peers.pair()
    host, _, port = a.endpoint.removeprefix("tcp://").partition(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        for _ in range(2):
            stranger = raw.dealer(a.endpoint)
            for frames in GARBAGE:
                assert raw.ask(a, stranger, *frames)[0] is Kind.REFUSED
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
    stranger.send(raw.frame(Kind.ROUND))
    assert raw.ask(a, stranger, b"")[0] is Kind.REFUSED  # answered after the message was read
    assert not a.collect(Tag(1), [1], 0.0).on_time
    b.post(Tag(1), {0: number(1.0)})
    assert list(a.collect(Tag(1), [1], PATIENT_S).on_time) == [1]


@pytest.mark.parametrize(("sender", "digest"), [(0, RUN), (1, OTHER_RUN)])
def test_later_headers_must_agree_with_the_hello(
    peers: Peers, raw: Raw, sender: PeerId, digest: bytes
) -> None:
    a = peers.make(0)
    stranger = raw.dealer(a.endpoint)
    assert raw.ask(a, stranger, raw.frame(Kind.HELLO))[0] is Kind.WELCOME
    stranger.send(raw.frame(Kind.ROUND, sender, digest))
    peers.read_until(a, lambda: peers.rejected(a))
    ((told_of, why),) = peers.rejected(a)
    assert (told_of, "of another run" in why) == (1, True)
    assert not a.collect(Tag(1), [0, 1], 0.0).on_time
