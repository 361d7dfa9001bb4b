"""Payloads through shared memory, between the peers of one machine.

A payload is written once, into a segment of its sender; a message of kind LENT says where it lies,
and the receiver's tensors are views of that memory. They are in use as long as any tensor made from
them is; the receiver's board says when they no longer are, and only then, when all receivers have
done with it, the segment is written again. If one of them is lost before (killed, stopped, cut
off), or does not give back what it was lent, the segment is left to whoever still has it mapped,
and another one takes its place. So nothing is ever written under a reader, whoever is stopped when.

Peers agree on it when they meet: a hello says where its sender's board is, and is answered with the
receiver's if that one could be read. Where it could not, messages go over the socket.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.transports._board import MAX_GENERATION, MAX_PEERS, SLOTS, Board, Row
from p2p_dml.transports._segments import MappedSegment, Place, this_machine
from p2p_dml.types import PeerId

IDLE = 64
"""Generations after which a slot that was not used since is given up at both ends."""

_PLACE = "memory"
_NO_TENSORS: Mapping[str, Tensor] = {}


@final
class Link:
    """From a lender to one whom it lends: what is with that one."""

    def __init__(self, row: Row, place: Place) -> None:
        self._row = row
        self.place = place
        self.is_lost = False
        self._unread: deque[int] = deque()

    def lend(self, generation: int) -> None:
        self._unread.append(generation)

    @property
    def num_unread(self) -> int:
        """Messages that have not come there yet."""
        while self._unread and self._unread[0] <= self._row.newest:
            self._unread.popleft()
        return len(self._unread)

    def has_done(self, slot: int, generation: int) -> bool:
        """Whether the receiver no longer uses what was lent, and never will."""
        return self._row.has_done(slot, generation)


@dataclass(slots=True)
class _Lender:
    """Another peer's process, and its slots that are mapped here with the last generation seen."""

    place: Place
    mapped: dict[int, tuple[int, MappedSegment, int]] = field(default_factory=dict)

    def segment(self, slot: int, token: int, descriptor: int, generation: int) -> MappedSegment:
        """What lies in a slot. Raises OSError or WireError."""
        known = self.mapped.get(slot)
        if known is not None and known[0] == token:
            mapping = known[1]
        else:
            mapping = MappedSegment(self.place.pid, descriptor, token, populate=True)
        self.mapped[slot] = token, mapping, generation
        for old in [s for s, (*_, seen) in self.mapped.items() if seen < generation - IDLE]:
            del self.mapped[old]
        return mapping


@final
class Plane:
    """What one peer lends and is lent. `explain(peer, why)`: told why one here is not reached."""

    def __init__(
        self, me: PeerId, explain: Callable[[PeerId, str], None], *, wanted: bool = True
    ) -> None:
        self._me = me
        self._explain = explain
        self._machine = this_machine()
        self._board: Board | None = None
        self._why_none = ""
        self._links: dict[PeerId, Link] = {}
        self._lenders: dict[PeerId, _Lender] = {}
        self._explained: set[PeerId] = set()
        if wanted and me < MAX_PEERS:
            try:
                self._board = Board(os.getpid())
            except OSError as error:
                self._why_none = f"this peer has no memory to share: {error.strerror}"

    def introduction(self) -> Mapping[str, Tensor]:
        """What a hello says of this peer's memory."""
        if self._board is None:
            return _NO_TENSORS
        return {_PLACE: self._board.place.pack()}

    # ---- lending --------------------------------------------------------------------------

    def reach(self, peer: PeerId, introduction: Mapping[str, Tensor]) -> None:
        """Lend to `peer` from now on, if it says that it can read this one's memory.

        Raises WireError if what it says makes no sense.
        """
        place = self._here(introduction)
        link = self._links.get(peer)
        if place is None or (link is not None and link.place == place):
            return
        self.lose(peer)
        if (board := self._look(peer, place)) is not None:
            self._links[peer] = Link(Row(board, self._me), place)

    @property
    def lends(self) -> bool:
        """Whether anybody can be lent anything."""
        return bool(self._links)

    def link(self, peer: PeerId) -> Link | None:
        """How `peer` is lent to; None if it is reached by the socket alone."""
        return self._links.get(peer)

    def lose(self, peer: PeerId) -> None:
        """The connection to `peer` is no more: what it was lent may be in use for ever."""
        if (link := self._links.pop(peer, None)) is not None:
            link.is_lost = True

    # ---- being lent -----------------------------------------------------------------------

    def know(self, peer: PeerId, introduction: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Take in where `peer` lends; the answer to it, nothing if that cannot be read here.

        Raises WireError if what it says makes no sense.
        """
        place = self._here(introduction)
        known = self._lenders.get(peer)
        if known is not None and known.place != place:
            del self._lenders[peer]
            known = None
        if place is None or peer >= MAX_PEERS:
            return _NO_TENSORS
        if self._board is None:
            self._tell(peer, self._why_none)
            return _NO_TENSORS
        if known is None:
            if self._look(peer, place) is None:
                return _NO_TENSORS
            self._board.forget(peer)
            self._lenders[peer] = _Lender(place)
        return self.introduction()

    def borrow(self, peer: PeerId, where: NDArray[np.uint8], num_bytes: int) -> NDArray[np.uint8]:
        """The block that `peer` lends; it counts as in use until no tensor is a view of it.

        `where`: as `told` made it. Raises WireError if there is no such thing.
        """
        lender = self._lenders.get(peer)
        if lender is None or self._board is None or where.size != 8 * 4:
            raise WireError("refers to memory that this peer cannot see")
        descriptor, token, slot, generation = np.frombuffer(where.tobytes(), np.int64).tolist()
        if not 0 <= slot < SLOTS or not self._board.newest(peer) < generation < MAX_GENERATION:
            raise WireError(f"refers to memory that it has lent before, or to slot {slot}")
        try:
            block = lender.segment(slot, token, descriptor, generation).view(num_bytes)
        except OSError as error:
            raise WireError(f"refers to memory that cannot be read: {error}") from error
        self._board.take(peer, slot, generation)
        back = weakref.finalize(block, self._board.give_back, peer, slot, generation)
        back.atexit = False
        return block

    def close(self) -> None:
        """Lend and be lent nothing any more."""
        for peer in [*self._links]:
            self.lose(peer)
        self._lenders.clear()
        if self._board is not None:
            self._board.close()

    # ---- small parts ----------------------------------------------------------------------

    def _here(self, introduction: Mapping[str, Tensor]) -> Place | None:
        """Where another peer's board is, if it is on this machine."""
        if _PLACE not in introduction:
            return None
        place = Place.unpack(introduction[_PLACE])
        return place if place.machine == self._machine else None

    def _look(self, peer: PeerId, place: Place) -> MappedSegment | None:
        """The board of a peer on this machine; None, and an explanation, if it cannot be read."""
        try:
            return MappedSegment(place.pid, place.descriptor, place.token)
        except (OSError, WireError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is in another container"
        self._tell(peer, f"its memory cannot be read: {why}")
        return None

    def _tell(self, peer: PeerId, why: str) -> None:
        """Explain once why `peer` is reached by the socket; nothing if that is wanted."""
        if why and peer not in self._explained:
            self._explained.add(peer)
            self._explain(peer, why)


def told(descriptor: int, token: int, slot: int, generation: int) -> bytes:
    """What a message says of the place of its block: four numbers of eight bytes."""
    return np.array([descriptor, token, slot, generation], dtype=np.int64).tobytes()
