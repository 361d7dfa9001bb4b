"""One peer's way along a link schedule, exchange by exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from p2p_dml.links._graphs import SHARED_STREAM, check_seed, require, words
from p2p_dml.types import Graph, LinkSchedule, MixingRule, Neighbourhood, PeerId, Tag


@final
class Walk:
    """What peer `me` sees of `schedule` under `rule`; satisfies `types.Links`.

    The graph changes with every exchange, not only with every round: with E exchanges per round,
    exchange e of round r (rounds count from 1, ticks from 0) is tick (r - 1) E + e. Nothing but
    the tag is remembered, so a restarted or late peer sees what the others see.
    """

    def __init__(
        self,
        schedule: LinkSchedule,
        rule: MixingRule,
        me: PeerId,
        seed: int,
        exchanges: int = 1,
    ) -> None:
        """Start at round 1. `seed` is the run's; `exchanges` per round, 0 counted as 1."""
        check_seed(seed)
        num_peers = schedule(0).num_peers
        require(0 <= me < num_peers, f"peer {me} is out of range for {num_peers} peers")
        require(exchanges >= 0, f"exchanges must be at least 0, got {exchanges}")
        self._schedule = schedule
        self._rule = rule
        self.me = me
        self.seed = seed
        self._exchanges = max(exchanges, 1)
        self.seek(Tag(1))

    def seek(self, tag: Tag) -> None:
        """Go to an exchange: `now` becomes its neighbourhood."""
        self._tag = tag
        self._now: Neighbourhood | None = None

    def advance(self) -> None:
        """Go to the next exchange; after the last of a round, the first of the next round."""
        rounds, exchange = divmod(self.tick + 1, self._exchanges)
        self.seek(Tag(rounds + 1, exchange))

    @property
    def tag(self) -> Tag:
        """The exchange that `now` is the neighbourhood of."""
        return self._tag

    @property
    def tick(self) -> int:
        """The schedule's tick of this exchange."""
        return self._tick_of(self._tag)

    def _tick_of(self, tag: Tag) -> int:
        return (tag.round - 1) * self._exchanges + tag.exchange

    @property
    def graph(self) -> Graph:
        """The whole graph of this exchange."""
        return self._schedule(self.tick)

    @property
    def now(self) -> Neighbourhood:
        """The neighbourhood of this exchange.

        Raises ValueError if the mixing rule does not fit the graph.
        """
        if self._now is None:
            self._now = self.at(self._tag)
        return self._now

    def at(self, tag: Tag) -> Neighbourhood:
        """The neighbourhood of any exchange, without going there; errors as for `now`."""
        return self._rule(self._schedule(self._tick_of(tag)), self.me)

    def shared_bits(self, stream: int, count: int) -> Sequence[int]:
        """`count` random 64-bit words, the same at every peer in this exchange.

        They depend on the seed, the tick and `stream` (below 2^62), not on peer or schedule.
        """
        drawn: list[int] = words(self.seed, self.tick, count, SHARED_STREAM + stream).tolist()
        return drawn
