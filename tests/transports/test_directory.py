"""Peers that meet by a directory: in one process, over real sockets, with and without keys."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, final

import pytest
import torch
import zmq

from p2p_dml import keys, wire
from p2p_dml.errors import StartupError
from p2p_dml.keys import Keys
from p2p_dml.transports.directory import (
    RELAY,
    Answer,
    Directory,
    ask,
    reachable_at,
)
from p2p_dml.transports.relay import Relay, Relayed
from p2p_dml.types import PeerId, Tag
from p2p_dml.wire import Header, Kind

if TYPE_CHECKING:
    from tests.transports.conftest import FreePorts, Raw

RUN = b"r" * 16
PEERS = 3


@final
class Office:
    """A directory that is attended to by a thread, and peers that ask it."""

    def __init__(
        self,
        own: Keys | None = None,
        listen: str = "tcp://127.0.0.1:*",
        relay: Relay | None = None,
    ) -> None:
        self.told: list[str] = []
        self._directory = Directory(listen, PEERS, own, self.told.append, relay and relay.admit)
        self.endpoint = self._directory.endpoint
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(8)
        self._serving = self._pool.submit(self._serve)

    def _serve(self) -> None:
        while not self._over.is_set():
            self._directory.attend(0.05)

    def ask(
        self,
        me: PeerId,
        address: str | None = None,
        *,
        digest: bytes = RUN,
        own: Keys | None = None,
        timeout_s: float = 20.0,
    ) -> Future[Answer]:
        place = f"tcp://127.0.0.1:{5800 + me}" if address is None else address
        hello = Header(Kind.HELLO, digest, me, 0, Tag(0), note=place)
        return self._pool.submit(ask, self.endpoint, hello, PEERS, own, timeout_s)

    def close(self) -> None:
        self._over.set()
        self._serving.result()
        self._pool.shutdown()
        self._directory.close()


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office()
    yield made
    made.close()


def book(**changes: str) -> dict[PeerId, str]:
    usual = {peer: f"tcp://127.0.0.1:{5800 + peer}" for peer in range(PEERS)}
    return usual | {int(key.removeprefix("peer")): place for key, place in changes.items()}


def test_all_peers_learn_all_addresses(office: Office) -> None:
    assert [each.result().book for each in [office.ask(me) for me in range(PEERS)]] == [
        book()
    ] * PEERS
    assert sorted(office.told) == sorted(
        f"peer {me} is at tcp://127.0.0.1:{5800 + me} ({place} of 3)"
        for place, line in enumerate(office.told, 1)
        for me in [int(line.split()[1])]
    )


def test_who_comes_back_elsewhere_and_who_asks_later_get_the_new_address(office: Office) -> None:
    for each in [office.ask(me) for me in range(PEERS)]:
        each.result()
    moved = "tcp://[::1]:9"
    assert office.ask(1, moved).result().book == book(peer1=moved)
    assert office.ask(0).result().book == book(peer1=moved)
    assert office.told[-1] == "peer 1 is at tcp://[::1]:9 (3 of 3)"


def test_who_is_missing_is_told(office: Office) -> None:
    with pytest.raises(StartupError, match=r"peer 1: .*has not heard of peers 0, 2 within 1 s"):
        office.ask(1, timeout_s=1.0).result()


def test_no_directory_there() -> None:
    hello = Header(Kind.HELLO, RUN, 1, 0, Tag(0), note="tcp://127.0.0.1:1")
    with pytest.raises(StartupError, match=r"peer 1: no answer from the directory at tcp://127"):
        ask("tcp://127.0.0.1:9", hello, PEERS, None, 0.2)


@pytest.mark.parametrize(
    ("me", "address", "digest", "why"),
    [
        (3, None, RUN, "no hello of a peer 0 to 2, found peer 3"),
        (1, "tcp://*:5801", RUN, r"peer 1 cannot be reached at 'tcp://\*:5801'"),
        (1, RELAY, RUN, "this directory does not relay; start it with --relay"),
        (1, "", RUN, "peer 1 cannot be reached at ''"),
        (1, None, b"o" * 16, "peer 1 is of another run than those before: run file, seed and"),
    ],
)
def test_who_does_not_belong_is_refused(
    office: Office, me: PeerId, address: str | None, digest: bytes, why: str
) -> None:
    before = office.ask(0, timeout_s=1.0)
    with pytest.raises(StartupError, match="has not heard"):
        before.result()
    with pytest.raises(StartupError, match=f"the directory at .* refused it: {why}"):
        office.ask(me, address, digest=digest).result()
    assert [line for line in office.told if line.startswith("refused: ")]


def test_garbage_is_refused_and_told(office: Office) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(office.endpoint)
        stranger.send(b"garbage")
        assert stranger.poll(10_000)
    assert "header" in office.told[0]


def test_an_answer_that_is_no_book_is_of_no_directory(raw: Raw) -> None:
    line, endpoint = raw.bound()
    hello = Header(Kind.HELLO, RUN, 1, 0, Tag(0), note="tcp://127.0.0.1:1")
    tensors = {"addresses": torch.zeros(3, dtype=torch.bfloat16)}
    slots = wire.slots_of(tensors)
    answer = wire.encode_header(Header(Kind.BOOK, RUN, 0, 0, Tag(0), slots=slots))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, endpoint, hello, PEERS, None, 20.0)
        contact, *_ = line.recv_multipart()
        line.send_multipart([contact, answer, wire.encode_block(tensors, slots)])
        with pytest.raises(StartupError, match="not a directory: addresses: expected uint8, found"):
            asking.result()


def test_an_address_that_is_taken(office: Office) -> None:
    with pytest.raises(StartupError, match=r"directory: cannot listen on tcp://127.*in use"):
        Directory(office.endpoint, PEERS, None, print)


def test_with_keys_peers_meet_and_strangers_do_not(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    keys.create(ours, PEERS)
    keys.create(theirs, PEERS)
    office = Office(keys.read_for_directory(ours, PEERS))
    try:
        asking = [office.ask(me, own=keys.read(ours, me, PEERS)) for me in range(PEERS)]
        assert [each.result().book for each in asking] == [book()] * PEERS
        # A stranger who knows the directory's key, one who does not, and a peer as another.
        foreign = keys.read(theirs, 0, PEERS)
        knowing = Keys(
            public=foreign.public, own=foreign.own, directory=keys.read(ours, 0, PEERS).directory
        )
        for own in (knowing, foreign, None):
            with pytest.raises(StartupError, match="no answer from the directory"):
                office.ask(0, own=own, timeout_s=0.5).result()
        with pytest.raises(StartupError, match="is peer 0, and has shown the key of peer 1"):
            office.ask(0, own=keys.read(ours, 1, PEERS)).result()
    finally:
        office.close()
    assert any("not among those of the run's peers" in line for line in office.told)


@pytest.mark.parametrize("listen", ["tcp://127.0.0.1:*", "tcp://*:*"])
def test_of_a_wildcard_the_own_address_is_told(listen: str) -> None:
    place = "tcp://127.0.0.1:5801" if listen.startswith("tcp://1") else "tcp://0.0.0.0:5801"
    assert reachable_at(place, "tcp://127.0.0.1:5700") == "tcp://127.0.0.1:5801"


def test_a_peer_that_can_only_dial_out_is_reached_by_the_relay(free_ports: FreePorts) -> None:
    first = free_ports(2 + PEERS)
    listen = f"tcp://127.0.0.1:{first}"
    relay = Relay(listen, listen)
    office = Office(listen=listen, relay=relay)
    try:
        with socket.create_server(("127.0.0.1", 0)) as inside:
            asking = [office.ask(0), office.ask(1, RELAY), office.ask(2)]
            answers = [each.result() for each in asking]
            place = f"tcp://127.0.0.1:{first + 3}"
            assert [dict(each.book) for each in answers] == [book(peer1=place)] * PEERS
            assert [bool(each.ticket) for each in answers] == [False, True, False]
            own = f"tcp://127.0.0.1:{inside.getsockname()[1]}"
            relayed = Relayed(listen, answers[1].ticket, own)
            try:
                with socket.create_connection(("127.0.0.1", first + 3), timeout=20.0) as outside:
                    outside.sendall(b"through")
                    line, _ = inside.accept()
                    with line:
                        assert line.recv(7, socket.MSG_WAITALL) == b"through"
            finally:
                relayed.close()
    finally:
        office.close()
        relay.close()
