"""What has come to a peer and waits to be collected: pure state, fed by a transport.

The three kinds are what synchronous and asynchronous rounds differ in; peer loop, driver and
transports are the same for all.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

from p2p_dml.types import Mail, Mailbox, Message, Payload, PeerId, Tag

MANY = 16
"""How many times a sender's queue can have been full when a peer comes to read what came."""

TOO_MANY = "too many messages at once"


@final
class TaggedMailbox:
    """Synchronous rounds: the messages of one exchange go together, and are waited for.

    At most `ahead` messages of a sender are kept for exchanges to come, and MANY times as many late
    ones. Who has sent one of those to come and none for this exchange will not: messages of a
    sender keep their order. Bytes count for the exchange that they were sent for, whenever they
    came: so two runs of one seed count the same.
    """

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._tag = Tag(0)
        self._lost: dict[PeerId, Tag] = {}  # up to where nothing comes any more
        self._due: dict[Tag, dict[PeerId, Payload]] = {}
        self._late: list[Message] = []
        self._num_bytes: Counter[Tag] = Counter()

    def begin(self, tag: Tag) -> None:
        self._tag = tag
        for old in [t for t in self._due if t < tag]:
            self._late += [Message(j, old, p) for j, p in self._due.pop(old).items()]

    def put(self, message: Message, num_bytes: int) -> str | None:
        if message.tag < self._tag:
            if sum(m.sender == message.sender for m in self._late) >= MANY * self._ahead:
                return TOO_MANY
            self._late.append(message)
        elif sum(message.sender in mail for mail in self._due.values()) >= self._ahead:
            return "too many messages ahead of time"
        else:
            self._due.setdefault(message.tag, {})[message.sender] = message.payload
        self._num_bytes[message.tag] += num_bytes
        return None

    def absent(self, senders: Iterable[PeerId]) -> list[PeerId]:
        heard = {j for mail in self._due.values() for j in mail}
        heard |= {j for j, lost in self._lost.items() if self._tag <= lost}
        return [j for j in senders if j not in heard]

    def take(self, senders: Sequence[PeerId]) -> Mail:
        here = self._due.pop(self._tag, {})
        on_time = {j: here[j] for j in sorted(set(senders) & here.keys())}
        late, self._late = sorted(self._late, key=_by_tag), []
        num_bytes = sum(self._num_bytes.pop(t) for t in [*self._num_bytes] if t <= self._tag)
        passed = set(senders) - here.keys()
        ahead = max((t.round for t, mail in self._due.items() if passed & mail.keys()), default=0)
        return Mail(on_time, late, num_bytes, ahead=ahead)

    def left(self, peer: PeerId) -> None:
        """What it has sent is kept for its exchanges."""

    def comes_after(self, peer: PeerId, tag: Tag) -> None:
        self._lost[peer] = tag

    def due_in_s(self) -> float:
        return math.inf


