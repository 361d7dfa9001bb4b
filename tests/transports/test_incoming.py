"""How much is read at a time, and of whom nothing more is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import zmq

from p2p_dml.transports._incoming import AT_A_TIME, REFUSED_PER_S, Incoming


@dataclass
class Scene:
    """A reader with a clock of its own, and two senders."""

    incoming: Incoming
    senders: list[zmq.Socket[bytes]]
    clock: list[float] = field(default_factory=lambda: [5.0])

    def send(self, sender: int, times: int) -> None:
        for turn in range(times):
            self.senders[sender].send(f"{sender} {turn}".encode())

    def read(self) -> list[bytes]:
        """What is yielded until nothing is left, read as often as it takes."""
        found: list[bytes] = []
        while self.incoming.socket.poll(0):
            found += [frames[-1].bytes for frames in self.incoming.read()]
        return found

    def contact(self, sender: int) -> bytes:
        self.send(sender, 1)
        return next(self.incoming.read())[0].bytes


@pytest.fixture
def scene() -> Iterator[Scene]:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.bind("inproc://here")
    clock = [5.0]
    incoming = Incoming(socket, None, lambda: clock[0])
    senders = [context.socket(zmq.DEALER) for _ in range(2)]
    for each in senders:
        each.setsockopt(zmq.SNDHWM, 0)
        each.connect("inproc://here")
    yield Scene(incoming, senders, clock)
    context.destroy(linger=0)


def test_no_more_than_so_many_are_read_at_a_time_and_all_senders_have_their_turn(
    scene: Scene,
) -> None:
    scene.send(0, 10 * AT_A_TIME)
    scene.send(1, 3)
    first = [frames[-1].bytes for frames in scene.incoming.read()]
    assert len(first) == AT_A_TIME
    assert {b"1 0", b"1 1", b"1 2"} <= set(first)
    assert len(scene.read()) == 9 * AT_A_TIME + 3


def test_of_whom_much_is_refused_nothing_more_is_read_in_that_second(scene: Scene) -> None:
    contact = scene.contact(0)
    found = [scene.incoming.count(contact) for _ in range(REFUSED_PER_S)]
    assert found == [False] * (REFUSED_PER_S - 1) + [True]
    scene.send(0, 500)
    scene.send(1, 2)
    assert scene.read() == [b"1 0", b"1 1"]
    scene.clock[0] = 6.0
    scene.send(0, 2)
    assert scene.read() == [b"0 0", b"0 1"]


def test_a_few_refusals_change_nothing_and_are_forgotten(scene: Scene) -> None:
    contact = scene.contact(0)
    for second in (5.2, 6.1, 7.9):
        scene.clock[0] = second
        for _ in range(REFUSED_PER_S - 1):
            assert not scene.incoming.count(contact)
        scene.send(0, 3)
        assert scene.read() == [b"0 0", b"0 1", b"0 2"]
