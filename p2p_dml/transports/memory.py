"""Payloads through memory: the transport of the simulator and of tests.

Posting copies once, as a socket would; collecting never waits, so all peers must have posted an
exchange before the first collects it. Losses are part of the plan: `drop` decides each message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import final

from p2p_dml.tensors import clone
from p2p_dml.types import Mail, Message, Outbox, Payload, PeerId, Tag
from p2p_dml.wire import slots_of

Drop = Callable[[Tag, PeerId, PeerId], bool]
"""(tag, sender, receiver) -> whether this message is lost."""


class Hub:
    """The space between the peers of one process."""

    def __init__(self, drop: Drop = lambda tag, sender, receiver: False) -> None:
        self._drop = drop
        self._boxes: dict[PeerId, list[Message]] = {}

    def deliver(self, tag: Tag, sender: PeerId, receiver: PeerId, payload: Payload) -> None:
        if not self._drop(tag, sender, receiver):
            self._boxes.setdefault(receiver, []).append(Message(sender, tag, payload))

    def take(self, receiver: PeerId, upto: Tag) -> list[Message]:
        """Remove and return the messages for `receiver` tagged `upto` or earlier."""
        box = self._boxes.get(receiver, [])
        self._boxes[receiver] = [m for m in box if m.tag > upto]
        return [m for m in box if m.tag <= upto]


@final
class MemoryTransport:
    """One peer's end of a hub."""

    elastic = True

    def __init__(self, me: PeerId, hub: Hub) -> None:
        self.me = me
        self._hub = hub

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        """Nothing to prepare."""

    def post(self, tag: Tag, outbox: Outbox) -> int:
        copies: dict[int, tuple[Payload, int]] = {}
        sent = 0
        for peer, payload in outbox.items():
            if id(payload) not in copies:
                slots = slots_of(payload.tensors)
                copy = Payload(clone(payload.tensors), dict(payload.scalars))
                copies[id(payload)] = copy, slots[-1].end if slots else 0
            copy, num_bytes = copies[id(payload)]
            self._hub.deliver(tag, self.me, peer, copy)
            sent += num_bytes
        return sent

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        """Take what is there; `deadline_s` is not used, since nothing can come later."""
        messages = sorted(self._hub.take(self.me, tag), key=lambda m: (m.tag, m.sender))
        here = {m.sender: m.payload for m in messages if m.tag == tag and m.sender in senders}
        num_bytes = sum(slots[-1].end for m in messages if (slots := slots_of(m.payload.tensors)))
        return Mail(here, [m for m in messages if m.tag < tag], num_bytes)

    def close(self) -> None:
        """Nothing to free."""