@final
class NewestMailbox:
    """Asynchronous rounds: the newest message of each sender, used again until it is too old.

    A message's age is the number of this peer's own rounds since it could first be used. Round
    numbers of peers that differ in pace say nothing about each other: a slow neighbour's last
    model is its current one, however low its number. Messages older than `max_age` are not used;
    the last one of a neighbour that has finished does not age.
    """

    def __init__(self, max_age: int) -> None:
        self._max_age = max_age
        self._round = 0
        self._fresh: dict[PeerId, Payload] = {}
        self._kept: dict[PeerId, tuple[Payload, int]] = {}  # with the round of its first use
        self._finished: set[PeerId] = set()
        self._num_bytes = 0

    def begin(self, tag: Tag) -> None:
        self._round = tag.round

    def put(self, message: Message, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._fresh[message.sender] = message.payload
        self._kept.pop(message.sender, None)
        self._finished.discard(message.sender)

    def absent(self, senders: Iterable[PeerId]) -> list[PeerId]:
        return []

    def take(self, senders: Sequence[PeerId]) -> Mail:
        self._kept |= {j: (payload, self._round) for j, payload in self._fresh.items()}
        self._fresh = {}
        held = {j: self._age(j) for j in sorted(set(senders) & self._kept.keys())}
        ages = {j: age for j, age in held.items() if age <= self._max_age}
        num_bytes, self._num_bytes = self._num_bytes, 0
        return Mail({j: self._kept[j][0] for j in ages}, (), num_bytes, ages)

    def left(self, peer: PeerId) -> None:
        self._finished.add(peer)

    def comes_after(self, peer: PeerId, tag: Tag) -> None:
        """Nobody is waited for."""

    def due_in_s(self) -> float:
        return math.inf

    def _age(self, peer: PeerId) -> int:
        return 0 if peer in self._finished else self._round - self._kept[peer][1]


@final
class EveryMailbox:
    """Asynchronous rounds of strategies that count every message exactly once.

    The newest message of a sender is on time, its others and those of peers that are no neighbours
    in this exchange are late; nothing is ever handed out again. No more than MANY times `ahead` of
    a sender are kept.
    """

    def __init__(self, ahead: int = sys.maxsize) -> None:
        self._most = MANY * ahead
        self._came: list[Message] = []
        self._num_bytes = 0

    def begin(self, tag: Tag) -> None:
        """All that came is due."""

    def put(self, message: Message, num_bytes: int) -> str | None:
        if sum(m.sender == message.sender for m in self._came) >= self._most:
            return TOO_MANY
        self._num_bytes += num_bytes
        self._came.append(message)
        return None

    def absent(self, senders: Iterable[PeerId]) -> list[PeerId]:
        return []

    def take(self, senders: Sequence[PeerId]) -> Mail:
        newest = {m.sender: place for place, m in enumerate(self._came)}
        places = {j: newest[j] for j in sorted(set(senders) & newest.keys())}
        on_time = {j: self._came[place].payload for j, place in places.items()}
        rest = [m for place, m in enumerate(self._came) if places.get(m.sender) != place]
        num_bytes, self._num_bytes = self._num_bytes, 0
        self._came = []
        return Mail(on_time, sorted(rest, key=_by_tag), num_bytes)

    def left(self, peer: PeerId) -> None:
        """What it has sent is still to be counted."""

    def comes_after(self, peer: PeerId, tag: Tag) -> None:
        """Nobody is waited for."""

    def due_in_s(self) -> float:
        return math.inf


@dataclass(frozen=True, slots=True, order=True)
class _Held:
    due: float
    place: int
    message: Message = field(compare=False)
    num_bytes: int = field(compare=False)


@final
class HoldingMailbox:
    """Keeps messages from another mailbox until they arrive on the network that is emulated.

    `arrival` says when, of a message and its size, on the clock that `now` tells; it may take
    what it needs off the message, and returns a text if it cannot say. `refused` is told of whom
    the other mailbox has refused a message that has arrived, and why.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        arrival: Callable[[Message, int], tuple[Message, float] | str],
        now: Callable[[], float],
        refused: Callable[[PeerId, str], None],
    ) -> None:
        self._mailbox = mailbox
        self._refused = refused
        self._arrival = arrival
        self._now = now
        self._held: list[_Held] = []
        self._count = 0

    def begin(self, tag: Tag) -> None:
        self._release()
        self._mailbox.begin(tag)

    def put(self, message: Message, num_bytes: int) -> str | None:
        due = self._arrival(message, num_bytes)
        if isinstance(due, str):
            return due
        self._count += 1
        heapq.heappush(self._held, _Held(due[1], self._count, due[0], num_bytes))
        return None

    def absent(self, senders: Iterable[PeerId]) -> list[PeerId]:
        self._release()
        return self._mailbox.absent(senders)

    def take(self, senders: Sequence[PeerId]) -> Mail:
        self._release()
        return self._mailbox.take(senders)

    def left(self, peer: PeerId) -> None:
        """Said after all of its messages have arrived: `ShapedTransport.close` sees to that."""
        self._mailbox.left(peer)

    def comes_after(self, peer: PeerId, tag: Tag) -> None:
        self._mailbox.comes_after(peer, tag)

    def due_in_s(self) -> float:
        return max(0.0, self._held[0].due - self._now()) if self._held else math.inf

    def _release(self) -> None:
        """Pass on what has arrived."""
        while self._held and self._held[0].due <= self._now():
            held = heapq.heappop(self._held)
            if (why := self._mailbox.put(held.message, held.num_bytes)) is not None:
                self._refused(held.message.sender, why)


def _by_tag(message: Message) -> tuple[Tag, PeerId]:
    return message.tag, message.sender
