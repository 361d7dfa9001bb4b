"""How long rounds take with more peers than one machine has room for: a clock for each, vectorised.

Every peer is a machine of its own. In a round it works, sends to its neighbours one after another,
waits for what its own neighbours have sent in the same round, and takes it in; nothing else is
waited for. That is what `p2p_dml.simulate.lockstep` does with virtual clocks, for all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from p2p_dml.links._graphs import links_of
from p2p_dml.types import Graph, LinkSchedule

Floats = NDArray[np.float64]

_STREAM = 0x50415045  # keeps the draws of jitter apart from other uses of the seed


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Processor seconds of one peer: of any round, of each message sent and each received (mixed
    in, too), of each byte of it, and of a local step.
    """

    round_s: float
    message_s: float
    byte_s: float
    step_s: float

    def exchange_s(self, num_bytes: int) -> float:
        """With one neighbour: a message to it and one from it."""
        return 2 * (self.message_s + self.byte_s * num_bytes)

    def round_of(self, neighbours: float, num_bytes: int, steps: int = 0) -> float:
        """Of a round with so many neighbours, messages of `num_bytes`, and local steps."""
        return self.round_s + steps * self.step_s + neighbours * self.exchange_s(num_bytes)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Of all links: seconds that a message travels; megabits per second that leave a peer.

    `jitter`: local work takes longer by a share drawn exponentially with this mean, each round.
    """

    latency_s: float = 0.01
    mbps: float = 100.0
    jitter: float = 0.2

    def upload_s(self, num_bytes: int) -> float:
        return num_bytes * 8e-6 / self.mbps


def round_ends(
    schedule: LinkSchedule,
    rounds: int,
    work_s: Callable[[int], Floats],
    send_s: float,
    latency_s: float,
    receive_s: float,
) -> Floats:
    """When each peer has done each round, [rounds, peers], one exchange per round.

    `work_s(tick)`: of each peer before it sends; `send_s` and `receive_s`: of each message.
    """
    ends: list[Floats] = []
    last: Graph | None = None
    for tick in range(rounds):
        graph = schedule(tick)
        if graph is not last:
            last, (receivers, senders) = graph, links_of(graph)
            out_degrees = np.bincount(senders, minlength=graph.num_peers)
            in_degrees = np.bincount(receivers, minlength=graph.num_peers)
        begun = ends[-1] if ends else np.zeros(graph.num_peers)
        posted = begun + work_s(tick) + out_degrees * send_s
        heard = posted.copy()
        np.maximum.at(heard, receivers, posted[senders] + latency_s)
        ends.append(heard + in_degrees * receive_s)
    return np.array(ends)


def round_s(
    schedule: LinkSchedule,
    rounds: int,
    costs: Costs,
    conditions: Conditions,
    num_bytes: int,
    steps: int,
    seed: int = 0,
) -> float:
    """Seconds per round: those until the last peer has done all `rounds`, by their number."""
    num_peers = schedule(0).num_peers
    message_s = costs.exchange_s(num_bytes) / 2

    def work_s(tick: int) -> Floats:
        local_s = costs.round_s + steps * costs.step_s
        return local_s * (1 + conditions.jitter * _exponential(seed, tick, num_peers))

    send_s = message_s + conditions.upload_s(num_bytes)
    ends = round_ends(schedule, rounds, work_s, send_s, conditions.latency_s, message_s)
    return float(ends[-1].max()) / rounds


def _exponential(seed: int, tick: int, count: int) -> Floats:
    drawn = np.random.Philox(key=[seed + _STREAM, tick]).random_raw(count)
    uniform = (drawn >> np.uint64(11)) * 2.0**-53
    exponential: Floats = -np.log1p(-uniform)
    return exponential
