"""Connections through a relay: what passes, who is turned away, what ends with what."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, final

import pytest
import torch

from p2p_dml.errors import StartupError
from p2p_dml.transports.relay import Relay, Relayed
from p2p_dml.types import Payload, Tag

if TYPE_CHECKING:
    from tests.transports.conftest import FreePorts, Peers

HOST = "127.0.0.1"
ME = 2


@final
class Behind:
    """A socket that only a relay leads to."""

    def __init__(self, first: int) -> None:
        directory = f"tcp://{HOST}:{first}"
        self.relay = Relay(directory, directory)
        self.admitted = self.relay.admit(ME)
        address, ticket = self.admitted
        self.port = int(address.rpartition(":")[2])
        self.inside = socket.create_server((HOST, 0))
        self.inside.settimeout(20.0)
        own = f"tcp://{HOST}:{self.inside.getsockname()[1]}"
        self.relayed = Relayed(directory, ticket, own)

    def visit(self) -> tuple[socket.socket, socket.socket]:
        """A visitor's end of a connection, and the inner one."""
        visitor = socket.create_connection((HOST, self.port), timeout=20.0)
        line, _ = self.inside.accept()
        line.settimeout(20.0)
        return visitor, line

    def close(self) -> None:
        self.relayed.close()
        self.relay.close()
        self.inside.close()


def heard(line: socket.socket, count: int) -> bytes:
    with line.makefile("rb") as file:
        return file.read(count)


@pytest.fixture
def behind(free_ports: FreePorts) -> Iterator[Behind]:
    made = Behind(free_ports(5))
    yield made
    made.close()


def test_bytes_pass_both_ways_whole_and_in_order(behind: Behind) -> None:
    visitor, line = behind.visit()
    there, back = os.urandom(3_000_000), os.urandom(2_000_000)
    with visitor, line:
        sending = threading.Thread(target=visitor.sendall, args=(there,))
        sending.start()
        assert heard(line, len(there)) == there
        sending.join()
        answering = threading.Thread(target=line.sendall, args=(back,))
        answering.start()
        assert heard(visitor, len(back)) == back
        answering.join()


def test_each_visitor_has_a_connection_of_its_own(behind: Behind) -> None:
    pairs = []
    for number in range(5):  # more than are kept open beforehand
        visitor, line = behind.visit()
        pairs.append((visitor, line))
        visitor.sendall(bytes([number]))
    assert [line.recv(1) for _, line in pairs] == [bytes([number]) for number in range(5)]
    for ends in pairs:
        for end in ends:
            end.close()


@pytest.mark.parametrize("outer_first", [True, False])
def test_when_one_end_goes_the_other_is_told(behind: Behind, outer_first: bool) -> None:
    first, second = behind.visit() if outer_first else behind.visit()[::-1]
    first.close()
    assert second.recv(1) == b""
    second.close()


@pytest.mark.parametrize("shown", [bytes(32), b"short"])
def test_who_does_not_show_the_token_is_turned_away(behind: Behind, shown: bytes) -> None:
    with socket.create_connection((HOST, behind.relay.port), timeout=20.0) as stranger:
        stranger.sendall(shown)
        stranger.shutdown(socket.SHUT_WR)
        assert stranger.recv(1) == b""
    visitor, line = behind.visit()
    visitor.sendall(b"x")
    assert line.recv(1) == b"x"
    visitor.close()
    line.close()


def test_asked_again_a_peer_keeps_its_port(behind: Behind) -> None:
    assert behind.relay.admit(ME) == behind.admitted


def test_a_port_that_is_taken(free_ports: FreePorts) -> None:
    first = free_ports(2)
    with (
        socket.create_server((HOST, first + 1)),
        pytest.raises(StartupError, match=f"relay: cannot listen on port {first + 1}: "),
    ):
        Relay(f"tcp://{HOST}:{first}", f"tcp://{HOST}:{first}")


def test_after_the_relay_is_gone_the_relayed_wait_for_it_and_can_end(behind: Behind) -> None:
    visitor, line = behind.visit()
    behind.relay.close()
    assert visitor.recv(1) == line.recv(1) == b""
    visitor.close()
    line.close()


def test_peers_exchange_models_through_a_relay(peers: Peers, free_ports: FreePorts) -> None:
    one, other = peers.make(0), peers.make(1)
    directory = f"tcp://{HOST}:{free_ports(4)}"
    relay = Relay(directory, directory)
    address, ticket = relay.admit(1)
    relayed = Relayed(directory, ticket, other.endpoint)
    try:
        peers.open(one, other, absent={1: address})
        model = Payload({"x": torch.arange(1000.0)})
        one.post(Tag(1), {1: model})
        (came,) = other.collect(Tag(1), [0], 20.0).on_time.values()
        assert torch.equal(came.tensors["x"], model.tensors["x"])
    finally:
        for each in [peers.close(transport) for transport in (one, other)]:
            each.result()
        relayed.close()
        relay.close()
