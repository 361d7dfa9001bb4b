"""Payloads through memory: the transport of the simulator and of tests.

Posting copies once, as a socket would; whoever is to be heard in an exchange must have posted it
before another collects. Losses are part of the plan: `drop` decides each message.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import final

from p2p_dml.mailbox import TaggedMailbox
from p2p_dml.pace import CLOCK_TICK_S, Clock
from p2p_dml.tensors import clone
from p2p_dml.types import Mail, Mailbox, Message, Payload, PeerId, Sent, Tag, outbox_of
from p2p_dml.wire import slots_of

Drop = Callable[[Tag, PeerId, PeerId], bool]
"""(tag, sender, receiver) -> whether this message is lost."""


class Hub:
    """The space between the peers of one process."""

    def __init__(self, drop: Drop = lambda tag, sender, receiver: False) -> None:
        self._drop = drop
        self._mailboxes: dict[PeerId, Mailbox] = {}

    def join(self, me: PeerId, mailbox: Mailbox) -> None:
        """From now on what is sent to `me` goes to `mailbox`."""
        self._mailboxes[me] = mailbox

    def deliver(self, message: Message, receiver: PeerId, num_bytes: int) -> None:
        if not self._drop(message.tag, message.sender, receiver):
            self._mailboxes[receiver].put(message, num_bytes)

    def leave(self, me: PeerId) -> None:
        """Tell everybody that `me` has finished."""
        for mailbox in self._mailboxes.values():
            mailbox.left(me)


@final
class MemoryTransport:
    """One peer's end of a hub."""

    elastic = True

    def __init__(
        self, me: PeerId, hub: Hub, mailbox: Mailbox | None = None, clock: Clock | None = None
    ) -> None:
        """`mailbox`: that of synchronous rounds if None. `clock`: on which messages take time."""
        self.me = me
        self._hub = hub
        self._clock = clock
        self._mailbox = mailbox or TaggedMailbox(ahead=sys.maxsize)
        hub.join(me, self._mailbox)

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        """Nothing to prepare."""

    def post(self, tag: Tag, sent: Sent) -> int:
        copies: dict[int, tuple[Message, int]] = {}
        bytes_out = 0
        for peer, payload in outbox_of(sent).items():
            if id(payload) not in copies:
                slots = slots_of(payload.tensors)
                copy = Payload(clone(payload.tensors), dict(payload.scalars))
                copies[id(payload)] = Message(self.me, tag, copy), slots[-1].end if slots else 0
            message, num_bytes = copies[id(payload)]
            self._hub.deliver(message, peer, num_bytes)
            bytes_out += num_bytes
        return bytes_out

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        """Take what is there, after what is on its way; `deadline_s` is not used."""
        self._mailbox.begin(tag)
        while self._clock and self._mailbox.absent(senders):
            if math.isinf(seconds := self._mailbox.due_in_s()):
                break
            self._clock.sleep(seconds + CLOCK_TICK_S)  # or a rounded time might never come
        mail = self._mailbox.take(senders)
        return replace(mail, silent=len(senders) - len(mail.on_time))

    def close(self) -> None:
        """Take leave of everybody."""
        self._hub.leave(self.me)
