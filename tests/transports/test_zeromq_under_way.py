"""Coming into a run that is under way: outside first, then from a round that all know of."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
import torch

from p2p_dml.errors import StartupError
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Payload, Tag

if TYPE_CHECKING:
    from tests.transports.conftest import Peers

QUICK = Limits(startup_s=0.1, linger_s=0.2)
PATIENT_S = 60.0
"""Longer than a test may take: a test that waits this out has failed."""

pytestmark = pytest.mark.timeout(30)

NOW = Tag(5)


def number(x: float) -> Payload:
    return Payload({"x": torch.full((1,), x)})


def read_at(transport: ZeroMQTransport, tag: Tag, future: Future[Any]) -> None:
    """Let `transport`, in the exchange `tag`, take in what comes until `future` is done."""
    while not future.done():
        transport.collect(tag, [], 0.01)


def back(peers: Peers, a: ZeroMQTransport, b: ZeroMQTransport) -> ZeroMQTransport:
    """Peer 1 once more, after a SIGKILL, while peer 0 is in round 5."""
    peers.kill(b)
    again = peers.make(1)
    book = {0: a.endpoint, 1: again.endpoint}
    opening = peers.threads.submit(again.open, book, [0])
    read_at(a, NOW, opening)
    opening.result()
    return again


def test_who_comes_back_is_outside_and_knows_the_round(peers: Peers) -> None:
    a, b = peers.pair()
    again = back(peers, a, b)
    assert again.is_outside
    assert again.newest_round == 5


def test_what_waits_for_a_connection_goes_out_as_it_was_posted(peers: Peers) -> None:
    """Small payloads too, which libzmq copies when they are sent."""
    a, b = peers.make(0), peers.make(1)
    book = {0: a.endpoint, 1: b.endpoint}
    for each in (a, b):
        each.open(book, [])  # neighbours of later rounds only
    for round_ in (1, 2, 3):
        a.post(Tag(round_), {1: number(round_)})
    for round_ in (1, 2, 3):
        while not (mail := b.collect(Tag(round_), [0], 0.0)).on_time:
            a.collect(Tag(3), [], 0.01)
        assert mail.on_time[0].tensors["x"].tolist() == [round_]


def test_at_the_beginning_nobody_is_outside(peers: Peers) -> None:
    a, b = peers.pair()
    assert not a.is_outside
    assert not b.is_outside


def test_nobody_waits_for_who_is_outside(peers: Peers) -> None:
    a, b = peers.pair()
    back(peers, a, b)
    assert not a.collect(NOW, [1], PATIENT_S).on_time  # returns at once, or the test times out


def test_messages_that_come_meanwhile_tell_the_round_and_no_more(peers: Peers) -> None:
    a, b = peers.pair()
    again = back(peers, a, b)

    def has_told() -> bool:
        a.collect(NOW, [], 0.01)
        a.post(Tag(8), {1: number(8)})
        return again.newest_round == 8

    peers.read_until(again, has_told)
    assert not again.collect(Tag(8), [0], 0.0).on_time


def test_inside_it_is_awaited_from_its_round_on(peers: Peers) -> None:
    a, b = peers.pair()
    again = back(peers, a, b)
    again.come_inside(7)
    assert not again.is_outside
    while not a._liveness.is_connected(1):
        again.collect(Tag(7), [], 0.01)
        a.collect(NOW, [], 0.01)
    assert not a.collect(Tag(6), [1], PATIENT_S).on_time  # at once, as nothing of 6 is to come
    waiting = peers.threads.submit(a.collect, Tag(7), [1], PATIENT_S)
    again.post(Tag(7), {0: number(7)})
    assert waiting.result().on_time[1].tensors["x"].item() == 7


def test_it_does_not_wait_for_what_was_sent_before_it_came(peers: Peers) -> None:
    """Peer 0 has sent round 7 to nobody; its hello says so."""
    a, b = peers.pair()
    peers.kill(b)
    a.post(Tag(7), {1: number(7)})
    again = peers.make(1)
    opening = peers.threads.submit(again.open, {0: a.endpoint, 1: again.endpoint}, [0])
    read_at(a, Tag(7), opening)
    again.come_inside(7)
    waiting = peers.threads.submit(again.collect, Tag(7), [0], PATIENT_S)
    read_at(a, Tag(7), waiting)
    assert not waiting.result().on_time
    a.post(Tag(8), {1: number(8)})
    assert list(again.collect(Tag(8), [0], PATIENT_S).on_time) == [0]


def test_of_a_run_under_way_the_lost_are_not_waited_for(peers: Peers) -> None:
    """Peer 2 is gone for good; peer 1 comes in all the same."""
    a, b, c = peers.make(0), peers.make(1), peers.make(2)
    peers.open(a, b, c)
    gone = c.endpoint
    peers.kill(b)
    peers.kill(c)
    again = peers.make(1)
    book = {0: a.endpoint, 1: again.endpoint, 2: gone}
    opening = peers.threads.submit(again.open, book, [0, 2])
    read_at(a, NOW, opening)
    opening.result()
    assert again.is_outside


def test_even_if_it_is_under_way_somebody_must_be_there(peers: Peers) -> None:
    alone = peers.make(1, limits=QUICK)
    with pytest.raises(StartupError, match=r"no hello within 0\.1 s from peer 0"):
        alone.open({0: "ipc:///nowhere", 1: alone.endpoint}, [0], is_under_way=True)


MODEL = Payload({"model": torch.arange(3)})


def test_a_neighbour_gives_its_model_when_it_is_ready(peers: Peers) -> None:
    a, b = peers.pair()
    again = back(peers, a, b)
    assert again.connected == [0]
    asking = peers.threads.submit(again.ask_for_model, 0, PATIENT_S)
    while not a.asking:
        a.collect(NOW, [], 0.01)
    a.give_model(MODEL, a.asking)
    assert not a.asking
    read_at(a, NOW, asking)  # the line to who asked may not be open yet
    given = asking.result()
    assert given is not None
    assert given.tensors["model"].tolist() == [0, 1, 2]


def lose(peers: Peers, a: ZeroMQTransport, b: ZeroMQTransport) -> None:
    """Kill peer 1 and let peer 0 notice that the connection broke, and no more."""
    peers.kill(b)
    while a._liveness.is_connected(1):
        a.collect(NOW, [], 0.0)
    assert a._liveness.state(1) == "alive"


def test_a_model_is_given_over_a_connection_that_stands(peers: Peers) -> None:
    """On a new one nothing is read that comes before the hello."""
    a, b = peers.pair()
    lose(peers, a, b)
    a.give_model(MODEL, {1})
    again = peers.make(1)
    again._newcomers._given[0] = None  # as if it had asked
    opening = peers.threads.submit(again.open, {0: a.endpoint, 1: again.endpoint}, [0])
    read_at(a, NOW, opening)
    opening.result()
    while not again._newcomers.has_given(0):
        a.collect(NOW, [], 0.01)
        peers.read(again)


def test_over_a_broken_connection_nothing_is_sent(peers: Peers) -> None:
    a, b = peers.pair()
    assert a.post(NOW, {1: number(5)}) > 0
    lose(peers, a, b)
    assert a.post(Tag(6), {1: number(6)}) == 0


def test_nobody_gives_a_model_unasked(peers: Peers) -> None:
    a, b = peers.pair()
    again = back(peers, a, b)
    a._newcomers.on_ask(1)
    a.give_model(MODEL, {1})
    peers.read(again)
    assert not again._newcomers._given


def test_who_does_not_give_is_not_waited_for_longer_than_asked(peers: Peers) -> None:
    a, b = peers.pair()
    again = back(peers, a, b)
    assert again.ask_for_model(0, 0.05) is None


def test_who_is_lost_gives_nothing_and_is_not_waited_for(peers: Peers) -> None:
    a, b = peers.pair()
    again = back(peers, a, b)
    peers.kill(a)
    assert again.ask_for_model(0, PATIENT_S) is None


def test_who_has_left_and_comes_again_is_sent_to_as_soon_as_it_is_greeted(peers: Peers) -> None:
    """Peer 0's hello says that nothing of round 5 comes: that of round 6 must, then."""
    a, b = peers.pair()
    leaving = peers.close(b)
    read_at(a, NOW, leaving)
    again = peers.make(1)
    opening = peers.threads.submit(again.open, {0: a.endpoint, 1: again.endpoint}, [0])
    read_at(a, NOW, opening)
    while 1 not in a._hands._greeted:  # peer 1 reads nothing meanwhile, and cannot answer
        a.collect(NOW, [], 0.01)
    a.post(Tag(6), {1: number(6)})
    again.come_inside(6)
    assert list(again.collect(Tag(6), [0], PATIENT_S).on_time) == [0]
