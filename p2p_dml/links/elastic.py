"""Schedules for peers that come and go: who takes part from which round on, and their graphs.

What each peer knows of that only grows, by what others tell it, and does not depend on the order:
peers that know the same have the same graphs. A change is to come so many rounds later that all
will know of it by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import final

import networkx as nx

from p2p_dml.errors import WireError
from p2p_dml.types import Graph, LinkSchedule, PeerId

_AHEAD = 8
"""Rounds whose links carry the news of a change."""

_JOINS, _LEAVES = "joins", "leaves"


@final
class Members:
    """Who takes part: of each peer the last round it began in, and the last one it ended with.

    `first`: how many begin, peers 0 to first - 1, of at most `most`.
    """

    def __init__(self, first: int, most: int) -> None:
        self.most = most
        self._joins: dict[PeerId, int] = dict.fromkeys(range(first), 1)
        self._leaves: dict[PeerId, int] = {}

    def at(self, round: int) -> tuple[PeerId, ...]:
        """Who takes part in a round, ascending."""
        return tuple(peer for peer in sorted(self._joins) if self.has(peer, round))

    def may_have(self, peer: PeerId) -> bool:
        """Whether `peer` is the id of one that can take part at all."""
        return 0 <= peer < self.most

    def has(self, peer: PeerId, round: int) -> bool:
        """Whether `peer` takes part in a round."""
        if peer not in self._joins:
            return False
        joins, leaves = self._joins[peer], self._leaves.get(peer)
        if leaves is None:
            return round >= joins
        # It has come back since, or is to leave.
        return round >= joins or round <= leaves if leaves < joins else joins <= round <= leaves

    def is_to_stay(self, peer: PeerId) -> bool:
        """Whether `peer` takes part, now or later, without end."""
        return self._joins.get(peer, 0) > self._leaves.get(peer, 0)

    def first_round(self, peer: PeerId, round: int) -> int:
        """The first round from `round` on that `peer`, who is to stay, takes part in."""
        return max(round, self._joins[peer])

    def join(self, peer: PeerId, round: int) -> None:
        """`peer` takes part from `round` on."""
        self._joins[peer] = max(round, self._joins.get(peer, 0))

    def leave(self, peer: PeerId, round: int) -> None:
        """`round` is the last one that `peer` takes part in."""
        self._leaves[peer] = max(round, self._leaves.get(peer, 0))

    def record(self) -> dict[str, float]:
        """All of it, as `merge` takes it; at most two entries for each peer."""
        joins = {f"{peer}/{_JOINS}": float(round_) for peer, round_ in self._joins.items()}
        leaves = {f"{peer}/{_LEAVES}": float(round_) for peer, round_ in self._leaves.items()}
        return joins | leaves

    def merge(self, record: Mapping[str, float]) -> bool:
        """Take over what another peer knows; whether anything of it is news. Raises WireError."""
        changes = [self._entry(name, round_) for name, round_ in record.items()]
        before = dict(self._joins), dict(self._leaves)
        for peer, what, round_ in changes:
            (self.join if what == _JOINS else self.leave)(peer, round_)
        return before != (self._joins, self._leaves)

    def _entry(self, name: str, round_: float) -> tuple[PeerId, str, int]:
        peer, _, what = name.partition("/")
        is_peer = peer.isdecimal() and len(peer) < 8 and self.may_have(int(peer))
        if not is_peer or what not in (_JOINS, _LEAVES) or not (0 <= round_ < 2**53):
            raise WireError(f"says of the members: {name[:40]!r} = {round_}")
        return int(peer), what, int(round_)


@final
class Elastic:
    """A schedule over those who take part: `of(n)` is that of n peers, dealt in ascending order.

    Peers that do not take part have no links. `exchanges` of a round are its ticks.
    """

    def __init__(self, members: Members, of: Callable[[int], LinkSchedule], exchanges: int) -> None:
        self.members = members
        self.has, self.record, self.merge = members.has, members.record, members.merge
        self.may_have = members.may_have
        self._of = lru_cache(maxsize=None)(of)
        self._exchanges = max(exchanges, 1)

    def __call__(self, tick: int) -> Graph:
        peers = self.members.at(tick // self._exchanges + 1)
        senders: list[tuple[PeerId, ...]] = [()] * self.members.most
        if len(peers) > 1:
            for place, heard in enumerate(self._of(len(peers))(tick).senders):
                senders[peers[place]] = tuple(peers[other] for other in heard)
        return Graph(tuple(senders))

    def admit(self, peer: PeerId, round: int) -> bool:
        """Let `peer` take part, from a round on that all will know of, if it is `round` now.

        Whether it has not been let in before.
        """
        is_new = not self.members.is_to_stay(peer)
        if is_new:
            self.members.join(peer, self._in_time(round))
        return is_new

    def dismiss(self, peer: PeerId, round: int) -> None:
        """Let `peer` go, after a round by which all will know of it, if it is `round` now."""
        self.members.leave(peer, self._in_time(round))

    def _in_time(self, round_: int) -> int:
        """A round by which all will know what a peer in `round_` tells its neighbours now.

        News goes a link on in each round at least, and a peer may be as many rounds ahead as it is
        links away.
        """
        links: nx.Graph[PeerId] = nx.Graph()
        links.add_nodes_from(self.members.at(round_))
        for tick in range((round_ - 1) * self._exchanges, (round_ - 1 + _AHEAD) * self._exchanges):
            links.add_edges_from(
                (i, j) for i, heard in enumerate(self(tick).senders) for j in heard
            )
        connected = len(links) > 0 and nx.is_connected(links)
        return round_ + 2 + 2 * (nx.diameter(links) if connected else len(links))
