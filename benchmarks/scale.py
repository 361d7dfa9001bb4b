"""What grows with the number of peers, computed and not guessed. Three tables.

python -m benchmarks.scale [--peers 1000,10000,100000] [--params 7850] [--heartbeat-s 5]

Schedule: processor time of one peer per round to know its neighbours (the graph drawn, its links
turned round, its mixing weights), and the size of one graph. Consensus: rounds of nothing but
mixing until the distance of the peers' values to their mean is a thousandth, on the very graphs
and weights of a run. Traffic: what one peer sends in a round, and its heartbeats.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from p2p_dml import links
from p2p_dml.kernels.mixing import RULES
from p2p_dml.links._graphs import links_of
from p2p_dml.types import Graph, LinkSchedule

Ints = NDArray[np.int64]
Floats = NDArray[Any]

KINDS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "ring": ({"kind": "ring"}, "metropolis"),
    "4-regular, drawn once": (
        {"kind": "static", "of": {"kind": "k_regular", "degree": 4}},
        "metropolis",
    ),
    "4-regular, redrawn": ({"kind": "k_regular", "degree": 4}, "metropolis"),
    "one random partner": ({"kind": "random_matching"}, "metropolis"),
    "exponential": ({"kind": "exponential"}, "push_uniform"),
    "one peer, exponential": ({"kind": "one_peer_exponential"}, "push_uniform"),
}
MOST_ROUNDS = 300
FIRST_TICK, TICKS = 1, 3
HEARTBEAT_BYTES = 9 + 7
"""A ZMTP 3.1 PING without context and its PONG: flags, size, name, the PING's time to live."""
HEARTBEATS = 3  # in the time after which silence is a loss; on each of two connections


def main(
    peers: str = "1000,10000,100000",
    params: Annotated[int, typer.Option(min=1)] = 7850,
    heartbeat_s: Annotated[float, typer.Option(min=0.1)] = 5.0,
) -> None:
    console = Console(width=110)
    schedule = Table("peers", "links", "neighbours", "ms per round", "MB of a graph")
    consensus = Table("peers", "links", "rounds to a thousandth")
    traffic = Table("peers", "links", "sent per round, kB", "heartbeats, bytes per s")
    for num_peers in map(int, peers.split(",")):
        for name, (table, rule) in KINDS.items():
            links_now = links.build(table, num_peers, 0, Path())
            graph = links_now(FIRST_TICK)
            degree = graph.num_links / num_peers
            row = (f"{num_peers:,}", name)
            cost_ms = schedule_ms(table, num_peers, rule)
            schedule.add_row(*row, f"{degree:g}", f"{cost_ms:.3g}", f"{graph_mb(graph):.3g}")
            rounds = rounds_to_consensus(links_now, num_peers)
            consensus.add_row(*row, str(rounds) if rounds else f"over {MOST_ROUNDS}")
            beats = degree * 2 * HEARTBEATS * HEARTBEAT_BYTES / heartbeat_s
            traffic.add_row(*row, f"{degree * params * 4 / 1e3:.4g}", f"{beats:.3g}")
    for each in (schedule, consensus, traffic):
        console.print(each)


def schedule_ms(table: Mapping[str, Any], num_peers: int, rule: str) -> float:
    """Processor milliseconds of one peer to know its neighbours in a new round; median.

    A graph that never changes costs something in the first round alone, which is not counted.
    """
    schedule = links.build(table, num_peers, 1, Path())
    weigh = RULES[rule]
    weigh(schedule(0), 0)
    return 1e3 * statistics.median(
        _cpu_s(lambda tick=tick: weigh(schedule(tick), 5))  # type: ignore[misc]
        for tick in range(FIRST_TICK, FIRST_TICK + TICKS)
    )


def _cpu_s(act: Callable[[], object]) -> float:
    begin = time.process_time()
    act()
    return time.process_time() - begin


def graph_mb(graph: Graph) -> float:
    """Megabytes of a graph with its links turned round, not counting numbers that Python keeps."""
    rows = (*graph.senders, *graph.receivers)
    return (sum(map(sys.getsizeof, rows)) + 2 * sys.getsizeof(graph.senders)) / 1e6


def rounds_to_consensus(schedule: LinkSchedule, num_peers: int) -> int | None:
    """Rounds until 16 random values per peer are a thousandth as far from their means.

    W by Metropolis on links both ways, else each takes the plain mean with all it hears: the
    graphs used here are regular, so both keep the mean. None if `MOST_ROUNDS` are not enough.
    """
    values = np.random.Philox(key=[1, num_peers]).random_raw(16 * num_peers)
    x: Floats = ((values >> 11) * 2.0**-53).reshape(num_peers, 16)
    aim = _distance(x) / 1000
    last: Graph | None = None
    for done in range(1, MOST_ROUNDS + 1):
        graph = schedule(done - 1)
        if graph is not last:
            receivers, senders, weights, own = _weights(graph)
            last = graph
        mixed: Floats = own[:, None] * x
        for column in range(x.shape[1]):
            mixed[:, column] += np.bincount(
                receivers, weights * x[senders, column], minlength=num_peers
            )
        x = mixed
        if _distance(x) <= aim:
            return done
    return None


def _weights(graph: Graph) -> tuple[Ints, Ints, Floats, Floats]:
    """Receivers, senders and weights of all links, and each peer's weight on itself."""
    receivers, senders = links_of(graph)
    degrees = np.bincount(receivers, minlength=graph.num_peers)
    weights = 1 / (1 + np.maximum(degrees[receivers], degrees[senders]))
    own: Floats = 1.0 - np.bincount(receivers, weights, minlength=graph.num_peers)
    return receivers, senders, weights, own


def _distance(x: Floats) -> float:
    return float(np.sqrt(((x - x.mean(axis=0)) ** 2).sum()))


if __name__ == "__main__":
    typer.run(main)
