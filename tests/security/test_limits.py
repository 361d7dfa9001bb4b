"""Too much of anything is cut off before it costs memory, and disturbs no honest peer."""

from __future__ import annotations

import resource
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from p2p_dml import wire
from p2p_dml.launchers.process import allow_many_files
from p2p_dml.transports._zap import BROKEN_OFF, NO_HANDSHAKE
from p2p_dml.types import Tag
from p2p_dml.wire import Kind
from tests.security.conftest import QUICK

if TYPE_CHECKING:
    from tests.security.conftest import Mallory, Village

pytestmark = pytest.mark.timeout(60)

TEN_GB = 10 << 30
MUCH = 32 << 20
"""More bytes than a refusal may cost."""

CROWD = 1000


@pytest.mark.parametrize("is_command", [True, False])
def test_ten_gigabytes_announced_to_a_gate_are_cut_off(
    village: Village, mallory: Mallory, is_command: bool
) -> None:
    a, b = village.pair()
    before = mallory.resident_bytes()
    line = mallory.line(a)
    line.sendall(mallory.greeting("CURVE"))
    line.sendall(mallory.announcement(TEN_GB, is_command=is_command) + bytes(1 << 16))
    assert mallory.is_closed(line)
    assert mallory.resident_bytes() - before < MUCH
    assert village.hear(a, b, 1)
    assert village.whys(a, lambda told: told) == {BROKEN_OFF: 1}


def test_ten_gigabytes_announced_where_there_is_no_gate_are_cut_off(
    village: Village, mallory: Mallory
) -> None:
    a, b = village.pair(is_open=True)
    before = mallory.resident_bytes()
    line = mallory.line(a)
    line.sendall(mallory.greeting("NULL") + mallory.ready())
    assert line.recv(1 << 16)
    line.sendall(mallory.announcement(TEN_GB, is_command=False) + bytes(1 << 16))
    assert mallory.is_closed(line)
    assert mallory.resident_bytes() - before < MUCH
    assert village.hear(a, b, 1)


def test_frames_that_are_announced_and_do_not_come_cost_nothing(
    village: Village, mallory: Mallory
) -> None:
    a, b = village.pair(is_open=True)
    before = mallory.resident_bytes()
    lines = [mallory.line(a) for _ in range(20)]
    for line in lines:
        line.sendall(mallory.greeting("NULL") + mallory.ready())
        assert line.recv(1 << 16)
        announced = mallory.announcement(wire.MAX_NEAR_FRAME_BYTES, is_command=False)
        line.sendall(announced + bytes(1 << 16))
    assert village.hear(a, b, 1)
    lines[0].settimeout(0.2)
    with pytest.raises(TimeoutError):  # it is not cut off
        mallory.is_closed(lines[0])
    assert mallory.resident_bytes() - before < MUCH


@pytest.mark.parametrize("num_blocks", [2, 100])
def test_messages_of_many_frames_are_refused(
    village: Village, mallory: Mallory, num_blocks: int
) -> None:
    a, b = village.pair()
    line = mallory.dial(a, village.pairs[2], village.pairs[0].public)
    frames = [mallory.frame(Kind.HELLO, 2), *[b""] * num_blocks]
    kind, why = mallory.ask(a, line, *frames)
    assert kind is Kind.REFUSED
    assert why == f"{num_blocks + 1} frames for a block of 0 bytes"
    assert village.refused(a) == {(2, f"{why} (from 127.0.0.2)"): 1}
    assert village.hear(a, b, 1)


@pytest.fixture
def many_files() -> None:
    """Room for both ends of the crowd in this process."""
    allow_many_files()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3 * CROWD:
        pytest.skip("this system does not let a process open so many files")


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize(
    ("said", "handshake_s", "why"),
    [
        (b"", 0.5, NO_HANDSHAKE),
        (b"GET / HTTP/1.1\r\nHost: peer\r\n\r\n" * 10, 60.0, BROKEN_OFF),  # all speak in time
    ],
    ids=["silent", "garbage"],
)
def test_a_thousand_strangers_are_shown_out(
    village: Village, mallory: Mallory, said: bytes, handshake_s: float, why: str
) -> None:
    limits = replace(QUICK, handshake_s=handshake_s)
    a, b = (village.make(peer, limits=limits) for peer in (0, 1))
    assert village.open(a, b) == [None, None]
    before = mallory.num_descriptors()
    lines = [mallory.line(a) for _ in range(CROWD)]
    for line in lines:
        line.sendall(said)
    for round_ in range(1, 6):
        assert village.hear(a, b, round_)
        assert village.hear(b, a, round_)
    assert all(mallory.is_closed(line) for line in lines)
    for line in lines:
        line.close()
    assert mallory.num_descriptors() <= before
    assert village.hear(a, b, 6)
    assert village.whys(a, lambda told: sum(told.values()) == CROWD) == {why: CROWD}
    assert len(village.events[a]) <= 20


@pytest.mark.usefixtures("many_files")
def test_peers_come_in_between_strangers(village: Village, mallory: Mallory) -> None:
    a, b = village.pair()
    for _ in range(CROWD):
        mallory.line(a)
    c = village.make(2)
    a.expect([2])
    addresses = {0: a.endpoint, 1: b.endpoint, 2: c.endpoint}
    opening = village.threads.submit(c.open, addresses, [0])
    # Who cannot be sent to yet is not waited for: the way there and the way back are met in turn.
    while not opening.done() or 2 not in a.connected:
        village.read(a)
    opening.result()
    assert village.hear(a, c, 1)
    assert a.collect(Tag(2), [1], 0.0).num_bytes == 0
