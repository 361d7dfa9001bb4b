"""Messages over an emulated network: in memory by virtual clocks, and over ZeroMQ by the wall's."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.mailbox import EveryMailbox, NewestMailbox, TaggedMailbox
from p2p_dml.network import Conditions, Network
from p2p_dml.pace import VirtualClock, WallClock
from p2p_dml.transports import shaped
from p2p_dml.transports.memory import Hub, MemoryTransport
from p2p_dml.transports.shaped import Emulation
from p2p_dml.types import Coded, Mailbox, Message, Payload, PeerId, Tag, Transport

if TYPE_CHECKING:
    from tests.transports.conftest import Peers

MEGABYTE = Payload({"x": torch.zeros(250_000)}, {"loss": 2.0})
PAIR = {0: MEGABYTE, 1: MEGABYTE}


class Ends:
    """Peers 0 and 1 in memory on an emulated network, each with a clock."""

    def __init__(
        self,
        network: Network,
        mailboxes: Sequence[Mailbox] = (),
        *,
        waits: bool = True,
        every: bool = False,
    ) -> None:
        self.clocks = [VirtualClock(), VirtualClock()]
        self.refused: list[tuple[PeerId, str]] = []
        mailboxes = mailboxes or [TaggedMailbox(4), TaggedMailbox(4)]
        hub = Hub()
        self.transports: list[Transport] = []
        for me, (clock, mailbox) in enumerate(zip(self.clocks, mailboxes, strict=True)):
            emulation = Emulation(me, network, clock, waits=waits, every=every)
            inner = MemoryTransport(me, hub, emulation.mailbox(mailbox, self._refused), clock)
            self.transports.append(emulation.transport(inner))

    def _refused(self, sender: PeerId, why: str) -> None:
        self.refused.append((sender, why))

    def post(self, me: PeerId, round_: int) -> int:
        return self.transports[me].post(Tag(round_), {1 - me: MEGABYTE})

    def hears(self, me: PeerId, round_: int) -> bool:
        """Whether the other's message is on time."""
        return bool(self.transports[me].collect(Tag(round_), [1 - me], 0.0).on_time)


def slow(**conditions: float) -> Network:
    return Network(seed=1, exchanges=1, usual=Conditions(**conditions))


def test_the_receiver_waits_until_a_message_arrives() -> None:
    """At 8 Mbit/s a megabyte takes a second, and half a one to travel."""
    ends = Ends(slow(bandwidth_mbps=8.0, delay_s=0.5))
    ends.clocks[0].sleep(2.0)
    assert ends.post(0, 1) == 10**6
    mail = ends.transports[1].collect(Tag(1), [0], 0.0)
    assert ends.clocks[1].now() == pytest.approx(3.5, abs=1e-6)
    (payload,) = mail.on_time.values()
    assert dict(payload.scalars) == {"loss": 2.0}  # and nothing of the network's own
    assert mail.num_bytes == 10**6


def test_an_uplink_is_shared_by_all_that_leaves_a_peer() -> None:
    network = Network(seed=1, exchanges=1, uplinks_mbps={0: 8.0})
    ends = Ends(network)
    ends.transports[0].post(Tag(1), PAIR)  # two megabytes, to itself too: both are there after 2 s
    assert ends.hears(1, 1)
    assert ends.clocks[1].now() == pytest.approx(2.0, abs=1e-6)


def test_what_is_lost_counts_as_sent_and_is_not_waited_for() -> None:
    ends = Ends(slow(loss=1.0, delay_s=5.0))
    assert ends.post(0, 1) == 10**6
    assert not ends.hears(1, 1)
    assert ends.clocks[1].now() == 0.0


def test_a_coded_outbox_stays_one() -> None:
    ends = Ends(slow(delay_s=1.0))
    ends.transports[0].post(Tag(1), Coded({1: MEGABYTE}, lambda sender, payload: payload))
    assert ends.hears(1, 1)


def test_who_waits_for_nobody_takes_what_has_arrived() -> None:
    ends = Ends(slow(delay_s=1.5), [NewestMailbox(9), NewestMailbox(9)], waits=False)
    ends.post(0, 1)
    heard = []
    for round_ in range(1, 4):
        heard.append(ends.hears(1, round_))
        ends.clocks[1].sleep(1.0)
    assert heard == [False, False, True]


@pytest.mark.parametrize(("every", "sent"), [(False, [1, 0, 1]), (True, [1, 1, 1])])
def test_a_busy_link_takes_the_next_model_later_unless_all_count(
    every: bool, sent: list[int]
) -> None:
    """A megabyte a second; models at 0, 0.6 and 1.2 seconds."""
    boxes: list[Mailbox] = [EveryMailbox(), EveryMailbox()]
    ends = Ends(slow(bandwidth_mbps=8.0), boxes, waits=False, every=every)
    num_bytes = []
    for round_ in range(1, 4):
        num_bytes.append(ends.post(0, round_))
        ends.clocks[0].sleep(0.6)
    assert num_bytes == [10**6 * each for each in sent]
    ends.clocks[1].sleep(9.0)
    mail = ends.transports[1].collect(Tag(1), [0], 0.0)
    assert len(mail.on_time) + len(mail.late) == sum(sent)


def test_leave_is_taken_when_all_has_arrived() -> None:
    ends = Ends(slow(delay_s=4.0))
    ends.post(0, 1)
    ends.transports[0].close()
    assert ends.clocks[0].now() == pytest.approx(4.0)


def test_what_the_mailbox_behind_refuses_is_told() -> None:
    ends = Ends(slow(delay_s=1.0))
    for round_ in range(1, 7):
        ends.post(0, round_)
    ends.clocks[1].sleep(60.0)
    assert ends.hears(1, 1)
    assert ends.refused == [(0, "too many messages ahead of time")] * 2


def test_a_message_that_does_not_say_when_it_left_is_refused() -> None:
    emulation = Emulation(1, slow(delay_s=1.0), VirtualClock(), waits=True, every=False)
    mailbox = emulation.mailbox(TaggedMailbox(4), print)
    assert mailbox.put(Message(0, Tag(1), MEGABYTE), 4) == "does not say when it left its sender"
    assert math.isinf(mailbox.due_in_s())


def test_clocks_of_two_machines_are_compared_by_what_messages_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The receiver's clock is 100 s ahead; the first message needed 2 s on the real network."""
    numbers = iter([1.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr(shaped, "machine", lambda: next(numbers))
    ends = Ends(slow(delay_s=1.0))
    ends.clocks[1].sleep(102.0)
    for round_, expected in ((1, 103.0), (2, 104.0)):
        ends.post(0, round_)
        assert ends.hears(1, round_)
        assert ends.clocks[1].now() == pytest.approx(expected, abs=1e-6)
        ends.clocks[0].sleep(2.0)  # the second one leaves at 2, is there at once, at 103


def test_over_zeromq_a_message_is_on_time_and_not_before_it_arrives(peers: Peers) -> None:
    network = slow(delay_s=0.2)
    emulations = [Emulation(me, network, WallClock(), waits=True, every=False) for me in (0, 1)]
    boxes = [emulation.mailbox(TaggedMailbox(4), print) for emulation in emulations]
    inner = [peers.make(me, mailbox=boxes[me]) for me in (0, 1)]
    peers.open(*inner)
    sender, receiver = (emulations[me].transport(inner[me]) for me in (0, 1))
    begin = time.monotonic()
    sender.post(Tag(1), {1: MEGABYTE})
    mail = receiver.collect(Tag(1), [0], 30.0)
    assert [*mail.on_time] == [0]
    assert time.monotonic() - begin >= 0.2
