"""One battery for every transport: what strategies and the peer loop rely on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from p2p_dml.transports.memory import Hub, MemoryTransport
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Payload, PeerId, Tag, Transport
from p2p_dml.wire import DTYPES

Connect = Callable[[int], Sequence[Transport]]

PATIENT_S = 30.0
SHORT_S = 0.05


def in_threads(jobs: Sequence[Callable[[], None]]) -> None:
    """Run all jobs at once; each transport stays within one thread."""
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def connect_memory(num_peers: int) -> list[Transport]:
    hub = Hub()
    return [MemoryTransport(me, hub) for me in range(num_peers)]


def connect_zeromq(
    num_peers: int, bind: Callable[[PeerId], str], *, shared: bool = True
) -> list[Transport]:
    limits = Limits(startup_s=PATIENT_S, shared_memory=shared)
    transports = [
        ZeroMQTransport(me, bind(me), b"r" * 16, me, limits, lambda event: None)
        for me in range(num_peers)
    ]
    book = {each.me: each.endpoint for each in transports}

    def opening(transport: ZeroMQTransport) -> Callable[[], None]:
        return lambda: transport.open(book, book.keys())

    in_threads([opening(each) for each in transports])
    return list(transports)


@pytest.fixture(params=["memory", "tcp", "sockets alone", "ipc"])
def connect(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connect]:
    """Makes connected transports of peers 0, 1, … and closes them after the test."""
    made: list[Transport] = []

    def make(num_peers: int) -> Sequence[Transport]:
        if request.param == "memory":
            made.extend(connect_memory(num_peers))
        elif request.param != "ipc":
            shared = request.param == "tcp"
            made.extend(connect_zeromq(num_peers, lambda me: "tcp://127.0.0.1:*", shared=shared))
        else:
            folder = tmp_path_factory.mktemp("ipc")  # socket paths must be short
            made.extend(connect_zeromq(num_peers, lambda me: f"ipc://{folder}/{me}"))
        return made

    yield make
    in_threads([each.close for each in made])


def bytes_of(size: int) -> Tensor:
    """`size` bytes in which every stretch differs."""
    return (torch.arange(size) % 251).to(torch.uint8)


def raw(x: Tensor) -> Tensor:
    """The bytes of a tensor: NaNs compare too."""
    return x.reshape(-1).view(torch.uint8)


def number(x: float) -> Payload:
    return Payload({"x": torch.tensor([x])})


def value(payload: Payload) -> float:
    return payload.tensors["x"].item()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_arrives_bit_for_bit(connect: Connect, name: str) -> None:
    a, b = connect(2)
    words = bytes_of(21 * 8)
    sent = {
        "matrix": (words % 2).bool()[:21].view(3, 7)
        if name == "bit"
        else words.view(DTYPES[name])[:21].view(3, 7).clone(),
        "single": torch.ones((), dtype=DTYPES[name]),
        "nothing": torch.ones((0, 4), dtype=DTYPES[name]),
    }
    a.post(Tag(1), {1: Payload(sent)})
    received = b.collect(Tag(1), [0], PATIENT_S).on_time[0].tensors
    assert list(received) == list(sent)
    for key, x in sent.items():
        assert (received[key].dtype, received[key].shape) == (x.dtype, x.shape)
        assert torch.equal(raw(received[key]), raw(x))


@pytest.mark.parametrize("size", [0, 1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 4_000_000])
def test_every_size_arrives_and_is_counted(connect: Connect, size: int) -> None:
    a, b = connect(2)
    payload = Payload({"x": bytes_of(size)})
    assert a.post(Tag(1), {1: payload}) == size
    mail = b.collect(Tag(1), [0], PATIENT_S)
    assert torch.equal(mail.on_time[0].tensors["x"], bytes_of(size))
    assert mail.num_bytes == size


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_what_is_sent_may_be_changed_after_post(connect: Connect, size: int) -> None:
    a, b = connect(2)
    x = torch.ones(size)
    for round_ in (1, 2, 3):
        x.fill_(round_)
        a.post(Tag(round_), {1: Payload({"x": x})})
        x.fill_(-1.0)
    for round_ in (1, 2, 3):
        received = b.collect(Tag(round_), [0], PATIENT_S).on_time[0].tensors["x"]
        assert torch.equal(received, torch.full((size,), float(round_)))


def test_what_was_received_stays_when_more_arrives(connect: Connect) -> None:
    a, b = connect(2)
    a.post(Tag(1), {1: Payload({"x": torch.full((1 << 18,), 1.0)})})
    first = b.collect(Tag(1), [0], PATIENT_S).on_time[0].tensors["x"]
    a.post(Tag(2), {1: Payload({"x": torch.full((1 << 18,), 2.0)})})
    b.collect(Tag(2), [0], PATIENT_S)
    assert torch.equal(first, torch.ones(1 << 18))


def test_views_and_gradients_travel_as_plain_values(connect: Connect) -> None:
    a, b = connect(2)
    matrix = torch.arange(12.0).view(3, 4).requires_grad_()
    a.post(Tag(1), {1: Payload({"transposed": matrix.T, "column": matrix[:, 1]})})
    received = b.collect(Tag(1), [0], PATIENT_S).on_time[0].tensors
    assert torch.equal(received["transposed"], matrix.detach().T)
    assert received["column"].tolist() == [1.0, 5.0, 9.0]
    assert not received["column"].requires_grad


def test_scalars_travel(connect: Connect) -> None:
    a, b = connect(2)
    scalars = {"weight": 0.1, "loss": math.inf, "tiny": 5e-324, "whole": 3.0}
    a.post(Tag(1), {1: Payload({}, scalars)})
    payload = b.collect(Tag(1), [0], PATIENT_S).on_time[0]
    assert (dict(payload.tensors), dict(payload.scalars)) == ({}, scalars)


def test_receivers_may_get_different_payloads(connect: Connect) -> None:
    a, b, c, d = connect(4)
    shared = number(5.0)
    assert a.post(Tag(1), {1: number(1.0), 2: shared, 3: shared}) == 3 * 4
    got = [value(peer.collect(Tag(1), [0], PATIENT_S).on_time[0]) for peer in (b, c, d)]
    assert got == [1.0, 5.0, 5.0]


def test_bytes_are_those_of_the_block(connect: Connect) -> None:
    """Hand number: 12 bytes, then at the next multiple of 64 nine bits in two bytes."""
    a, b = connect(2)
    payload = Payload({"x": torch.zeros(3), "mask": torch.ones(9, dtype=torch.bool)})
    assert a.post(Tag(1), {1: payload}) == 66
    assert b.collect(Tag(1), [0], PATIENT_S).num_bytes == 66


def test_posting_to_nobody_sends_nothing(connect: Connect) -> None:
    a, b = connect(2)
    assert a.post(Tag(1), {}) == 0
    mail = b.collect(Tag(1), [], PATIENT_S)
    assert (dict(mail.on_time), list(mail.late), mail.num_bytes) == ({}, [], 0)


def test_everybody_hears_everybody_in_ascending_order(connect: Connect) -> None:
    peers = connect(4)
    everybody = range(4)
    for tag in (Tag(1, 0), Tag(1, 1), Tag(1, 2), Tag(2, 0)):
        for me in reversed(everybody):
            others = [j for j in everybody if j != me]
            code = 100 * tag.round + 10 * tag.exchange + me
            peers[me].post(tag, dict.fromkeys(others, number(code)))
        for me, peer in enumerate(peers):
            others = [j for j in everybody if j != me]
            on_time = peer.collect(tag, others[::-1], PATIENT_S).on_time
            assert list(on_time) == others
            assert [value(p) for p in on_time.values()] == [
                100 * tag.round + 10 * tag.exchange + j for j in others
            ]


def test_who_sends_nothing_is_not_in_the_mail(connect: Connect) -> None:
    a, _, c = connect(3)
    a.post(Tag(1), {2: number(1.0)})
    assert list(c.collect(Tag(1), [0, 1], SHORT_S).on_time) == [0]


def test_only_the_senders_asked_for_are_on_time(connect: Connect) -> None:
    a, b, c = connect(3)
    for peer in (a, b):
        peer.post(Tag(1), {2: number(1.0)})
    assert list(c.collect(Tag(1), [1], PATIENT_S).on_time) == [1]


def test_late_messages_arrive_as_late(connect: Connect) -> None:
    a, b, c = connect(3)
    a.post(Tag(1), {2: number(1.0)})
    assert list(c.collect(Tag(1), [0, 1], SHORT_S).on_time) == [0]
    b.post(Tag(1), {2: number(2.0)})
    b.post(Tag(1, 1), {2: number(3.0)})
    b.post(Tag(2), {2: number(4.0)})
    mail = c.collect(Tag(2), [1], PATIENT_S)
    assert value(mail.on_time[1]) == 4.0
    late = [(m.sender, m.tag, value(m.payload)) for m in mail.late]
    assert late == [(1, Tag(1), 2.0), (1, Tag(1, 1), 3.0)]
    assert mail.num_bytes == 3 * 4


def test_late_messages_are_told_once(connect: Connect) -> None:
    a, b = connect(2)
    for round_ in (1, 2, 3):
        a.post(Tag(round_), {1: number(round_)})
    assert len(b.collect(Tag(2), [0], PATIENT_S).late) == 1
    assert not b.collect(Tag(3), [0], PATIENT_S).late


def test_messages_ahead_of_time_wait_for_their_tag(connect: Connect) -> None:
    a, b = connect(2)
    tags = [Tag(1), Tag(1, 1), Tag(2)]
    sent = sum(a.post(tag, {1: number(tag.round + tag.exchange / 10)}) for tag in tags)
    received = 0
    for tag in tags:
        mail = b.collect(tag, [0], PATIENT_S)
        assert value(mail.on_time[0]) == torch.tensor(tag.round + tag.exchange / 10).item()
        assert not mail.late
        received += mail.num_bytes
    assert received == sent == 12


def test_an_exchange_can_be_collected_when_the_next_is_posted(connect: Connect) -> None:
    """As with overlap: what is collected is one round old, always, and nothing is late."""
    peers = connect(3)
    for round_ in range(1, 7):
        for me, peer in enumerate(peers):
            others = [j for j in range(3) if j != me]
            peer.post(Tag(round_), dict.fromkeys(others, number(10 * round_ + me)))
        for me, peer in enumerate(peers):
            others = [j for j in range(3) if j != me and round_ > 1]
            mail = peer.collect(Tag(round_ - 1), others, PATIENT_S)
            found = {j: value(payload) for j, payload in mail.on_time.items()}
            assert found == {j: 10 * (round_ - 1) + j for j in others}
            assert not mail.late


def test_a_tensor_that_cannot_travel_is_an_error_of_the_sender(connect: Connect) -> None:
    a, _ = connect(2)
    with pytest.raises(TypeError, match=r"tensor 'z': torch\.complex64 cannot be sent"):
        a.post(Tag(1), {1: Payload({"z": torch.zeros(2, dtype=torch.complex64)})})


def test_neighbours_may_be_announced_again(connect: Connect) -> None:
    a, b = connect(2)
    a.expect([1])
    a.expect([0, 1])
    a.post(Tag(1), {1: number(1.0)})
    assert list(b.collect(Tag(1), [0], PATIENT_S).on_time) == [0]


def test_closing_twice_is_closing_once(connect: Connect) -> None:
    transports = connect(2)
    in_threads([each.close for each in transports])
    in_threads([each.close for each in transports])
    assert all(each.elastic for each in transports)
