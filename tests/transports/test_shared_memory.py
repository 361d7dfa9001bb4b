"""Transports whose peers share memory, or cannot."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from p2p_dml import wire
from p2p_dml.errors import StartupError
from p2p_dml.events import NotShared
from p2p_dml.transports import _plane
from p2p_dml.transports._board import SLOTS
from p2p_dml.transports._snapshots import ZERO_COPY_FROM
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Payload, PeerId, Tag
from tests.transports.mappings import num_mappings

if TYPE_CHECKING:
    from tests.transports.conftest import Peers, Raw

RUN = b"r" * 16
QUICK = Limits(startup_s=10.0, linger_s=0.2)
PATIENT_S = 60.0
SIZE = ZERO_COPY_FROM


def large(x: float) -> Payload:
    return Payload({"x": torch.full((SIZE,), float(x))})


def value(payload: Payload) -> float:
    """The number that a `large` payload is full of."""
    (x,) = torch.unique(payload.tensors["x"]).tolist()
    return float(x)


def shares(transport: ZeroMQTransport, peer: PeerId) -> bool:
    return transport._plane.link(peer) is not None


def test_neighbours_on_one_machine_share_memory(peers: Peers) -> None:
    a, b = peers.pair()
    held = []
    for round_ in range(1, 2 * SLOTS):
        assert b.post(Tag(round_), {0: large(round_)}) == 4 * SIZE
        mail = a.collect(Tag(round_), [1], PATIENT_S)
        assert mail.num_bytes == 4 * SIZE
        held.append(mail.on_time[1])
    assert shares(b, 0)
    assert [value(payload) for payload in held] == [*range(1, 2 * SLOTS)]
    assert peers.rejected(a) == []


def test_one_payload_goes_to_those_who_share_memory_and_to_others(peers: Peers) -> None:
    a, b = peers.make(0), peers.make(1)
    c = peers.make(2, limits=replace(QUICK, shared_memory=False))
    peers.open(a, b, c)
    for round_ in range(1, 6):
        payload = large(round_)
        b.post(Tag(round_), {0: payload, 2: payload})
        for each in (a, c):
            assert value(each.collect(Tag(round_), [1], PATIENT_S).on_time[1]) == round_
    assert (shares(b, 0), shares(b, 2)) == (True, False)
    assert not any(isinstance(e, NotShared) for each in (a, b, c) for e in peers.events[each])


def test_a_neighbour_killed_while_it_reads_keeps_what_it_reads(peers: Peers) -> None:
    a, b = peers.pair()
    b.post(Tag(1), {0: large(1)})
    held = a.collect(Tag(1), [1], PATIENT_S).on_time[1]
    peers.kill(a)
    b.collect(Tag(1), [0], PATIENT_S)  # until it knows
    a2 = peers.make(0, incarnation=2, bind=a.endpoint)
    opening = peers.threads.submit(a2.open, {0: a2.endpoint, 1: b.endpoint}, [1])
    peers.read_until(b, opening.done)
    opening.result()
    a2.come_inside(2)
    while not shares(b, 0):
        peers.read(a2)
        peers.read(b)
    for round_ in range(2, 8):
        b.post(Tag(round_), {0: large(round_)})
        assert value(a2.collect(Tag(round_), [1], PATIENT_S).on_time[1]) == round_
    assert value(held) == 1


def test_what_a_killed_neighbour_lent_stays_readable(peers: Peers) -> None:
    a, b = peers.pair()
    b.post(Tag(1), {0: large(1)})
    held = a.collect(Tag(1), [1], PATIENT_S).on_time[1]
    peers.kill(b)
    del b
    gc.collect()
    assert value(held) == 1


def test_a_receiver_that_reads_nothing_is_not_lent_more_and_more(peers: Peers) -> None:
    _, b = peers.pair()
    before = num_mappings()
    sent = [b.post(Tag(round_), {0: large(round_)}) for round_ in range(1, 4 * SLOTS)]
    assert 0 < sum(sent) <= 8 * 4 * SIZE
    assert num_mappings() <= before + 9


def test_where_memory_cannot_be_read_messages_go_by_socket(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*place: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(_plane, "MappedSegment", refuse)
    a, b = peers.pair()
    b.post(Tag(1), {0: large(1)})
    assert value(a.collect(Tag(1), [1], PATIENT_S).on_time[1]) == 1
    assert not shares(b, 0)
    told = [e for e in peers.events[a] if isinstance(e, NotShared)]
    assert told == [NotShared(1, "its memory cannot be read: Operation not permitted")]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_lent(peers: Peers, wrong: float) -> None:
    a, b = peers.pair()
    for round_, x in enumerate((1.0, wrong, 2.0), start=1):
        b.post(Tag(round_), {0: large(x)})
    mails = [a.collect(Tag(round_), [1], PATIENT_S) for round_ in (1, 2, 3)]
    assert [mail.on_time[1].is_finite for mail in mails] == [True, False, True]


SENSELESS = [torch.tensor([1, 2, 3, -4]), torch.zeros(4, dtype=torch.bfloat16), torch.zeros(0)]


@pytest.mark.parametrize("place", SENSELESS, ids=["negative", "bfloat16", "nothing"])
def test_a_hello_with_a_senseless_place_is_refused(peers: Peers, raw: Raw, place: Tensor) -> None:
    a = peers.make(0)
    tensors = {"memory": place}
    slots = wire.slots_of(tensors)
    header = wire.Header(wire.Kind.HELLO, RUN, 1, 7, Tag(0), slots=slots)
    frames = wire.encode_header(header), wire.encode_block(tensors, slots)
    kind, why = raw.ask(a, raw.dealer(a.endpoint), *frames)
    assert kind is wire.Kind.REFUSED
    assert "four natural numbers" in why


@pytest.mark.parametrize("place", SENSELESS, ids=["negative", "bfloat16", "nothing"])
def test_an_answer_with_a_senseless_place_is_one_of_no_peer(
    peers: Peers, raw: Raw, place: Tensor
) -> None:
    a, (line, endpoint) = peers.make(0), raw.bound()
    opening = peers.threads.submit(a.open, {0: a.endpoint, 1: endpoint}, [1])
    contact, *_ = line.recv_multipart()
    tensors = {"memory": place}
    slots = wire.slots_of(tensors)
    header = wire.Header(wire.Kind.WELCOME, RUN, 1, 7, Tag(0), slots=slots)
    line.send_multipart([contact, wire.encode_header(header), wire.encode_block(tensors, slots)])
    with pytest.raises(StartupError, match=r"peer 1 at .* expected four natural numbers"):
        opening.result()
