"""What grows with the number of peers, computed and not guessed. Three tables.

python -m benchmarks.scale [--peers 1000,10000,100000] [--params 7850] [--steps 1]
    [--latency-ms 10] [--mbps 100] [--jitter 0.2]

Schedule: processor time of one peer per round to know its neighbours and mixing weights; that of
drawing the whole graph, as simulations do, and its size. Traffic: what one peer sends in a round,
and heartbeats. Consensus: rounds of nothing but mixing until the distance of the peers' values to
their mean is a thousandth, on the very graphs and weights of a run; how long a round takes if every
peer is a machine of its own (`benchmarks.on_paper`), with processor times measured here and now
(`benchmarks.costs`) and latency, bandwidth and jitter as given; and the product of both.
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

from benchmarks.costs import in_words, measure
from benchmarks.on_paper import Conditions, round_s
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
MOST_TIMED = 30
FIRST_TICK, TICKS, WHOLE_TICKS = 1, 30, 3
BEAT_BYTES = 9 + 7
"""A ZMTP 3.1 PING without context and its PONG: flags, size, name, the PING's time to live."""
HEARTBEATS = 3  # in the time after which silence is a loss; on each of two connections
HEARTBEAT_S = 5.0  # the default where each peer has a machine of its own, and few neighbours


def main(
    peers: str = "1000,10000,100000",
    params: Annotated[int, typer.Option(min=1)] = 7850,
    steps: Annotated[int, typer.Option(min=0)] = 1,
    latency_ms: Annotated[float, typer.Option(min=0)] = 10.0,
    mbps: Annotated[float, typer.Option(min=0.001)] = 100.0,
    jitter: Annotated[float, typer.Option(min=0)] = 0.2,
) -> None:
    console = Console(width=110)
    costs = measure(params)
    console.print(in_words(costs))
    conditions = Conditions(latency_s=latency_ms / 1e3, mbps=mbps, jitter=jitter)
    schedule = Table("peers", "links", "neighbours", "row, ms", "whole graph, ms", "MB")
    traffic = Table("peers", "links", "sent per round, kB", "heartbeats per s", "bytes per s")
    consensus = Table("peers", "links", "rounds to 1/1000", "ms per round", "seconds to 1/1000")
    for num_peers in map(int, peers.split(",")):
        for name, (table, rule) in KINDS.items():
            links_now = links.build(table, num_peers, 0, Path())
            degree = links_now(FIRST_TICK).num_links / num_peers
            row = (f"{num_peers:,}", name)
            own, whole, size = schedule_costs(table, num_peers, rule)
            schedule.add_row(*row, f"{degree:g}", f"{own:.2g}", f"{whole:.3g}", f"{size:.3g}")
            beats = degree * 2 * HEARTBEATS / HEARTBEAT_S
            sent_kb = degree * params * 4 / 1e3
            traffic.add_row(*row, f"{sent_kb:.4g}", f"{beats:.3g}", f"{beats * BEAT_BYTES:.3g}")
            rounds = rounds_to_consensus(links_now, num_peers)
            timed = min(rounds or MOST_ROUNDS, MOST_TIMED)
            seconds = round_s(links_now, timed, costs, conditions, params * 4, steps)
            words = str(rounds) if rounds else f"over {MOST_ROUNDS}"
            total = f"{rounds * seconds:.3g}" if rounds else f"over {MOST_ROUNDS * seconds:.3g}"
            consensus.add_row(*row, words, f"{seconds * 1e3:.3g}", total)
    for each in (schedule, traffic, consensus):
        console.print(each)


def schedule_costs(
    table: Mapping[str, Any], num_peers: int, rule: str
) -> tuple[float, float, float]:
    """Processor milliseconds of a peer's own row, and of the whole graph; megabytes of that.

    Medians over rounds. A graph that never changes costs something in the first round alone, which
    is not counted.
    """
    schedule = links.build(table, num_peers, 1, Path())
    weigh = RULES[rule]
    weigh(schedule(0), 5)
    own_s, whole_s = [], []
    for tick in range(FIRST_TICK, FIRST_TICK + TICKS):
        own_s.append(_cpu_s(lambda tick=tick: weigh(schedule(tick), 5)))  # type: ignore[misc]
    for tick in range(FIRST_TICK, FIRST_TICK + WHOLE_TICKS):
        graph = schedule(tick)
        whole_s.append(_cpu_s(lambda graph=graph: graph.senders))  # type: ignore[misc]
    whole_mb = graph_mb(schedule(FIRST_TICK))
    return 1e3 * statistics.median(own_s), 1e3 * statistics.median(whole_s), whole_mb


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
