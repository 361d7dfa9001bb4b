"""Schedules written down link by link: a fixed list of edges, or a trace of links over time."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, final

import numpy as np

from p2p_dml.links._graphs import (
    RECENT,
    Ints,
    check_link,
    check_peers,
    empty,
    links_of,
    one_way,
    require,
    two_way,
)
from p2p_dml.types import Graph, LinkSchedule, PeerId

HEADER = ("from", "to", "up", "down")
Row = tuple[PeerId, PeerId, int, int]
AtEnd = Literal["repeat", "hold", "empty"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Exactly the listed links, at every tick.

    An edge [a, b] links both ways; with `directed`, a sends and b hears.
    """

    num_peers: int
    edges: tuple[tuple[PeerId, PeerId], ...]
    directed: bool = False
    _graph: Graph = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        for sender, receiver in self.edges:
            check_link(sender, receiver, self.num_peers)
        ends = np.array(self.edges, dtype=np.int64).reshape(-1, 2)
        object.__setattr__(self, "_graph", _drawn(self.num_peers, ends, self.directed))

    def __call__(self, tick: int) -> Graph:
        return self._graph


def _drawn(num_peers: int, ends: Ints, directed: bool) -> Graph:
    """The graph of `ends` [links, 2]: senders, receivers."""
    senders, receivers = ends.T
    return (one_way if directed else two_way)(num_peers, receivers, senders)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Links as they were recorded: each row is a link that is up at ticks up <= tick < down.

    A row (from, to, up, down) links both ways; with `directed`, `from` sends and `to` hears. The
    trace lasts `ticks` (default: until the last link goes down). Then it starts again ("repeat"),
    keeps its last graph ("hold") or has no links ("empty").
    """

    num_peers: int
    rows: tuple[Row, ...] = field(hash=False)
    ticks: int | None = None
    at_end: AtEnd = "repeat"
    directed: bool = False
    _table: Ints = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_peers(self.num_peers)
        require(self.ticks is None or self.ticks >= 1, f"ticks must be >= 1, got {self.ticks}")
        require(bool(self.rows), "a trace needs at least one link")
        for row in self.rows:
            _check_row(row, self.num_peers)
        table = np.array(self.rows, dtype=np.int64).reshape(-1, 4)
        object.__setattr__(self, "_table", table)

    @property
    def length(self) -> int:
        """Number of recorded ticks."""
        return self.ticks or int(self._table[:, 3].max())

    def __call__(self, tick: int) -> Graph:
        if tick < self.length:
            return _at(self, tick)
        if self.at_end == "empty":
            return empty(self.num_peers)
        return _at(self, tick % self.length if self.at_end == "repeat" else self.length - 1)

    def graph_at(self, tick: int) -> Graph:
        """The recorded graph of a tick below `length`, drawn from the rows."""
        up, down = self._table[:, 2], self._table[:, 3]
        ends = self._table[(up <= tick) & (tick < down), :2]
        return _drawn(self.num_peers, ends, self.directed)


def _check_row(row: Row, num_peers: int) -> None:
    sender, receiver, up, down = row
    check_link(sender, receiver, num_peers, "link")
    times = f"link {sender}-{receiver} must have 0 <= up < down, got up {up}, down {down}"
    require(0 <= up < down, times)


@lru_cache(maxsize=RECENT)
def _at(trace: Trace, tick: int) -> Graph:
    return trace.graph_at(tick)


def record(schedule: LinkSchedule, ticks: int) -> Trace:
    """Write down the first `ticks` graphs of a schedule; the trace equals it on those."""
    graphs = [schedule(tick) for tick in range(ticks)]
    directed = not all(graph.is_symmetric for graph in graphs)
    rows = tuple(sorted(_intervals(graphs, directed)))
    return Trace(num_peers=graphs[0].num_peers, rows=rows, ticks=ticks, directed=directed)


def _intervals(graphs: Iterable[Graph], directed: bool) -> Iterator[Row]:
    up_since: dict[tuple[PeerId, PeerId], int] = {}
    ticks = 0
    for tick, graph in enumerate(graphs):
        now = _ends(graph, directed)
        for sender, receiver in up_since.keys() - now:
            yield sender, receiver, up_since.pop((sender, receiver)), tick
        up_since.update(dict.fromkeys(now - up_since.keys(), tick))
        ticks = tick + 1
    for (sender, receiver), up in up_since.items():
        yield sender, receiver, up, ticks


def _ends(graph: Graph, directed: bool) -> set[tuple[PeerId, PeerId]]:
    receivers, senders = (ends.tolist() for ends in links_of(graph))
    pairs = zip(senders, receivers, strict=True)
    return {(a, b) for a, b in pairs if directed or a < b}


def write_trace(trace: Trace, path: Path) -> None:
    """Write the rows as CSV with the header `from,to,up,down`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(trace.rows)


def read_trace(
    *,
    num_peers: int,
    file: str,
    folder: Path,
    ticks: int | None = None,
    at_end: AtEnd = "repeat",
    directed: bool = False,
) -> Trace:
    """Read the trace in the CSV `file`, relative to `folder`; the rest as for `Trace`.

    Raises ValueError with the file and, for a bad row, its line.
    """
    try:
        lines = (folder / file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read trace {file}: {error}") from error
    rows = tuple(_parsed(lines, num_peers, file))
    return Trace(num_peers=num_peers, rows=rows, ticks=ticks, at_end=at_end, directed=directed)


def _parsed(lines: list[str], num_peers: int, name: str) -> Iterator[Row]:
    header = ",".join(HEADER)
    first = lines[0].strip() if lines else "an empty file"
    require(first == header, f"{name} line 1: expected the header {header}, found {first}")
    for number, cells in enumerate(csv.reader(lines[1:]), start=2):
        try:
            sender, receiver, up, down = map(int, cells)
            _check_row((sender, receiver, up, down), num_peers)
        except ValueError as error:
            hint = "" if len(cells) == len(HEADER) else f" (expected {len(HEADER)} whole numbers)"
            raise ValueError(f"{name} line {number}: {error}{hint}") from error
        yield sender, receiver, up, down
