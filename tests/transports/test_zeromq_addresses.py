"""Names, IPv4 and IPv6, and peers that come back at another address than before."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.addresses import (
    AddressBook,
    is_here,
    is_ipv6,
    is_wildcard,
    peer_on,
    resolve,
    route_to,
    to_listen_on,
)
from p2p_dml.errors import StartupError
from p2p_dml.transports.zeromq import ZeroMQTransport
from p2p_dml.types import Payload, PeerId, Tag
from p2p_dml.wire import Header, Kind, encode_header

if TYPE_CHECKING:
    from tests.transports.conftest import Peers, Raw

pytestmark = pytest.mark.timeout(30)

PATIENT_S = 60.0
"""Longer than a test may take: a test that waits this out has failed."""

KNOWN = {
    "both": [(socket.AF_INET6, "2001:db8::7"), (socket.AF_INET, "10.0.0.7")],
    "six": [(socket.AF_INET6, "2001:db8::7")],
    "10.0.0.7": [(socket.AF_INET, "10.0.0.7")],
    "127.0.0.1": [(socket.AF_INET, "127.0.0.1")],
    "::1": [(socket.AF_INET6, "::1")],
}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service that knows `KNOWN` and nothing else."""

    def look_up(host: str, *rest: object, **more: object) -> list[tuple[object, ...]]:
        if host not in KNOWN:
            raise socket.gaierror(-2, "Name or service not known")
        return [(family, 1, 6, "", (place, 0)) for family, place in KNOWN[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("address", "numeric"),
    [
        ("tcp://127.0.0.1:5800", "tcp://127.0.0.1:5800"),
        ("tcp://[::1]:5800", "tcp://[::1]:5800"),
        ("tcp://both:5800", "tcp://10.0.0.7:5800"),
        ("tcp://six:5800", "tcp://[2001:db8::7]:5800"),
        ("ipc:///tmp/x", "ipc:///tmp/x"),
        ("nowhere", "nowhere"),
    ],
)
def test_hosts_are_resolved(address: str, numeric: str) -> None:
    assert resolve(address) == to_listen_on(address) == numeric


@pytest.mark.usefixtures("names")
def test_an_unknown_host_is_named_and_an_interface_left_to_libzmq() -> None:
    with pytest.raises(StartupError, match="cannot resolve the host of tcp://eth0:5800: "):
        resolve("tcp://eth0:5800")
    assert to_listen_on("tcp://eth0:5800") == "tcp://eth0:5800"
    assert to_listen_on("tcp://*:5800") == "tcp://*:5800"


@pytest.mark.parametrize(
    ("address", "wild", "six"),
    [
        ("tcp://127.0.0.1:5800", False, False),
        ("tcp://[::1]:5800", False, True),
        ("tcp://[::]:5800", True, True),
        ("tcp://0.0.0.0:5800", True, False),
        ("tcp://*:5800", True, socket.has_dualstack_ipv6()),
        ("ipc:///tmp/[x]:1", False, False),
    ],
)
def test_kinds_of_addresses(address: str, wild: bool, six: bool) -> None:
    assert (is_wildcard(address), is_ipv6(address)) == (wild, six)


@pytest.mark.parametrize("peer", [0, 7, 12345])
def test_routes_name_their_peer_and_differ_from_move_to_move(peer: PeerId) -> None:
    routes = [route_to(peer, move) for move in range(3)]
    assert [peer_on(route) for route in routes] == [peer] * 3
    assert len(set(routes)) == 3


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("said", "has_moved", "now"),
    [
        ("tcp://10.0.0.7:5800", False, "tcp://10.0.0.7:5800"),
        ("tcp://both:5800", False, "tcp://10.0.0.7:5800"),
        ("tcp://127.0.0.1:5801", True, "tcp://127.0.0.1:5801"),
        ("tcp://0.0.0.0:5801", False, "tcp://10.0.0.7:5800"),
        ("", False, "tcp://10.0.0.7:5800"),
        ("ipc:///tmp/x", False, "tcp://10.0.0.7:5800"),
    ],
)
def test_the_book_takes_down_where_a_peer_is(said: str, has_moved: bool, now: str) -> None:
    book = AddressBook({1: "tcp://both:5800"})
    assert book.move(1, said) is has_moved
    assert book[1] == now
    assert (1 in book, 2 in book, len(book)) == (True, False, 1)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("tcp://nobody:5800", "cannot resolve the host of tcp://nobody:5800"),
        ("tcp://10.0.0.7:port", "cannot use .* the address of peer 2: expected such as tcp://"),
        ("tcp://10.0.0.7:65536", "cannot use"),
        ("tcp://10.0.0.7:0", "cannot use"),
        ("tcp://*:5800", r"cannot use 'tcp://\*:5800'"),
        ("udp://10.0.0.7:5800", "cannot use"),
        ("", "cannot use ''"),
    ],
)
def test_nobody_new_is_taken_down_where_nobody_can_be(said: str, why: str) -> None:
    book = AddressBook({1: "tcp://both:5800"})
    with pytest.raises(StartupError, match=why):
        book.add(2, said)
    assert 2 not in book
    book.add(2, "tcp://six:5800")
    assert book[2] == "tcp://[2001:db8::7]:5800"


# ---- over real sockets -----------------------------------------------------------------------


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def meet(a: ZeroMQTransport, b: ZeroMQTransport, round_: int) -> bool:
    for each, other in ((a, b), (b, a)):
        each.post(Tag(round_), {other.me: Payload({"x": torch.ones(1)})})
    heard = [each.collect(Tag(round_), [other.me], 0.05) for each, other in ((a, b), (b, a))]
    return all(mail.on_time for mail in heard)


