"""Schedules made of schedules: links that fail, alternate, pause, end, freeze, or are all there.

Parts must be hashable, as functions and frozen dataclasses are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np

from p2p_dml.graph import PeerId, Row, Rows
from p2p_dml.links._graphs import (
    FEW,
    RECENT,
    Flags,
    Ints,
    check_seed,
    check_share,
    complete,
    empty,
    happens,
    links_of,
    one_way,
    require,
    words,
)
from p2p_dml.links._shuffles import pair_words
from p2p_dml.types import Graph, LinkSchedule


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """The links of `of`, each down with probability `p` at every tick, both directions together."""

    of: LinkSchedule
    p: float
    seed: int

    def __post_init__(self) -> None:
        check_share("p", self.p)
        check_seed(self.seed)

    def __call__(self, tick: int) -> Graph:
        return _thinned(self.of, self.p, self.seed, tick)


@lru_cache(maxsize=RECENT)
def _thinned(of: LinkSchedule, p: float, seed: int, tick: int) -> Graph:
    graph = of(tick)
    if graph.num_peers > FEW:
        return _thinned_by_pairs(graph, p, seed, tick)
    receivers, senders = links_of(graph)
    low, high = np.minimum(receivers, senders), np.maximum(receivers, senders)
    pairs, of_link = np.unique(low * graph.num_peers + high, return_inverse=True)
    up = ~happens(words(seed, tick, len(pairs)), p)[of_link]
    return one_way(graph.num_peers, receivers[up], senders[up])


def _thinned_by_pairs(graph: Graph, p: float, seed: int, tick: int) -> Graph:
    """What is drawn for a link follows from its ends: the other links need not be known."""
    first, second = words(seed, tick, 2).tolist()

    def are_up(one: Ints, other: Ints) -> Flags:
        low, high = np.minimum(one, other), np.maximum(one, other)
        return ~happens(pair_words(low, high, (first, second)), p)

    def thinned(me: PeerId, row: Row) -> Row:
        others = np.array(row, dtype=np.int64)
        return tuple(others[are_up(np.full_like(others, me), others)].tolist())

    def whole() -> tuple[Row, ...]:
        receivers, senders = links_of(graph)
        up = are_up(receivers, senders)
        return one_way(graph.num_peers, receivers[up], senders[up]).senders

    return Graph(
        Rows(
            num_peers=graph.num_peers,
            senders_of=lambda me: thinned(me, graph.senders_of(me)),
            receivers_of=None
            if graph.is_two_way
            else lambda me: thinned(me, graph.receivers_of(me)),
            whole=whole,
        )
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Alternating:
    """The `phases` in turn, `hold` ticks each, from the start again after the last.

    A phase's own clock runs only while it is on, so none of its ticks is skipped.
    """

    phases: tuple[LinkSchedule, ...]
    hold: int = 1

    def __post_init__(self) -> None:
        require(bool(self.phases), "phases must hold at least one schedule")
        require(self.hold >= 1, f"hold must be at least 1, got {self.hold}")
        sizes = {phase(0).num_peers for phase in self.phases}
        require(len(sizes) == 1, f"phases must have the same peers, got {sorted(sizes)}")

    def __call__(self, tick: int) -> Graph:
        turn, within = divmod(tick, self.hold)
        cycle, phase = divmod(turn, len(self.phases))
        return self.phases[phase](cycle * self.hold + within)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """Links only at ticks interval - 1, 2 interval - 1, …; nobody hears anybody in between.

    With one exchange per round this is local training for `interval` rounds, then one exchange.
    `of` counts only the ticks at which there are links.
    """

    of: LinkSchedule
    interval: int

    def __post_init__(self) -> None:
        require(self.interval >= 1, f"interval must be at least 1, got {self.interval}")

    def __call__(self, tick: int) -> Graph:
        count, rest = divmod(tick + 1, self.interval)
        return empty(self.of(0).num_peers) if rest else self.of(count - 1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """`of` before `at_tick`; from then on nobody hears anybody.

    With one exchange per round the rounds up to `at_tick` exchange and the others train alone:
    D-PSGD, say, then local fine-tuning.
    """

    of: LinkSchedule
    at_tick: int

    def __post_init__(self) -> None:
        require(self.at_tick >= 0, f"at_tick must be at least 0, got {self.at_tick}")

    def __call__(self, tick: int) -> Graph:
        return self.of(tick) if tick < self.at_tick else empty(self.of(0).num_peers)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FinallyComplete:
    """`of` before `at_tick`, the complete graph from then on.

    Source: Zhu et al. 2025, where one late exchange of everybody with everybody recovers most of
    what sparse links lose.
    """

    of: LinkSchedule
    at_tick: int

    def __post_init__(self) -> None:
        require(self.at_tick >= 0, f"at_tick must be at least 0, got {self.at_tick}")

    def __call__(self, tick: int) -> Graph:
        return self.of(tick) if tick < self.at_tick else complete(self.of(0).num_peers)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """The graph that `of` has at `at_tick`, at every tick."""

    of: LinkSchedule
    at_tick: int = 0

    def __post_init__(self) -> None:
        require(self.at_tick >= 0, f"at_tick must be at least 0, got {self.at_tick}")

    def __call__(self, tick: int) -> Graph:
        return self.of(self.at_tick)
