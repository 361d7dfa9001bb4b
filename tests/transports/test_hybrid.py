"""Two planes in one transport: which link takes which, and what becomes of the mail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch

from p2p_dml.transports.hybrid import HybridTransport
from p2p_dml.transports.memory import Hub, MemoryTransport
from p2p_dml.types import Coded, Mail, Payload, PeerId, Sent, Tag, Transport, outbox_of

PEERS = range(4)
HOSTS = (range(2), range(2, 4))


def number(x: float) -> Payload:
    return Payload({"x": torch.tensor([float(x)])})


class Plane:
    """A transport that writes down what it was asked."""

    elastic = True

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.receivers: list[PeerId] = []
        self.expected: set[PeerId] = set()
        self.senders: list[PeerId] = []
        self.deadline_s = 0.0
        self.is_closed = False

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        self.expected |= set(neighbours)

    def post(self, tag: Tag, sent: Sent) -> int:
        self.receivers += outbox_of(sent)
        return self._transport.post(tag, sent)

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        self.senders += senders
        self.deadline_s = deadline_s
        return self._transport.collect(tag, senders, deadline_s)

    def close(self) -> None:
        self.is_closed = True


class Host:
    """One peer on one of two hosts."""

    def __init__(self, me: PeerId, near: Hub, far: Hub, here: range) -> None:
        self.near = Plane(MemoryTransport(me, near))
        self.far = Plane(MemoryTransport(me, far))
        self.transport = HybridTransport(self.near, self.far, here)


@pytest.fixture
def hosts() -> list[Host]:
    """Peers 0 and 1 on one host, 2 and 3 on the other."""
    hubs, far = [Hub() for _ in HOSTS], Hub()
    return [Host(me, hubs[me // 2], far, HOSTS[me // 2]) for me in PEERS]


@pytest.mark.parametrize("is_coded", [False, True])
def test_every_link_takes_its_plane_and_all_mail_is_in_order(
    hosts: list[Host], is_coded: bool
) -> None:
    for me, host in enumerate(hosts):
        outbox = {j: number(10 * me + j) for j in PEERS if j != me}
        sent: Sent = Coded(outbox, lambda sender, payload: payload) if is_coded else outbox
        assert host.transport.post(Tag(1), sent) == 3 * 4
    for me, host in enumerate(hosts):
        others = [j for j in PEERS if j != me]
        mail = host.transport.collect(Tag(1), others, 5.0)
        received = {j: payload.tensors["x"].item() for j, payload in mail.on_time.items()}
        assert list(received.items()) == [(j, 10 * j + me) for j in others]
        assert (mail.num_bytes, mail.silent, mail.late) == (3 * 4, 0, [])
        here = HOSTS[me // 2]
        assert host.near.receivers == host.near.senders == [j for j in others if j in here]
        assert host.far.receivers == host.far.senders == [j for j in others if j not in here]
        assert (host.near.deadline_s, host.far.deadline_s) == (10.0, 5.0)


def test_mail_that_is_late_or_does_not_come(hosts: list[Host]) -> None:
    a, _, c, _ = hosts
    c.transport.post(Tag(1), {0: number(1.0)})
    mail = a.transport.collect(Tag(2), [1, 2], 0.0)
    assert (mail.on_time, mail.silent) == ({}, 2)
    assert [(message.sender, message.tag) for message in mail.late] == [(2, Tag(1))]


def test_neighbours_are_announced_where_they_are(hosts: list[Host]) -> None:
    a = hosts[0]
    a.transport.expect(iter([1, 2, 3]))
    assert (a.near.expected, a.far.expected) == ({1}, {2, 3})
    assert not a.transport.elastic
    a.transport.close()
    assert a.near.is_closed and a.far.is_closed
