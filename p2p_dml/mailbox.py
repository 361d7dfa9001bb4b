"""What has come to a peer and waits to be collected: pure state, fed by a transport.

The three kinds are what synchronous and asynchronous rounds differ in; peer loop, driver and
transports are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

from p2p_dml.types import Mail, Message, Payload, PeerId, Tag


@final
class TaggedMailbox:
    """Synchronous rounds: the messages of one exchange go together, and are waited for.

    At most `ahead` messages of a sender are kept for exchanges to come.
    """

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._tag = Tag(0)
        self._due: dict[Tag, dict[PeerId, Payload]] = {}
        self._late: list[Message] = []
        self._num_bytes = 0

    def begin(self, tag: Tag) -> None:
        self._tag = tag
        for old in [t for t in self._due if t < tag]:
            self._late += [Message(j, old, p) for j, p in self._due.pop(old).items()]

    def put(self, message: Message, num_bytes: int) -> str | None:
        self._num_bytes += num_bytes
        if message.tag < self._tag:
            self._late.append(message)
            return None
        if sum(message.sender in mail for mail in self._due.values()) >= self._ahead:
            return "too many messages ahead of time"
        self._due.setdefault(message.tag, {})[message.sender] = message.payload
        return None

    def absent(self, senders: Iterable[PeerId]) -> list[PeerId]:
        here = self._due.get(self._tag, {})
        return [j for j in senders if j not in here]

    def take(self, senders: Sequence[PeerId]) -> Mail:
        here = self._due.pop(self._tag, {})
        on_time = {j: here[j] for j in sorted(set(senders) & here.keys())}
        late, self._late = sorted(self._late, key=_by_tag), []
        num_bytes, self._num_bytes = self._num_bytes, 0
        return Mail(on_time, late, num_bytes)

    def left(self, peer: PeerId) -> None:
        """What it has sent is kept for its exchanges."""


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

    def _age(self, peer: PeerId) -> int:
        return 0 if peer in self._finished else self._round - self._kept[peer][1]


@final
class EveryMailbox:
    """Asynchronous rounds of strategies that count every message exactly once.

    The newest message of a sender is on time, its others and those of peers that are no neighbours
    in this exchange are late; nothing is ever handed out again.
    """

    def __init__(self) -> None:
        self._came: list[Message] = []
        self._num_bytes = 0

    def begin(self, tag: Tag) -> None:
        """All that came is due."""

    def put(self, message: Message, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._came.append(message)

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


def _by_tag(message: Message) -> tuple[Tag, PeerId]:
    return message.tag, message.sender
