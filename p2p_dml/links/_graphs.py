"""What every kind of schedule is made of: words all peers share, and arrays made into graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from p2p_dml.graph import Graph, PeerId, Row, Rows

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Graphs of the last ticks are kept, since all peers of a simulation ask for the same ones: those of
# the exchange at hand and of the rounds whose connections are being prepared.
RECENT = 32

FEW = 256
"""Up to so many peers whole graphs are drawn: one costs a peer little more than its row would."""

# Streams of `words`; schedules themselves count up from 0.
SHARED_STREAM = 1 << 62
PART_STREAM = 1 << 63


def words(seed: int, tick: int, count: int, stream: int = 0) -> Words:
    """Draw `count` 64-bit words, the same for (seed, tick, stream) at every peer, always.

    Bits of a Philox counter generator: numpy keeps its bit streams, not its distributions, stable
    between versions. Streams are disjoint.
    """
    key = np.array([seed, tick], dtype=np.uint64)
    counter = np.array([0, stream, 0, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def part_seed(seed: int, index: int) -> int:
    """Seed of the `index`-th part of a combinator, so that no two parts draw the same words."""
    return int(words(seed, 0, 1, PART_STREAM + index)[0])


def happens(drawn: Words, probability: float) -> Flags:
    """Whether an event of `probability` happens, a word each; exact at 0 and at 1."""
    high: Words = drawn >> np.uint64(11)
    happening: Flags = high < np.uint64(int(probability * 2**53))
    return happening


def shuffled(drawn: Words) -> Ints:
    """Turn n words into a permutation of 0 … n-1."""
    return np.argsort(drawn, kind="stable").astype(np.int64, copy=False)


def below(drawn: Words, bound: int) -> Ints:
    """Reduce words to integers in [0, bound); the bias of bound / 2^64 is negligible."""
    rest: Words = drawn % np.uint64(bound)
    return rest.astype(np.int64)


def one_way(num_peers: int, receivers: Ints, senders: Ints) -> Graph:
    """The graph in which receivers[k] hears senders[k]; repeats and self-loops are left out."""
    apart = receivers != senders
    keys = np.unique(receivers[apart] * num_peers + senders[apart])
    heard = (keys % num_peers).tolist()
    ends = np.searchsorted(keys, np.arange(num_peers + 1) * num_peers).tolist()
    return Graph(tuple(tuple(heard[a:b]) for a, b in pairwise(ends)))


def two_way(num_peers: int, left: Ints, right: Ints) -> Graph:
    """The graph in which left[k] and right[k] hear each other."""
    return one_way(num_peers, np.concatenate([left, right]), np.concatenate([right, left]))


def links_of(graph: Graph) -> tuple[Ints, Ints]:
    """Receivers and senders of all links, ascending: the inverse of `one_way`."""
    degrees = [len(heard) for heard in graph.senders]
    senders = np.fromiter(chain.from_iterable(graph.senders), np.int64, sum(degrees))
    return np.repeat(np.arange(graph.num_peers), degrees), senders


def complement(graph: Graph) -> Graph:
    """The graph of exactly the links that `graph` lacks."""
    everyone = frozenset(range(graph.num_peers))
    return Graph(
        tuple(
            tuple(sorted(everyone.difference(heard, (me,))))
            for me, heard in enumerate(graph.senders)
        )
    )


@lru_cache(maxsize=RECENT)
def empty(num_peers: int) -> Graph:
    """Nobody hears anybody."""
    return Graph(((),) * num_peers)


@lru_cache(maxsize=RECENT)
def complete(num_peers: int) -> Graph:
    """Everybody hears everybody else."""
    everyone = tuple(range(num_peers))

    def others(me: PeerId) -> Row:
        return everyone[:me] + everyone[me + 1 :]

    return Graph(
        Rows(
            num_peers=num_peers,
            senders_of=others,
            whole=lambda: tuple(map(others, everyone)),
            degree=num_peers - 1,
        )
    )


def closed_form(
    num_peers: int,
    senders_of: Callable[[PeerId], Iterable[int]],
    whole: Callable[[], Graph],
    receivers_of: Callable[[PeerId], Iterable[int]] | None = None,
    degree: int | None = None,
) -> Graph:
    """A graph whose rows follow from the peer alone, in any order; its own id is left out.

    The rest as for `Rows`.
    """

    def row(find: Callable[[PeerId], Iterable[int]], me: PeerId) -> Row:
        return tuple(sorted(set(find(me)) - {me}))

    return Graph(
        Rows(
            num_peers=num_peers,
            senders_of=lambda me: row(senders_of, me),
            receivers_of=(lambda me: row(receivers_of, me)) if receivers_of else None,
            whole=lambda: whole().senders,
            degree=degree,
        )
    )


_PAIRS = 1 << 19  # looked at together: arrays that a processor's cache holds


def of_pairs(num_peers: int, is_linked: Callable[[Ints, Ints], Flags]) -> Graph:
    """The graph of the pairs for which `is_linked` says so, given arrays of low and high ends.

    Links go both ways. A row takes num_peers of its answers.
    """
    everyone = np.arange(num_peers)
    step = max(1, _PAIRS // num_peers)

    def rows_of(peers: Sequence[PeerId]) -> Flags:
        mine = np.asarray(peers, dtype=np.int64)[:, None]
        linked = is_linked(np.minimum(mine, everyone), np.maximum(mine, everyone))
        linked &= mine != everyone
        return linked

    def degrees(peers: Sequence[PeerId]) -> list[int]:
        starts = range(0, len(peers), step)
        parts = (rows_of(peers[a : a + step]).sum(1).tolist() for a in starts)
        return list(chain.from_iterable(parts))

    def whole() -> tuple[Row, ...]:
        found = []
        for start in range(0, num_peers, step):
            mine, others = everyone[start : start + step, None], everyone[None, start:]
            linked = is_linked(np.minimum(mine, others), others) & (mine < others)
            found.append(np.array(np.nonzero(linked)) + start)
        left, right = np.concatenate(found, axis=1)
        return two_way(num_peers, left, right).senders

    return Graph(
        Rows(
            num_peers=num_peers,
            senders_of=lambda me: tuple(np.flatnonzero(rows_of([me])[0]).tolist()),
            whole=whole,
            in_degrees=degrees,
        )
    )


def require(holds: bool, message: str) -> None:
    """Raise ValueError(message) unless `holds`."""
    if not holds:
        raise ValueError(message)


def check_peers(num_peers: int) -> None:
    require(num_peers >= 1, f"num_peers must be at least 1, got {num_peers}")


def check_seed(seed: int) -> None:
    require(0 <= seed < 2**64, f"seed must be in [0, 2^64), got {seed}")


def check_share(name: str, value: float) -> None:
    require(0.0 <= value <= 1.0, f"{name} must be in [0, 1], got {value}")


def check_link(sender: int, receiver: int, num_peers: int, what: str = "edge") -> None:
    """Raise ValueError unless both ends are different peers of the run."""
    known = 0 <= sender < num_peers and 0 <= receiver < num_peers
    name = f"{what} {sender}-{receiver}"
    require(known, f"{name} is out of range for {num_peers} peers: ids are 0 to {num_peers - 1}")
    require(sender != receiver, f"{name} joins a peer to itself")
