"""Asynchronous rounds over sockets: nobody is waited for, and the newest message wins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.mailbox import EveryMailbox, NewestMailbox
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Mail, Payload, Tag

if TYPE_CHECKING:
    from tests.transports.conftest import Peers

LARGE = 1 << 18
NARROW = Limits(startup_s=10.0, linger_s=10.0, queue_messages=2, resend=1)
PATIENT_S = 60.0
"""Longer than a test may take: a test that waits this out has failed."""

pytestmark = pytest.mark.timeout(30)


def number(x: float, size: int = 1) -> Payload:
    return Payload({"x": torch.full((size,), x)})


def heard(mail: Mail) -> dict[int, float]:
    return {j: payload.tensors["x"][0].item() for j, payload in mail.on_time.items()}


def free_pair(
    peers: Peers, limits: Limits = NARROW, max_age: int = 1000
) -> tuple[ZeroMQTransport, ZeroMQTransport]:
    a = peers.make(0, limits=limits, mailbox=NewestMailbox(max_age))
    b = peers.make(1, limits=limits, mailbox=NewestMailbox(max_age))
    peers.open(a, b)
    return a, b


def test_a_connected_neighbour_is_not_waited_for_and_not_called_slow(peers: Peers) -> None:
    a, _ = free_pair(peers)
    mail = a.collect(Tag(1), [1], PATIENT_S)
    assert (heard(mail), mail.silent) == ({}, 1)
    assert peers.changes(a) == []


def test_a_killed_neighbour_is_no_longer_expected(peers: Peers) -> None:
    a, b = free_pair(peers, max_age=0)
    peers.kill(b)
    tag = 1
    while a.collect(Tag(tag), [1], PATIENT_S).silent:
        tag += 1
    peers.read_until(a, lambda: a.collect(Tag(tag), [1], 0.0) and peers.changes(a))
    assert peers.changes(a) == [(1, "dead", "connection lost")]


def test_the_newest_of_many_is_used_and_used_again(peers: Peers) -> None:
    a, b = free_pair(peers, replace(NARROW, queue_messages=100))
    for round_ in (1, 2, 3):
        b.post(Tag(round_), {0: number(float(round_))})
    round_ = 1
    while heard(mail := a.collect(Tag(round_), [1], PATIENT_S)) != {1: 3.0}:
        round_ += 1
    assert mail.ages == {1: 0}
    again = a.collect(Tag(round_ + 2), [1], PATIENT_S)
    assert (heard(again), dict(again.ages)) == ({1: 3.0}, {1: 2})
    assert peers.rejected(a) == []


def test_the_newest_reaches_a_receiver_whose_queue_was_full(peers: Peers) -> None:
    """The queue holds old messages when the last is posted; what is dropped is older than it."""
    a, b = free_pair(peers)
    num_rounds = 40
    for round_ in range(1, num_rounds + 1):
        assert b.post(Tag(round_), {0: number(float(round_), LARGE)}) == 4 * LARGE
    num_bytes, round_ = 0, 0
    newest = 0.0
    while newest < num_rounds:
        round_ += 1
        b.collect(Tag(num_rounds), [0], 0.0)  # in which what was kept is sent
        mail = a.collect(Tag(round_), [1], 0.0)
        num_bytes += mail.num_bytes
        before, newest = newest, heard(mail).get(1, newest)
        assert newest >= before
    assert num_bytes < num_rounds * 4 * LARGE
    assert peers.rejected(a) == []


def test_the_last_model_before_goodbye_arrives_and_stays(peers: Peers) -> None:
    a, b = free_pair(peers, max_age=0)
    for round_ in range(1, 21):
        b.post(Tag(round_), {0: number(float(round_), LARGE)})
    closing = peers.close(b)
    round_ = 1
    while not peers.changes(a):
        round_ += 1
        a.collect(Tag(round_), [1], 0.0)
    closing.result()
    assert peers.changes(a) == [(1, "left", "said goodbye")]
    far = a.collect(Tag(round_ + 50), [1], 0.0)
    assert (heard(far), dict(far.ages), far.silent) == ({1: 20.0}, {1: 0}, 0)


def test_every_message_arrives_once_where_all_count(peers: Peers) -> None:
    limits = replace(NARROW, queue_messages=8, resend=8)
    a = peers.make(0, limits=limits, mailbox=EveryMailbox())
    b = peers.make(1, limits=limits, mailbox=EveryMailbox())
    peers.open(a, b)
    for round_ in range(1, 9):
        b.post(Tag(round_), {0: number(float(round_), LARGE)})
    found: list[int] = []
    while len(found) < 8:
        b.collect(Tag(8), [0], 0.0)
        mail = a.collect(Tag(1), [1], 0.0)
        found += [m.tag.round for m in mail.late] + [int(x) for x in heard(mail).values()]
    assert found == list(range(1, 9))
