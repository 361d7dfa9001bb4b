"""What a schedule is like over many ticks: degrees, connectivity, speed of agreement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

from p2p_dml.kernels.mixing import is_doubly_stochastic, mixing_matrix, spectral_gap
from p2p_dml.links._graphs import require
from p2p_dml.types import Graph, LinkSchedule, MixingRule, PeerId


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Figures of a schedule under a mixing rule over ticks 0 … ticks - 1.

    A peer's degree is the number of peers it hears; `density` is links over possible links;
    `isolated_share` the mean share of peers that hear nobody; `connected_share` the share of
    ticks whose graph is (strongly) connected. `union_connected_after` is the number of ticks
    after which all links seen so far connect everybody, None if they never do. Gaps are those of
    `kernels.mixing.spectral_gap`, per tick and for the product of all ticks.
    """

    num_peers: int
    ticks: int
    degree_mean: float
    degree_min: int
    degree_max: int
    density: float
    isolated_share: float
    is_static: bool
    is_symmetric: bool
    is_doubly_stochastic: bool
    connected_share: float
    union_connected_after: int | None
    gap_mean: float
    gap_min: float
    gap_product: float


def survey(schedule: LinkSchedule, rule: MixingRule, ticks: int) -> Survey:
    """Look at the first `ticks` graphs; dense linear algebra, meant for some 100 peers.

    Raises ValueError if the mixing rule does not fit a graph.
    """
    require(ticks >= 1, f"ticks must be at least 1, got {ticks}")
    graphs = [schedule(tick) for tick in range(ticks)]
    degrees = [len(heard) for graph in graphs for heard in graph.senders]
    num_peers = graphs[0].num_peers
    seen = {graph: _look(graph, rule) for graph in dict.fromkeys(graphs)}
    looks = [seen[graph] for graph in graphs]
    gaps = [look.gap for look in looks]
    return Survey(
        num_peers=num_peers,
        ticks=ticks,
        degree_mean=fmean(degrees),
        degree_min=min(degrees),
        degree_max=max(degrees),
        density=fmean(degrees) / max(num_peers - 1, 1),
        isolated_share=fmean(degree == 0 for degree in degrees),
        is_static=len(seen) == 1,
        is_symmetric=all(graph.is_symmetric for graph in seen),
        is_doubly_stochastic=all(look.is_doubly_stochastic for look in looks),
        connected_share=fmean(look.is_connected for look in looks),
        union_connected_after=_union_connected_after(graphs),
        gap_mean=fmean(gaps),
        gap_min=min(gaps),
        gap_product=spectral_gap(mixing_matrix(graph, rule) for graph in graphs),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    gap: float
    is_doubly_stochastic: bool
    is_connected: bool


def _look(graph: Graph, rule: MixingRule) -> _Look:
    matrix = mixing_matrix(graph, rule)
    return _Look(
        gap=spectral_gap(matrix),
        is_doubly_stochastic=is_doubly_stochastic(matrix),
        is_connected=is_connected(graph),
    )


def is_connected(graph: Graph) -> bool:
    """Whether every peer's news reaches every other peer (strongly connected)."""
    return _reaches_all(graph.senders) and _reaches_all(graph.receivers)


def _reaches_all(neighbours: Sequence[Iterable[PeerId]]) -> bool:
    seen, frontier = {0}, [0]
    while frontier:
        fresh = set(neighbours[frontier.pop()]) - seen
        seen |= fresh
        frontier += fresh
    return len(seen) == len(neighbours)


def _union_connected_after(graphs: Sequence[Graph]) -> int | None:
    union: list[set[PeerId]] = [set() for _ in graphs[0].senders]
    for count, graph in enumerate(graphs, start=1):
        for mine, heard in zip(union, graph.senders, strict=True):
            mine.update(heard)
        if is_connected(Graph(tuple(tuple(sorted(mine)) for mine in union))):
            return count
    return None
