"""Random regular graphs of many peers, of which each peer finds its own row without the others.

A random lift: peers are dealt at random to d + 1 classes of m places, and the places of any two
classes are paired by a permutation of their own, so everybody has one neighbour in every class but
its own: exactly d of them, none twice. The n - (d + 1) m <= d peers left over are put onto links
of others, one end left and right of each. Such graphs agree about as fast as random regular ones.
Source: Friedman 2003, "Relative expanders or weakly relatively Ramanujan graphs".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from typing import final

import numpy as np

from p2p_dml.graph import Graph, PeerId, Row, Rows
from p2p_dml.links._graphs import FEW, Ints, Words, one_way, two_way, words
from p2p_dml.links._shuffles import WORDS, backward, forward, round_keys


def is_lifted(num_peers: int, degree: int) -> bool:
    """Whether `lift` is for so many peers: it can draw their graph, and rows of it are worth it."""
    return num_peers > FEW and num_peers >= degree * (degree + 1)


def lift(num_peers: int, degree: int, seed: int, tick: int, *, directed: bool) -> Graph:
    """The graph in which every peer hears `degree` others and is heard by as many.

    Undirected, if num_peers x degree is odd, one peer has one neighbour less.
    """
    drawn = _Lift(num_peers, degree, seed, tick, directed)
    is_regular = directed or num_peers * degree % 2 == 0
    return Graph(
        Rows(
            num_peers=num_peers,
            senders_of=drawn.senders_of,
            receivers_of=drawn.receivers_of if directed else None,
            whole=drawn.whole,
            degree=degree if is_regular else None,
        )
    )


@final
@dataclass(frozen=True)
class _Lift:
    """Place x of class u has number u m + x; the last numbers are those of the peers left over.

    Of two classes paired, links lead from one, the tail, to the other, the head; undirected, they
    lead both ways. The first links of some pairs are cut, one for each peer left over.
    """

    num_peers: int
    degree: int
    seed: int
    tick: int
    directed: bool

    @property
    def classes(self) -> int:
        return self.degree + 1

    @property
    def places(self) -> int:
        """m, of a class."""
        return self.num_peers // self.classes

    @property
    def left_over(self) -> int:
        return self.num_peers % self.classes

    @cached_property
    def pairs(self) -> dict[tuple[int, int], int]:
        """Tail and head of classes that are paired, numbered from 1."""
        ends = (permutations if self.directed else combinations)(range(self.classes), 2)
        return {pair: number for number, pair in enumerate(ends, start=1)}

    @property
    def cut_tails(self) -> range:
        """Tails u of which the first links to class u + 1 are cut.

        No two such pairs have the same tail or head, and undirected no class in common: the ends
        that a peer left over is linked to are different peers.
        """
        return range(self.degree) if self.directed else range(0, self.degree // 2 * 2, 2)

    @cached_property
    def keys(self) -> Words:
        """Of the permutation that deals all peers, then of those of the pairs: a column each."""
        drawn = words(self.seed, self.tick, WORDS * (1 + len(self.pairs)))
        return round_keys(drawn.reshape(WORDS, -1))

    @cached_property
    def dealing(self) -> list[int]:
        keys: list[int] = self.keys[:, 0].tolist()
        return keys

    def senders_of(self, me: PeerId) -> Row:
        place = backward(me, self.dealing, self.num_peers)
        both = [] if self.directed else self._ahead(place)
        return self._peers_at([*both, *self._behind(place)])

    def receivers_of(self, me: PeerId) -> Row:
        return self._peers_at(self._ahead(backward(me, self.dealing, self.num_peers)))

    def _peers_at(self, places: Iterable[int]) -> Row:
        return tuple(sorted(forward(place, self.dealing, self.num_peers) for place in places))

    def _ahead(self, place: int) -> list[int]:
        """Where links lead to from here."""
        tail, x = divmod(place, self.places)
        if tail == self.classes:
            return [self._head(u, u + 1, x) for u in self.cut_tails]
        found = []
        for head in range(self.classes):
            if (tail, head) in self.pairs:
                is_cut = self._is_cut(tail, head, x)
                found.append(self._spare(x) if is_cut else self._head(tail, head, x))
        return found

    def _behind(self, place: int) -> list[int]:
        """Where links lead from to here."""
        head, y = divmod(place, self.places)
        if head == self.classes:
            return [u * self.places + y for u in self.cut_tails] + self._mate(y)
        found = []
        for tail in range(self.classes):
            if (tail, head) in self.pairs:
                x = backward(y, self._pairing(tail, head), self.places)
                is_cut = self._is_cut(tail, head, x)
                found.append(self._spare(x) if is_cut else tail * self.places + x)
        return found

    def _pairing(self, tail: int, head: int) -> list[int]:
        keys: list[int] = self.keys[:, self.pairs[tail, head]].tolist()
        return keys

    def _head(self, tail: int, head: int, x: int) -> int:
        return head * self.places + forward(x, self._pairing(tail, head), self.places)

    def _is_cut(self, tail: int, head: int, x: int) -> bool:
        return x < self.left_over and head == tail + 1 and tail in self.cut_tails

    def _spare(self, x: int) -> int:
        """The place of a peer left over."""
        return self.classes * self.places + x

    def _mate(self, x: int) -> list[int]:
        """Of an odd degree one link is left: peers left over are linked in twos."""
        is_odd = not self.directed and self.degree % 2 == 1
        return [self._spare(x ^ 1)] if is_odd and x ^ 1 < self.left_over else []

    def whole(self) -> tuple[Row, ...]:
        tails, heads = self._links()
        everyone = forward(
            np.arange(self.num_peers, dtype=np.uint64),
            [np.full(self.num_peers, key, np.uint64) for key in self.dealing],
            self.num_peers,
        ).astype(np.int64)
        draw = one_way if self.directed else two_way
        return draw(self.num_peers, everyone[heads], everyone[tails]).senders

    def _links(self) -> tuple[Ints, Ints]:
        """Places at the tails and heads of all links."""
        m, spare = self.places, np.arange(self.left_over)
        ends = np.array(list(self.pairs), dtype=np.int64).reshape(-1, 2)
        x = np.tile(np.arange(m), len(ends))
        keys = [np.repeat(row, m) for row in self.keys[:, 1:]]
        paired = forward(x.astype(np.uint64), keys, m).astype(np.int64) if len(ends) else x
        tail_class, head_class = np.repeat(ends.T, m, axis=1)
        tails, heads = tail_class * m + x, head_class * m + paired
        cuts = np.isin(tail_class, self.cut_tails) & (head_class == tail_class + 1)
        cuts &= x < self.left_over
        between = self.classes * m + x[cuts]
        mates = [self._mate(int(y)) for y in spare]
        twos = [(self._spare(int(y)), *mate) for y, mate in zip(spare, mates, strict=True) if mate]
        mated = np.array(twos, dtype=np.int64).reshape(-1, 2).T
        return (
            np.concatenate([tails[~cuts], tails[cuts], between, mated[0]]),
            np.concatenate([heads[~cuts], between, heads[cuts], mated[1]]),
        )
