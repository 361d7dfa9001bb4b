"""A transport as on the network that a run emulates: messages are lost, and late.

What is lost leaves its sender (it counts as sent) and goes no further. What is not carries the
time at which it left; the receiver keeps it until it would have arrived. Losses are known at both
ends, so nobody waits for them. Who waits for nobody can be faster than a link: then a newer model
is not sent before the last one is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import final

from p2p_dml.mailbox import HoldingMailbox
from p2p_dml.network import Line, Network
from p2p_dml.pace import Clock
from p2p_dml.transports._machine import boot_id, number_of
from p2p_dml.types import (
    Coded,
    Mail,
    Mailbox,
    Message,
    Outbox,
    Payload,
    PeerId,
    Sent,
    Tag,
    Transport,
    outbox_of,
)
from p2p_dml.wire import slots_of

_DEPARTED, _MACHINE = "network/departed", "network/machine"
"""Scalars that a payload carries on its way: when it left, and by which machine's clock."""


@final
class Emulation:
    """One peer's end of an emulated network: give its transport the mailbox, then wrap it.

    `clock`: that of the peer; `waits`: whether rounds are synchronous; `every`: whether all
    messages count.
    """

    def __init__(
        self, me: PeerId, network: Network, clock: Clock, *, waits: bool, every: bool
    ) -> None:
        self._me = me
        self._network = network
        self._clock = clock
        self._waits = waits
        self._every = every
        self._lines: dict[PeerId, Line] = {}
        self._machine = machine()
        self._offsets: dict[PeerId, float] = {}

    def mailbox(self, mailbox: Mailbox, refused: Callable[[PeerId, str], None]) -> Mailbox:
        """`mailbox`, reached by messages when they arrive; `refused` is told whose it refuses."""
        return HoldingMailbox(mailbox, self._arrival, self._clock.now, refused)

    def transport(self, transport: Transport) -> Transport:
        """`transport`, whose mailbox is of this emulation."""
        return ShapedTransport(
            transport,
            self._me,
            self._network,
            self._clock,
            waits=self._waits,
            queues=self._waits or self._every,
        )

    def _arrival(self, message: Message, num_bytes: int) -> tuple[Message, float] | str:
        """The message as its sender meant it, and when it arrives by this peer's clock."""
        scalars = dict(message.payload.scalars)
        departed, where = scalars.pop(_DEPARTED, None), scalars.pop(_MACHINE, None)
        if departed is None or where is None:
            return "does not say when it left its sender"
        sender = message.sender
        line = self._lines.setdefault(sender, Line(self._network, sender, self._me))
        departed += self._offset(sender, where, departed)
        payload = replace(message.payload, scalars=scalars)
        return replace(message, payload=payload), line.arrival(message.tag, departed, num_bytes)

    def _offset(self, sender: PeerId, where: float, departed: float) -> float:
        """By how much the clock of `sender` differs from this peer's.

        Of one machine they are the same. Between machines, the least of what messages took by
        the two clocks, which is off by the real network's own delay.
        """
        if where == self._machine:
            return 0.0
        took = self._clock.now() - departed
        self._offsets[sender] = min(took, self._offsets.get(sender, took))
        return self._offsets[sender]


@final
class ShapedTransport:
    """The sending end; made by `Emulation.transport`. `queues`: on links that are busy."""

    def __init__(
        self,
        transport: Transport,
        me: PeerId,
        network: Network,
        clock: Clock,
        *,
        waits: bool,
        queues: bool,
    ) -> None:
        self.elastic = transport.elastic
        self._transport = transport
        self._me = me
        self._network = network
        self._clock = clock
        self._waits = waits
        self._queues = queues
        self._machine = machine()
        self._free_at = 0.0  # this peer's uplink
        self._lines: dict[PeerId, Line] = {}
        self._quiet_at = 0.0

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        self._transport.expect(neighbours)

    def post(self, tag: Tag, sent: Sent) -> int:
        now = self._clock.now()
        outbox = {j: x for j, x in outbox_of(sent).items() if self._queues or self._is_free(j, now)}
        sizes = {peer: _num_bytes(payload) for peer, payload in outbox.items()}
        self._free_at = max(self._free_at, now)
        self._free_at += self._network.uplink_s(self._me, sum(sizes.values()))
        lost = {peer for peer in outbox if self._network.is_lost(tag, self._me, peer)}
        going = self._stamped({j: x for j, x in outbox.items() if j not in lost})
        for peer in going:
            arrives = self._line(peer).arrival(tag, self._free_at, sizes[peer])
            self._quiet_at = max(self._quiet_at, arrives)
        coded = replace(sent, outbox=going) if isinstance(sent, Coded) else going
        return self._transport.post(tag, coded) + sum(sizes[peer] for peer in lost)

    def _is_free(self, peer: PeerId, now: float) -> bool:
        return self._free_at <= now and not self._line(peer).is_busy(now)

    def _line(self, peer: PeerId) -> Line:
        return self._lines.setdefault(peer, Line(self._network, self._me, peer))

    def _stamped(self, outbox: Outbox) -> Outbox:
        """The payloads with the time at which all of them have left; one for many stays one."""
        stamp = {_DEPARTED: self._free_at, _MACHINE: self._machine}
        stamped = {
            id(payload): replace(payload, scalars={**payload.scalars, **stamp})
            for payload in outbox.values()
        }
        return {peer: stamped[id(payload)] for peer, payload in outbox.items()}

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        if self._waits:  # at one's own pace the tags of others are not this peer's
            senders = [j for j in senders if not self._network.is_lost(tag, j, self._me)]
        return self._transport.collect(tag, senders, deadline_s)

    def close(self) -> None:
        """Take leave, which travels no faster than what was sent before."""
        self._clock.sleep(max(0.0, self._quiet_at - self._clock.now()))
        self._transport.close()


def machine() -> float:
    """A number for this machine since it was started: its processes have one monotonic clock."""
    try:
        return float(number_of(boot_id(), 6))
    except OSError:
        return 0.0


def _num_bytes(payload: Payload) -> int:
    slots = slots_of(payload.tensors)
    return slots[-1].end if slots else 0
