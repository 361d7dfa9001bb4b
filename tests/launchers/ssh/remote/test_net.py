"""The way to another host: measured by its echo, or the reason why there is none."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from p2p_dml.launchers.ssh.remote.net import Listeners, measure


@pytest.fixture
def port() -> Iterator[int]:
    """A port where somebody answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    listeners = Listeners([number])
    yield number
    listeners.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_a_transfer_is_measured(port: int, address: str) -> None:
    found = measure(address, port, 1_000_000)
    assert 0 < found["rtt_s"] < 1
    assert found["bytes_per_s"] > 1e6


def test_without_bytes_only_the_way_is_tried(port: int) -> None:
    assert measure("127.0.0.1", port, 0).keys() == {"rtt_s"}


def test_several_callers_are_answered_one_after_another(port: int) -> None:
    assert all("error" not in measure("127.0.0.1", port, 10) for _ in range(5))


def test_a_port_is_free_again_afterwards(port: int) -> None:
    with pytest.raises(OSError, match="in use"):
        Listeners([port])


@pytest.mark.parametrize("address", ["127.0.0.1", "no-such-host.invalid"])
def test_nobody_there_is_an_error_in_words(address: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # held and not listening: nobody can take it meanwhile
        found = measure(address, held.getsockname()[1], 10)
    assert found.keys() == {"error"}
    assert found["error"]


def test_a_listener_lets_go_of_its_port() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    for _ in range(2):
        Listeners([number]).close()
    assert "error" in measure("127.0.0.1", number, 0)