def meet_in_time(a: ZeroMQTransport, b: ZeroMQTransport, first: int) -> None:
    """Exchange in rounds from `first` on until both are heard; the test's time limit ends this."""
    if b.is_outside:
        b.come_inside(first)
    rounds = itertools.count(first)
    while not meet(a, b, next(rounds)):
        continue


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("bind", ["tcp://[::1]:*", "tcp://*:*"])
def test_peers_meet_over_ipv6(peers: Peers, bind: str) -> None:
    a, b = (peers.make(me, bind=bind) for me in (0, 1))
    book = {each.me: f"tcp://[::1]:{each.endpoint.rpartition(':')[2]}" for each in (a, b)}
    opening = [peers.threads.submit(each.open, book, book) for each in (a, b)]
    assert [each.exception() for each in opening] == [None, None]
    meet_in_time(a, b, 1)


def test_a_socket_for_all_addresses_takes_ipv4_too(peers: Peers) -> None:
    a, b = (peers.make(me, bind="tcp://*:*") for me in (0, 1))
    book = {each.me: f"tcp://127.0.0.1:{each.endpoint.rpartition(':')[2]}" for each in (a, b)}
    opening = [peers.threads.submit(each.open, book, book) for each in (a, b)]
    assert [each.exception() for each in opening] == [None, None]
    meet_in_time(a, b, 1)


def test_a_neighbour_that_comes_back_elsewhere_is_found(peers: Peers) -> None:
    a, b = peers.pair()
    peers.kill(b)
    again = peers.make(1, incarnation=2)
    assert again.endpoint != b.endpoint
    for round_ in range(1, 3):  # a notices that b has gone
        a.collect(Tag(round_), [1], PATIENT_S)
    opening = peers.threads.submit(again.open, {0: a.endpoint, 1: again.endpoint}, [0])
    peers.read_until(a, opening.done)
    opening.result()
    meet_in_time(a, again, 3)
    assert peers.rejected(a) == []


def test_it_is_found_again_and_again(peers: Peers) -> None:
    a, other = peers.pair()
    for incarnation in (2, 3, 4):
        peers.kill(other)
        other = peers.make(1, incarnation=incarnation)
        while a.collect(Tag(0), [1], 0.05) and a._liveness.is_connected(1):
            continue
        opening = peers.threads.submit(other.open, {0: a.endpoint, 1: other.endpoint}, [0])
        peers.read_until(a, opening.done)
        opening.result()
        meet_in_time(a, other, 1_000_000 * incarnation)


def test_a_wrong_entry_is_put_right_by_the_hello_of_the_peer(peers: Peers) -> None:
    a, b = peers.make(0), peers.make(1)
    wrong = {0: a.endpoint, 1: "tcp://127.0.0.1:1"}
    opening = [
        peers.threads.submit(a.open, wrong, [1]),
        peers.threads.submit(b.open, {0: a.endpoint, 1: b.endpoint}, [0]),
    ]
    assert [each.exception() for each in opening] == [None, None]
    meet_in_time(a, b, 1)


def hello_at(address: str) -> bytes:
    return encode_header(Header(Kind.HELLO, b"r" * 16, 1, 7, Tag(0), address))


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5800", "ipc:///tmp/elsewhere", "", "x"])
def test_no_address_changes_nothing(peers: Peers, raw: Raw, address: str) -> None:
    a, b = peers.pair()
    peers.kill(b)
    a.collect(Tag(1), [1], PATIENT_S)
    stranger = raw.dealer(a.endpoint)
    assert raw.ask(a, stranger, hello_at(address))[0] is Kind.WELCOME
    assert a._hands.book[1] == b.endpoint


def test_an_address_that_cannot_be_used_is_told(peers: Peers, raw: Raw) -> None:
    a, b = peers.pair()
    peers.kill(b)
    a.collect(Tag(1), [1], PATIENT_S)
    assert raw.ask(a, raw.dealer(a.endpoint), hello_at(f"tcp://{'a' * 70}:1"))[0] is Kind.WELCOME
    assert raw.ask(a, raw.dealer(a.endpoint), hello_at("tcp://127.0.0.1:port"))[0] is Kind.WELCOME
    told = [why for sender, why in peers.rejected(a) if sender == 1]
    assert ["cannot resolve" in told[0], "cannot use" in told[1]] == [True, True]


def test_a_neighbour_that_is_alive_is_not_moved(peers: Peers, raw: Raw) -> None:
    a, b = peers.pair()
    hello = encode_header(Header(Kind.HELLO, b"r" * 16, 1, 1, Tag(0), "tcp://127.0.0.1:1"))
    assert raw.ask(a, raw.dealer(a.endpoint), hello)[0] is Kind.WELCOME
    assert a._hands.book[1] == b.endpoint


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("ipc:///tmp/0.sock", True),
        ("tcp://127.0.0.1:5800", True),
        ("tcp://127.9.9.9:5800", True),
        ("tcp://localhost:5800", True),
        ("tcp://[::1]:5800", True),
        ("tcp://10.0.0.7:5800", False),
        ("tcp://[2001:db8::7]:5800", False),
        ("tcp://*:5800", False),
        ("tcp://0.0.0.0:5800", False),
        ("tcp://[::]:5800", False),
        ("tcp://peer-3:5800", False),
        ("tcp://127.0.0.1.example.org:5800", False),
    ],
)
def test_what_only_this_machine_can_reach(address: str, here: bool) -> None:
    assert is_here(address) is here
