"""Only the holders of listed keys get in, each as the peer that it is, and nobody reads along."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import zmq

from p2p_dml.errors import StartupError
from p2p_dml.keys import new_pair
from p2p_dml.transports._zap import NO_HANDSHAKE, NOT_LISTED, WRONG_HANDSHAKE
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Payload, Tag
from p2p_dml.wire import Kind

if TYPE_CHECKING:
    from tests.security.conftest import Mallory, Tap, Village

pytestmark = pytest.mark.timeout(30)

IMPATIENT = Limits(startup_s=0.7, linger_s=0.2, handshake_s=0.5)


def test_peers_with_their_keys_hear_each_other(village: Village) -> None:
    a, b = village.pair()
    assert village.hear(a, b, 1)
    assert village.hear(b, a, 1)
    assert not village.refused(a)


@pytest.mark.parametrize("is_open", [True, False])
def test_nobody_reads_along(
    village: Village, tap: Callable[[ZeroMQTransport], Tap], is_open: bool
) -> None:
    """Over a line without keys the same tap hears the payload."""
    a, b = village.make(0, is_open=is_open), village.make(1, is_open=is_open)
    line = tap(a)
    assert village.open(a, b, via={0: line.address}) == [None, None]
    secret = village.number(1.0, 100)
    b.post(Tag(1), {0: Payload({"weights-of-a-layer": secret.tensors["x"]})})
    assert a.collect(Tag(1), [1], 20.0).on_time
    told = [each in line.heard for each in (b"weights-of-a-layer", b"\x00\x00\x80\x3f" * 100)]
    assert told == [is_open, is_open]


def test_without_a_key_nobody_gets_in(village: Village, mallory: Mallory) -> None:
    a, b = village.pair()
    line = mallory.dial(a)
    line.send(mallory.frame(Kind.HELLO, 2))
    ((why, times),) = village.whys(a, lambda told: told).items()
    assert (why in (NO_HANDSHAKE, WRONG_HANDSHAKE), times) == (True, 1)  # which end is quicker
    assert not line.poll(0)
    b.close()


def test_a_key_that_is_not_listed_does_not_open(village: Village, mallory: Mallory) -> None:
    a, b = village.pair()
    line = mallory.dial(a, new_pair(), village.pairs[0].public)
    line.send(mallory.frame(Kind.HELLO, 2))
    while not a._refusals.reasons():
        village.read(a)
    assert village.hear(a, b, 1)
    assert not line.poll(0)
    assert village.tell(a, lambda told: told) == {f"127.0.0.2 {NOT_LISTED}": 1}
    assert village.refused(a) == {(None, f"127.0.0.2 {NOT_LISTED}"): 1}


def test_a_handshake_for_another_key_fails(village: Village, mallory: Mallory) -> None:
    a, _ = village.pair()
    mallory.dial(a, village.pairs[2], village.pairs[1].public).send(b"")
    assert village.whys(a, lambda told: told) == {WRONG_HANDSHAKE: 1}


def test_attempts_are_counted(village: Village, mallory: Mallory) -> None:
    a, _ = village.pair()
    for _ in range(5):
        mallory.dial(a, new_pair(), village.pairs[0].public)
    told = village.tell(a, lambda told: sum(told.values()) == 5)
    assert told == {f"127.0.0.2 {NOT_LISTED}": 5}
    assert len([e for e in village.events[a] if type(e).__name__ == "Rejected"]) <= 2


def test_a_listed_key_is_no_other_peer(village: Village, mallory: Mallory) -> None:
    a, b = village.pair()
    line = mallory.dial(a, village.pairs[2], village.pairs[0].public)
    kind, why = mallory.ask(a, line, mallory.frame(Kind.HELLO, 1))
    assert (kind, why) == (Kind.REFUSED, "claims to be peer 1, with the key of peer 2")
    assert village.refused(a) == {(2, f"{why} (from 127.0.0.2)"): 1}
    assert village.hear(a, b, 1)


def test_nor_after_an_honest_hello(village: Village, mallory: Mallory) -> None:
    a, b = village.pair()
    line = mallory.dial(a, village.pairs[2], village.pairs[0].public)
    assert mallory.ask(a, line, mallory.frame(Kind.HELLO, 2))[0] is Kind.WELCOME
    line.send(mallory.frame(Kind.ROUND, 1))
    while not a._refusals.reasons():
        village.read(a)
    assert village.hear(a, b, 1)
    why = "claims to be peer 1, with the key of peer 2 (from 127.0.0.2)"
    assert village.refused(a) == {(2, why): 1}


def test_nor_over_the_name_of_a_connection_that_was_another_peers(
    village: Village, mallory: Mallory
) -> None:
    """libzmq lets a caller choose the name by which replies find it; a name is no proof."""
    a, _ = village.pair()
    three = mallory.dial(a, village.pairs[3], village.pairs[0].public, b"taken")
    assert mallory.ask(a, three, mallory.frame(Kind.HELLO, 3))[0] is Kind.WELCOME
    three.close()
    while True:  # until libzmq has let go of the name
        line = mallory.dial(a, village.pairs[2], village.pairs[0].public, b"taken")
        line.send(mallory.frame(Kind.ROUND, 3))
        for _ in range(200):
            village.read(a)
            if a._refusals.reasons():
                break
            line.poll(5)
        else:
            line.close()
            continue
        break
    ((_, why),) = village.refused(a)
    assert why == "claims to be peer 3, with the key of peer 2 (from 127.0.0.2)"
    assert not a.collect(Tag(1), [3], 0.0).on_time


def test_a_foreign_run_is_named_even_with_a_listed_key(village: Village, mallory: Mallory) -> None:
    a, _ = village.pair()
    line = mallory.dial(a, village.pairs[2], village.pairs[0].public)
    kind, why = mallory.ask(a, line, mallory.frame(Kind.HELLO, 2, digest=b"o" * 16))
    assert kind is Kind.REFUSED
    assert "peer 2 is of another run" in why
    assert village.refused(a) == {(2, f"{why} (from 127.0.0.2)"): 1}


def test_who_answers_in_a_peers_place_learns_nothing(village: Village, mallory: Mallory) -> None:
    """Somebody who took the address of peer 1, and has a key of his own."""
    impostor = new_pair()
    trap = mallory.trap(impostor)
    a = village.make(0, limits=IMPATIENT)
    address = trap.get_string(zmq.LAST_ENDPOINT)
    (error,) = village.open(a, via={1: address}, awaited=[1])
    assert isinstance(error, StartupError)
    assert "Peers [1] ended the handshake: are both keys of this run?" in str(error)
    assert not trap.poll(0)


def test_a_gate_that_nobody_keeps_stays_shut(village: Village) -> None:
    a, b = village.make(0, limits=IMPATIENT), village.make(1, limits=IMPATIENT)
    assert a._in._gate is not None
    a._in._gate.close()
    (first, second) = village.open(a, b)
    assert isinstance(first, StartupError)
    assert isinstance(second, StartupError)


def test_only_its_holder_moves_a_peer_to_another_address(
    village: Village, mallory: Mallory
) -> None:
    a, b = village.pair()
    before = a._hands.book[1]
    b._destroy()
    a.collect(Tag(1), [1], 20.0)
    two = mallory.dial(a, village.pairs[2], village.pairs[0].public)
    hello = mallory.frame(Kind.HELLO, 1, incarnation=9, note="tcp://127.0.0.1:1")
    assert mallory.ask(a, two, hello)[0] is Kind.REFUSED
    assert a._hands.book[1] == before
    one = mallory.dial(a, village.pairs[1], village.pairs[0].public)
    assert mallory.ask(a, one, hello)[0] is Kind.WELCOME
    assert a._hands.book[1] == "tcp://127.0.0.1:1"
