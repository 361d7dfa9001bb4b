"""Whom a peer comes to be linked to: each is a connection that stays open; and how they answer."""

from __future__ import annotations

from p2p_dml.types import LinkSchedule, PeerId


def acquaintances(schedule: LinkSchedule, me: PeerId, ticks: int, seen: int = 8) -> int:
    """To how many others `me` is linked in `ticks` ticks; from `seen` on an estimate.

    Where the second half of those brought nobody new, nobody is expected to come; else as many
    again in equal times, until all are known.
    """
    seen = min(seen, ticks)
    others: set[PeerId] = set()
    early = 0
    for tick in range(seen):
        graph = schedule(tick)
        others |= {*graph.senders_of(me), *graph.receivers_of(me)}
        if tick < (seen + 1) // 2:
            early = len(others)
    if len(others) == early:
        return early
    return min(schedule(0).num_peers - 1, -(-len(others) * ticks // seen))


def is_two_way(schedule: LinkSchedule, me: PeerId, ticks: int) -> bool:
    """Whether `me` hears exactly those who hear it, in each of the first `ticks` ticks."""
    graphs = map(schedule, range(ticks))
    return all(g.is_two_way or {*g.senders_of(me)} == {*g.receivers_of(me)} for g in graphs)
