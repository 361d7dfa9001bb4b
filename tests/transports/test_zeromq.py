"""Neighbours over sockets that stall, die, come back, leave, or never come."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml import wire
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Payload, Tag
from p2p_dml.wire import Kind

if TYPE_CHECKING:
    from tests.transports.conftest import Peers, Raw

QUICK = Limits(startup_s=10.0, linger_s=0.2)
ANYWHERE = "tcp://127.0.0.1:*"
PATIENT_S = 60.0
"""Longer than a test may take: a test that waits this out has failed."""

pytestmark = pytest.mark.timeout(30)


def number(x: float, size: int = 1) -> Payload:
    return Payload({"x": torch.full((size,), x)})


@pytest.mark.parametrize("bind", [ANYWHERE, "ipc"])
def test_a_killed_neighbour_is_not_waited_for(
    peers: Peers, bind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ipc")
    binds = [ANYWHERE if bind != "ipc" else f"ipc://{folder}/{me}" for me in range(3)]
    a, b, c = (peers.make(me, bind=each) for me, each in enumerate(binds))
    peers.open(a, b, c)
    c.post(Tag(1), {0: number(3.0)})
    peers.kill(b)
    assert list(a.collect(Tag(1), [1, 2], PATIENT_S).on_time) == [2]
    assert peers.changes(a) == [(1, "dead", "connection lost")]
    assert a.post(Tag(2), {1: number(1.0)}) == 0
    assert not a.collect(Tag(2), [1], PATIENT_S).on_time


def test_what_a_killed_neighbour_sent_last_is_still_read(peers: Peers) -> None:
    a, b = peers.pair()
    b.post(Tag(1), {0: number(1.0)})
    assert list(a.collect(Tag(1), [1], PATIENT_S).on_time) == [1]
    b.post(Tag(2), {0: number(2.0)})
    while not a._in.socket.poll(10):  # it has left the sender's memory
        continue
    peers.kill(b)
    assert a.collect(Tag(2), [1], PATIENT_S).on_time[1].tensors["x"].item() == 2.0


def test_a_slow_neighbour_is_waited_for_again(peers: Peers) -> None:
    a, b = peers.pair()
    assert not a.collect(Tag(1), [1], 0.05).on_time
    assert not a.collect(Tag(2), [1], 0.05).on_time
    b.post(Tag(1), {0: number(1.0)})
    b.post(Tag(3), {0: number(3.0)})
    mail = a.collect(Tag(3), [1], PATIENT_S)
    assert list(mail.on_time) == [1]
    assert [m.tag for m in mail.late] == [Tag(1)]
    assert peers.changes(a) == [
        (1, "slow", "nothing within 0.05 s, still connected"),
        (1, "alive", "delivers again"),
    ]


def hear_each_other(a: ZeroMQTransport, b: ZeroMQTransport, round_: int) -> bool:
    a.post(Tag(round_), {b.me: number(round_)})
    b.post(Tag(round_), {a.me: number(round_)})
    heard = [each.collect(Tag(round_), [other.me], 0.05) for each, other in ((a, b), (b, a))]
    return all(mail.on_time for mail in heard)


def test_a_neighbour_comes_back_at_its_address(peers: Peers) -> None:
    a, b = peers.pair()
    peers.kill(b)
    again = peers.make(1, incarnation=2, bind=b.endpoint)
    opening = peers.threads.submit(again.open, {0: a.endpoint, 1: again.endpoint}, [0])
    peers.read_until(a, opening.done)
    opening.result()
    assert any(hear_each_other(a, again, round_) for round_ in range(1, 200))
    assert peers.rejected(a) == []


def test_hello_gets_through_behind_messages_for_an_earlier_incarnation(
    peers: Peers, earlier: Raw, raw: Raw
) -> None:
    a = peers.make(0, limits=replace(QUICK, queue_messages=8))
    first, endpoint = earlier.bound()
    opening = peers.threads.submit(a.open, {0: a.endpoint, 1: endpoint}, [1])
    contact, *_ = first.recv_multipart()
    first.send_multipart([contact, raw.frame(Kind.WELCOME)])
    raw.dealer(a.endpoint).send(raw.frame(Kind.HELLO))
    opening.result()
    while a.post(Tag(1), {1: number(1.0, 1 << 20)}):
        continue
    earlier.close()
    second, _ = raw.bound(endpoint)
    for _ in range(20):  # the connection stands again, and the queue is still full
        peers.read(a)
        second.poll(10)
    while wire.decode_header(second.recv_multipart()[1], 1 << 30).kind is not Kind.HELLO:
        peers.read(a)
        peers.read_until(a, lambda: second.poll(5))


def test_a_later_neighbour_that_nobody_started_counts_as_dead(peers: Peers) -> None:
    a, b = peers.make(0), peers.make(1)
    peers.open(a, b, absent={2: "tcp://127.0.0.1:1"})
    a.expect([2])
    b.post(Tag(1), {0: number(1.0)})
    assert list(a.collect(Tag(1), [1, 2], PATIENT_S).on_time) == [1]
    assert peers.changes(a) == [(2, "dead", "nobody listens at its address")]


def test_a_later_neighbour_that_never_answers_counts_as_dead(peers: Peers, raw: Raw) -> None:
    _, endpoint = raw.bound()
    a, b = peers.make(0), peers.make(1)
    peers.open(a, b, absent={2: endpoint})
    a.post(Tag(1), {2: number(1.0)})
    assert not a.collect(Tag(1), [2], 0.1).on_time
    assert peers.changes(a) == [(2, "dead", "no connection within 0.1 s")]
    assert not a.collect(Tag(2), [2], PATIENT_S).on_time


def test_what_is_posted_before_the_connection_stands_arrives(peers: Peers) -> None:
    a, b = peers.make(0), peers.make(1)
    book = {0: a.endpoint, 1: b.endpoint}
    for each in (a, b):
        each.open(book, [])
    assert a.post(Tag(1), {1: number(1.0)}) == 4
    closing = peers.close(a)
    assert list(b.collect(Tag(1), [0], PATIENT_S).on_time) == [0]
    peers.read_until(b, closing.done)
    closing.result()
    assert peers.changes(b) == [(0, "left", "said goodbye")]


PATIENT = replace(QUICK, linger_s=PATIENT_S)


def test_what_is_posted_right_before_close_arrives(peers: Peers) -> None:
    a, b = peers.pair(PATIENT)
    for round_ in (1, 2, 3):
        b.post(Tag(round_), {0: number(round_, 1 << 18)})
    closing = peers.close(b)
    for round_ in (1, 2, 3):
        mail = a.collect(Tag(round_), [1], PATIENT_S)
        assert mail.on_time[1].tensors["x"][-1].item() == round_
    assert not a.collect(Tag(4), [1], PATIENT_S).on_time
    closing.result()
    assert peers.changes(a) == [(1, "left", "said goodbye")]
    assert a.post(Tag(5), {1: number(5.0)}) == 0


def test_a_full_queue_does_not_block_and_loses_nothing_it_took(peers: Peers) -> None:
    narrow = replace(PATIENT, queue_messages=2)
    a, b = peers.pair(narrow)
    taken = 0
    while b.post(Tag(1 + taken), {0: number(taken, 1 << 18)}):
        taken += 1
    closing = peers.close(b)
    late = a.collect(Tag(1_000_000), [1], PATIENT_S).late
    closing.result()
    assert [m.tag.round for m in late] == list(range(1, 1 + taken))
    assert peers.changes(a) == [(1, "left", "said goodbye")]


def test_neighbours_that_close_together_do_not_wait_for_each_other(peers: Peers) -> None:
    for closing in [peers.close(each) for each in peers.pair(PATIENT)]:
        closing.result()


def test_too_many_messages_ahead_of_time_are_dropped(peers: Peers) -> None:
    a, b = peers.make(0, limits=replace(QUICK, queue_messages=2)), peers.make(1)
    peers.open(a, b)
    for round_ in (5, 6, 7, 8):
        b.post(Tag(round_), {0: number(round_)})
    peers.read_until(a, lambda: peers.rejected(a))
    assert peers.rejected(a) == [(1, "too many messages ahead of time (from 127.0.0.1)")]
    assert list(a.collect(Tag(5), [1], PATIENT_S).on_time) == [1]


@pytest.mark.parametrize(
    ("frame_bytes", "sizes"), [(1 << 20, [1 << 20, 1 << 20, 702_848]), (1 << 26, [2_800_000])]
)
def test_a_block_travels_in_frames_and_arrives_whole(
    peers: Peers, raw: Raw, monkeypatch: pytest.MonkeyPatch, frame_bytes: int, sizes: list[int]
) -> None:
    """Hand numbers: 4 * 700,000 bytes are two frames of 2^20 bytes and one of 702,848."""
    monkeypatch.setattr(wire, "MAX_NEAR_FRAME_BYTES", frame_bytes)
    a = peers.make(0)
    other, endpoint = raw.bound()
    opening = peers.threads.submit(a.open, {0: a.endpoint, 1: endpoint}, [1])
    contact, *_ = other.recv_multipart()
    other.send_multipart([contact, raw.frame(Kind.WELCOME)])
    line = raw.dealer(a.endpoint)
    line.send(raw.frame(Kind.HELLO))
    opening.result()
    sent = Payload({"x": torch.arange(700_000, dtype=torch.float32)})
    assert a.post(Tag(1), {1: sent}) == 2_800_000
    _, header, *block = other.recv_multipart()
    assert [len(frame) for frame in block] == sizes
    fields = replace(wire.decode_header(header, 1 << 30), sender=1, incarnation=7)
    line.send_multipart([wire.encode_header(fields), *block])
    received = a.collect(Tag(1), [1], PATIENT_S).on_time[1].tensors["x"]
    assert torch.equal(received, sent.tensors["x"])


@pytest.mark.parametrize("num_frames", [4, 100])
def test_a_block_in_more_frames_than_it_needs_is_refused(
    peers: Peers, raw: Raw, num_frames: int
) -> None:
    a = peers.make(0)
    parts = [bytes(1 << 16)] * num_frames
    kind, why = raw.ask(a, raw.dealer(a.endpoint), raw.frame(Kind.HELLO), *parts)
    assert kind is Kind.REFUSED
    assert why == f"{num_frames + 1} frames for a block of {num_frames << 16} bytes"


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_over_the_limit_is_refused_and_named(peers: Peers, shared: bool) -> None:
    a = peers.make(0, limits=replace(QUICK, max_message_bytes=1 << 20))
    b = peers.make(1, limits=replace(QUICK, shared_memory=shared))
    peers.open(a, b)
    b.post(Tag(1), {0: number(1.0, 1 << 19)})
    peers.read_until(a, lambda: peers.rejected(a))
    ((sender, why),) = peers.rejected(a)
    told = "block of 2097152 bytes" + " announced" * shared
    assert (sender, why.partition(" (")[0]) == (1, f"{told}, limit 1048576")
    b.post(Tag(2), {0: number(2.0)})
    assert list(a.collect(Tag(2), [1], PATIENT_S).on_time) == [1]
