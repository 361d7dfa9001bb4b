"""The plan: which peers go wrong in a run, in which round, at which point of it, and how."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final, get_args

import numpy as np
from torch import Tensor

from p2p_dml import tables
from p2p_dml.config import FaultConfig, FaultKind, FaultPhase, RunConfig
from p2p_dml.errors import ConfigError
from p2p_dml.events import Injected, read_events
from p2p_dml.tensors import tmap
from p2p_dml.types import Coded, Graph, Outbox, Payload, PeerId, Sent, outbox_of

PHASES: tuple[FaultPhase, ...] = get_args(FaultPhase)

_ONLY_IN: Mapping[FaultKind, tuple[FaultPhase, ...]] = {
    "nan": ("train", "send"),
    "full_disk": ("checkpoint",),
    "read_only": ("checkpoint",),
}
"""Phases of the kinds that are not possible in all."""

_STREAM = 0x4641554C  # keeps the draw of faulty peers apart from other uses of the seed
_DIGITS = 9  # centralities that differ by rounding are equal


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of one peer; due at the first `phase` of `round` or later, once in a run.

    `place`: of its entry in the run file. `for_s`: how long a stop or a hang lasts.
    """

    place: int
    round: int
    phase: FaultPhase
    kind: FaultKind
    for_s: float = 1.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Peers that are not named: a `share` of all, drawn, or so many of the `most_central`.

    Central `by` degree (links in and out) or betweenness, in the graph of the first round; of
    equals the lower id. Raises ValueError unless one of the two is given, in its range.
    """

    share: float | None = None
    most_central: int | None = None
    by: Literal["degree", "betweenness"] = "degree"

    def __post_init__(self) -> None:
        if (self.share is None) == (self.most_central is None):
            raise ValueError("share, most_central: expected one of them")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share = {self.share}: expected more than 0, at most 1")
        if self.most_central is not None and self.most_central < 1:
            raise ValueError(f"most_central = {self.most_central}: expected at least 1")

    def peers(self, graph: Graph, seed: int, place: int) -> list[PeerId]:
        """Who that is, ascending; `place` tells several draws of one seed apart."""
        if self.share is not None:
            return _drawn(graph.num_peers, self.share, seed, place)
        scores = _CENTRALITIES[self.by](graph)
        ranked = sorted(scores, key=lambda peer: (-scores[peer], peer))
        return sorted(ranked[: self.most_central])


def _drawn(num_peers: int, share: float, seed: int, place: int) -> list[PeerId]:
    words = np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 0, place]).random_raw(num_peers)
    chosen: list[PeerId] = np.argsort(words, kind="stable")[: round(share * num_peers)].tolist()
    return sorted(chosen)


def _degrees(graph: Graph) -> dict[PeerId, float]:
    return {i: len(graph.senders[i]) + len(graph.receivers[i]) for i in range(graph.num_peers)}


def _betweenness(graph: Graph) -> dict[PeerId, float]:
    import networkx as nx  # takes a tenth of a second, and few runs need it

    links: nx.DiGraph[PeerId] = nx.DiGraph()
    links.add_nodes_from(range(graph.num_peers))
    links.add_edges_from((j, i) for i, heard in enumerate(graph.senders) for j in heard)
    return {i: round(x, _DIGITS) for i, x in nx.betweenness_centrality(links).items()}


_CENTRALITIES: Mapping[str, Callable[[Graph], dict[PeerId, float]]] = {
    "degree": _degrees,
    "betweenness": _betweenness,
}


def plan(config: RunConfig, graph: Graph) -> dict[PeerId, tuple[Fault, ...]]:
    """The faults of each peer that has any, in the order of the run file.

    `graph`: of the first round. Raises ConfigError with the path in the run file.
    """
    found: dict[PeerId, list[Fault]] = defaultdict(list)
    for place, entry in enumerate(config.faults):
        where = f"faults[{place}]"
        _check_phase(entry, where)
        for peer in _peers_of(entry, config, graph, place, where):
            found[peer].append(
                Fault(
                    place=place,
                    round=entry.round,
                    phase=entry.phase,
                    kind=entry.kind,
                    for_s=entry.for_s,
                )
            )
    return {peer: tuple(found[peer]) for peer in sorted(found)}


def _check_phase(entry: FaultConfig, where: str) -> None:
    phases = _ONLY_IN.get(entry.kind, PHASES)
    if entry.phase not in phases:
        raise ConfigError(
            f"{where}.phase: a fault of kind {entry.kind!r} happens in the phase "
            f"{' or '.join(phases)}, found {entry.phase!r}"
        )


def _peers_of(
    entry: FaultConfig, config: RunConfig, graph: Graph, place: int, where: str
) -> Collection[PeerId]:
    if isinstance(entry.peers, Mapping):
        chosen = tables.build(Chosen, entry.peers, f"{where}.peers")
        return chosen.peers(graph, config.seed, place)
    for peer in entry.peers:
        if not 0 <= peer < config.peers:
            raise ConfigError(
                f"{where}.peers: expected peers 0 to {config.peers - 1}, found {peer}"
            )
    return sorted(set(entry.peers))


@final
class Agenda:
    """What of one peer's plan is still to be done."""

    def __init__(self, faults: Sequence[Fault], log: Path) -> None:
        """`log`: the peer's, which says what earlier incarnations have been through."""
        lines = read_events(log) if log.exists() else ()
        done = {line["fault"] for line in lines if line["event"] == "injected"}
        self._open = [fault for fault in faults if fault.place not in done]

    def take(self, round: int, phase: FaultPhase) -> Fault | None:
        """The first that is due, which is then done; None if there is none."""
        due = (each for each in self._open if each.round <= round and each.phase == phase)
        fault = next(due, None)
        if fault is not None:
            self._open.remove(fault)
        return fault


def injected(fault: Fault, round: int) -> Injected:
    """What the log says right before a fault."""
    return Injected(round, fault.phase, fault.kind, fault.place)


# ---- what becomes of messages -----------------------------------------------------------------


def halves(sent: Sent) -> tuple[Sent, Sent]:
    """The same for the first half of the receivers, the larger one, and for the others."""
    outbox = outbox_of(sent)
    receivers = sorted(outbox)
    middle = (len(receivers) + 1) // 2
    first, rest = receivers[:middle], receivers[middle:]
    return _with(sent, {j: outbox[j] for j in first}), _with(sent, {j: outbox[j] for j in rest})


def spoilt(sent: Sent) -> Sent:
    """The same with NaN for every number that can be one."""
    return _with(sent, {peer: _spoilt(payload) for peer, payload in outbox_of(sent).items()})


def _with(sent: Sent, outbox: Outbox) -> Sent:
    return replace(sent, outbox=outbox) if isinstance(sent, Coded) else outbox


def _spoilt(payload: Payload) -> Payload:
    return replace(payload, tensors=tmap(nan_like, payload.tensors))


def nan_like(x: Tensor) -> Tensor:
    """NaN in the shape of `x`; `x` itself if its type has none."""
    return x.new_full(x.shape, float("nan")) if x.is_floating_point() else x
