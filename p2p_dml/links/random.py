"""Random schedules: graphs redrawn every tick, and random graphs that stay.

Every graph is a function of (seed, tick) alone; the static ones always use tick 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from typing import final

import numpy as np

from p2p_dml.links._graphs import (
    FEW,
    RECENT,
    Ints,
    below,
    check_peers,
    check_seed,
    check_share,
    happens,
    of_pairs,
    one_way,
    require,
    shuffled,
    two_way,
    words,
)
from p2p_dml.links._lifts import is_lifted, lift
from p2p_dml.links._regular import regular_graph
from p2p_dml.links._shuffles import pair_words
from p2p_dml.types import Graph


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomMatching:
    """Disjoint pairs, drawn anew every tick; one peer is left out if their number is odd."""

    num_peers: int
    seed: int

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        check_seed(self.seed)

    def __call__(self, tick: int) -> Graph:
        return _matching(self.num_peers, self.seed, tick)


@lru_cache(maxsize=RECENT)
def _matching(num_peers: int, seed: int, tick: int) -> Graph:
    if is_lifted(num_peers, 1):
        return lift(num_peers, 1, seed, tick, directed=False)
    order = shuffled(words(seed, tick, num_peers))
    half = num_peers // 2
    return two_way(num_peers, order[:half], order[half : 2 * half])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ErdosRenyi:
    """Each pair is linked with probability `density`, drawn anew every tick.

    A row takes num_peers words, which follow from the pair. Source: Gilbert 1959, G(n, p).
    """

    num_peers: int
    density: float
    seed: int

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        check_share("density", self.density)
        check_seed(self.seed)

    def __call__(self, tick: int) -> Graph:
        return _erdos_renyi(self.num_peers, self.density, self.seed, tick)


@lru_cache(maxsize=RECENT)
def _erdos_renyi(num_peers: int, density: float, seed: int, tick: int) -> Graph:
    if num_peers > FEW:
        first, second = words(seed, tick, 2).tolist()
        return of_pairs(
            num_peers,
            lambda low, high: happens(pair_words(low, high, (first, second)), density),
        )
    left, right = _pairs(num_peers)
    up = happens(words(seed, tick, len(left)), density)
    return two_way(num_peers, left[up], right[up])


@lru_cache(maxsize=2)
def _pairs(num_peers: int) -> tuple[Ints, Ints]:
    left, right = np.triu_indices(num_peers, 1)
    return left, right


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KRegular:
    """Every peer has exactly `degree` neighbours, drawn anew every tick."""

    num_peers: int
    degree: int
    seed: int

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        check_seed(self.seed)
        in_range = 0 <= self.degree < self.num_peers
        require(in_range, f"degree must be in [0, {self.num_peers - 1}], got {self.degree}")
        require(
            self.num_peers * self.degree % 2 == 0,
            f"peers x degree must be even, got {self.num_peers} peers of degree {self.degree}",
        )

    def __call__(self, tick: int) -> Graph:
        return _k_regular(self.num_peers, self.degree, self.seed, tick)


@lru_cache(maxsize=RECENT)
def _k_regular(num_peers: int, degree: int, seed: int, tick: int) -> Graph:
    draw = lift if is_lifted(num_peers, degree) else regular_graph
    return draw(num_peers, degree, seed, tick, directed=False)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Epidemic:
    """Every peer sends to `fanout` random others, drawn anew every tick; directed.

    `regular`: everybody is also heard from by exactly `fanout` (EL-Oracle, without the oracle:
    all peers draw the same graph); otherwise each peer chooses on its own (EL-Local) and the
    number of messages received varies. Source: de Vos et al. 2023, algorithms 1 and 2.
    """

    num_peers: int
    fanout: int
    seed: int
    regular: bool = True

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        check_seed(self.seed)
        in_range = 0 <= self.fanout < self.num_peers
        require(in_range, f"fanout must be in [0, {self.num_peers - 1}], got {self.fanout}")

    def __call__(self, tick: int) -> Graph:
        draw = _epidemic_regular if self.regular else _epidemic_local
        return draw(self.num_peers, self.fanout, self.seed, tick)


@lru_cache(maxsize=RECENT)
def _epidemic_regular(num_peers: int, fanout: int, seed: int, tick: int) -> Graph:
    draw = lift if is_lifted(num_peers, fanout) else regular_graph
    return draw(num_peers, fanout, seed, tick, directed=True)


@lru_cache(maxsize=RECENT)
def _epidemic_local(num_peers: int, fanout: int, seed: int, tick: int) -> Graph:
    drawn = words(seed, tick, num_peers * fanout).reshape(num_peers, fanout)
    ahead = np.empty((num_peers, fanout), dtype=np.int64)
    # Floyd's sampling without replacement (Bentley and Floyd 1987), all peers at a time.
    for k in range(fanout):
        newest = num_peers - 1 - fanout + k
        pick = below(drawn[:, k], newest + 1)
        taken = (ahead[:, :k] == pick[:, None]).any(1)
        ahead[:, k] = np.where(taken, newest, pick)
    senders = np.repeat(np.arange(num_peers), fanout)
    return one_way(num_peers, (senders + 1 + ahead.ravel()) % num_peers, senders)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SmallWorld:
    """A ring linked to the `degree` nearest, each link moved with probability `rewire`; static.

    A moved link keeps its first end and gets a random second one. High `rewire` can leave peers
    disconnected. Source: Watts and Strogatz 1998.
    """

    num_peers: int
    degree: int
    rewire: float
    seed: int

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        check_seed(self.seed)
        check_share("rewire", self.rewire)
        fits = 2 <= self.degree < self.num_peers and self.degree % 2 == 0
        limit = f"degree must be even and in [2, {self.num_peers - 1}]"
        require(fits, f"{limit}, got {self.degree}")

    def __call__(self, tick: int) -> Graph:
        return _small_world(self.num_peers, self.degree, self.rewire, self.seed)


@lru_cache(maxsize=RECENT)
def _small_world(num_peers: int, degree: int, rewire: float, seed: int) -> Graph:
    heard: list[set[int]] = [
        {(i + hop) % num_peers for hop in range(-degree // 2, degree // 2 + 1) if hop}
        for i in range(num_peers)
    ]
    left = np.tile(np.arange(num_peers), degree // 2)
    right = (left + np.repeat(np.arange(1, degree // 2 + 1), num_peers)) % num_peers
    moves = happens(words(seed, 0, len(left), 0), rewire)
    picks = words(seed, 0, len(left), 1)[moves].tolist()
    for i, j, pick in zip(left[moves].tolist(), right[moves].tolist(), picks, strict=True):
        taken = sorted({*heard[i], i})
        if len(taken) < num_peers:
            new = _free(pick % (num_peers - len(taken)), taken)
            heard[i].remove(j)
            heard[j].remove(i)
            heard[i].add(new)
            heard[new].add(i)
    return Graph(tuple(tuple(sorted(row)) for row in heard))


def _free(index: int, taken: Sequence[int]) -> int:
    """The peer at `index` of those that are not `taken` (which ascend)."""
    for each in taken:
        index += each <= index
    return index


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BarabasiAlbert:
    """Peers join one by one, linked to `attach` earlier ones in proportion to degree; static.

    Starts from a star of attach + 1 peers; always connected, with a few hubs. Source: Barabási
    and Albert 1999.
    """

    num_peers: int
    attach: int
    seed: int

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        check_seed(self.seed)
        in_range = 1 <= self.attach < self.num_peers
        require(in_range, f"attach must be in [1, {self.num_peers - 1}], got {self.attach}")

    def __call__(self, tick: int) -> Graph:
        return _barabasi_albert(self.num_peers, self.attach, self.seed)


@lru_cache(maxsize=RECENT)
def _barabasi_albert(num_peers: int, attach: int, seed: int) -> Graph:
    drawn = _endless_words(seed)
    left, right = [0] * attach, list(range(1, attach + 1))
    # A peer stands here once per link end, so a uniform pick is in proportion to degree.
    ends = left + right
    for new in range(attach + 1, num_peers):
        picks = (ends[word % len(ends)] for word in drawn)
        chosen = list(islice(_distinct(picks), attach))
        left += chosen
        right += [new] * attach
        ends += chosen + [new] * attach
    return two_way(num_peers, np.array(left), np.array(right))


def _endless_words(seed: int) -> Iterator[int]:
    for stream in count():
        yield from words(seed, 0, 256, stream).tolist()


def _distinct(values: Iterator[int]) -> Iterator[int]:
    seen: set[int] = set()
    for value in values:
        if value not in seen:
            seen.add(value)
            yield value
