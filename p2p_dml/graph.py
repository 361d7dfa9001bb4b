"""Who hears whom in one exchange: all rows at once, or row by row as somebody asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

PeerId = int
Row = tuple[PeerId, ...]

_DRAW_ALL = 32
"""Who asks for more than a 32nd of the rows will ask for all: they are drawn together then."""

_ALL_OF, _SOME = 256, 8  # a sample has all rows of so many peers, of more only the first few


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How the rows of a graph are found one by one, without the others.

    `receivers_of` None: all links go both ways. `whole` draws all of `senders` together, which is
    faster than one by one. `degree`: of every peer, in and out; `in_degrees`: those of some peers,
    where there is a faster way than to count their rows.
    """

    num_peers: int
    senders_of: Callable[[PeerId], Row]
    whole: Callable[[], tuple[Row, ...]]
    receivers_of: Callable[[PeerId], Row] | None = None
    degree: int | None = None
    in_degrees: Callable[[Sequence[PeerId]], Sequence[int]] | None = None


@final
class Graph:
    """Who hears whom: `senders[i]` are the peers whose messages peer i receives, ascending.

    Directed and sparse; never holds self-loops. An undirected link stands in both lists. Made of
    all rows, or of `Rows`: then `senders_of` and `receivers_of` cost what one row costs, and
    `senders` and `receivers` draw all. Equal links, equal graphs.
    """

    def __init__(self, links: tuple[Row, ...] | Rows) -> None:
        self._rows = links if isinstance(links, Rows) else None
        self._whole = links if isinstance(links, tuple) else None
        self._senders: dict[PeerId, Row] = {}
        self._receivers: dict[PeerId, Row] = {}
        self.num_peers = links.num_peers if isinstance(links, Rows) else len(links)

    @property
    def senders(self) -> tuple[Row, ...]:
        """Whom each peer hears."""
        if self._whole is None:
            assert self._rows is not None
            self._whole = self._rows.whole()
            self._senders.clear()
        return self._whole

    @cached_property
    def receivers(self) -> tuple[Row, ...]:
        """`receivers[j]` are the peers that hear peer j, ascending."""
        if self.is_two_way:
            return self.senders
        out: list[list[PeerId]] = [[] for _ in self.senders]
        for receiver, heard in enumerate(self.senders):
            for sender in heard:
                out[sender].append(receiver)
        return tuple(map(tuple, out))

    def senders_of(self, me: PeerId) -> Row:
        """Whom peer `me` hears, ascending."""
        if self._rows is None or self._whole is not None or self._are_many(self._senders):
            return self.senders[me]
        if me not in self._senders:
            self._senders[me] = self._rows.senders_of(me)
        return self._senders[me]

    def receivers_of(self, me: PeerId) -> Row:
        """Who hears peer `me`, ascending."""
        if self.is_two_way:
            return self.senders_of(me)
        if self._rows is None or self._whole is not None or self._are_many(self._receivers):
            return self.receivers[me]
        assert self._rows.receivers_of is not None
        if me not in self._receivers:
            self._receivers[me] = self._rows.receivers_of(me)
        return self._receivers[me]

    def in_degrees(self, peers: Sequence[PeerId]) -> Sequence[int]:
        """How many each of `peers` hears."""
        rows = self._rows
        if rows is not None and rows.degree is not None:
            return [rows.degree] * len(peers)
        if rows is not None and rows.in_degrees is not None and self._whole is None:
            return rows.in_degrees(peers)
        return [len(self.senders_of(peer)) for peer in peers]

    def out_degrees(self, peers: Sequence[PeerId]) -> Sequence[int]:
        """By how many each of `peers` is heard."""
        if self.is_two_way or (self._rows is not None and self._rows.degree is not None):
            return self.in_degrees(peers)
        return [len(self.receivers_of(peer)) for peer in peers]

    def sample(self) -> tuple[Row, ...]:
        """Enough rows to tell graphs of equal `Rows` apart; of many peers not all, unless drawn."""
        are_many = self._rows is not None and self.num_peers > _ALL_OF
        return tuple(map(self.senders_of, range(_SOME))) if are_many else self.senders

    @property
    def is_two_way(self) -> bool:
        """Whether all links are known to go both ways, without looking at them."""
        return self._rows is not None and self._rows.receivers_of is None

    @property
    def num_links(self) -> int:
        """Number of directed links."""
        return sum(map(len, self.senders))

    @property
    def is_symmetric(self) -> bool:
        return self.is_two_way or self.senders == self.receivers

    @property
    def is_complete(self) -> bool:
        return all(len(heard) == self.num_peers - 1 for heard in self._each())

    def _are_many(self, rows: dict[PeerId, Row]) -> bool:
        return len(rows) * _DRAW_ALL > self.num_peers

    def _each(self) -> Iterable[Row]:
        return map(self.senders_of, range(self.num_peers))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        if self is other:
            return True
        same_size = self.num_peers == other.num_peers
        # Row by row: graphs that differ mostly do so in the first rows.
        return same_size and all(map(tuple.__eq__, self._each(), other._each()))

    def __hash__(self) -> int:
        return hash(self.senders)

    def __repr__(self) -> str:
        return f"Graph({self.senders!r})"
