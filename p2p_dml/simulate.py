"""All peers in one process: in lock step, or each at its own pace on a clock of its own.

In lock step this is the bit-exact oracle of synchronous runs on real processes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol, final

from p2p_dml.errors import ExitCode
from p2p_dml.exchange import Delivery, Exchange
from p2p_dml.pace import VirtualClock
from p2p_dml.types import PeerId, Tag, Transport

Rounds = Generator[Exchange | None, Delivery | None, ExitCode]


class Loop(Protocol):
    """One peer's rounds, as `p2p_dml.peer.PeerLoop` runs them."""

    def run(self) -> Rounds: ...


def lockstep(
    loops: Sequence[Loop],
    transports: Sequence[Transport],
    clocks: Sequence[VirtualClock] = (),
    on_exchange: Callable[[], None] = lambda: None,
) -> list[ExitCode]:
    """Run every peer's loop exchange by exchange; returns their exit codes, in order.

    Every peer posts an exchange before any collects it, so nothing ever waits and every run of the
    same configuration is the same bit for bit. All have mixed a round before any goes on, so that
    what comes next can be computed for all of them at once. With `clocks`, one per peer, a peer's
    clock waits for those of the neighbours it hears.
    """
    codes = [ExitCode.DONE] * len(loops)
    rounds = [loop.run() for loop in loops]
    deliveries: list[Delivery | None] = [None] * len(loops)
    running = list(range(len(loops)))
    posted: dict[tuple[Tag, PeerId], float] = {}
    while running:
        exchanges: dict[int, tuple[Exchange, int]] = {}
        waiting = []
        for i in running:
            step = _advance(rounds[i], deliveries[i])
            deliveries[i] = None
            if isinstance(step, ExitCode):
                codes[i] = step
                continue
            waiting.append(i)
            if step is not None:
                exchanges[i] = step, transports[i].post(step.tag, step.sent)
        if clocks and exchanges:
            oldest = min(exchange.awaited for exchange, _ in exchanges.values())
            posted = {key: at for key, at in posted.items() if key[0] >= oldest}
            posted |= {(step.tag, i): clocks[i].now() for i, (step, _) in exchanges.items()}
        for i, (exchange, bytes_out) in exchanges.items():
            if clocks:
                _wait(clocks[i], posted, exchange)
            mail = transports[i].collect(exchange.awaited, exchange.senders, 0.0)
            wait_s = clocks[i].now() - posted[exchange.tag, i] if clocks else 0.0
            deliveries[i] = Delivery(mail, bytes_out, wait_s=wait_s)
        running = waiting
        on_exchange()
    return codes


def free_running(
    loops: Sequence[Loop],
    transports: Sequence[Transport],
    clocks: Sequence[VirtualClock],
    on_exchange: Callable[[], None] = lambda: None,
) -> list[ExitCode]:
    """Run every peer's loop at the pace of its clock; returns their exit codes, in order.

    What happens next is what is next in time; messages take none. At equal times all peers post
    before any collects, and go in order: every run is the same bit for bit, and peers of equal pace
    do what they do in lock step.
    """
    agenda = _Agenda(loops, clocks)
    while due := agenda.due():
        exchanges = {i: exchange for i, exchange in due.items() if exchange is not None}
        sent = {i: transports[i].post(each.tag, each.sent) for i, each in exchanges.items()}
        for i, exchange in due.items():
            delivery = None
            if exchange is not None:
                mail = transports[i].collect(exchange.awaited, exchange.senders, 0.0)
                delivery = Delivery(mail, sent[i])
            if not agenda.go_on(i, delivery) and agenda.codes[i] is not ExitCode.FAILED:
                transports[i].close()  # who is killed takes no leave
        on_exchange()
    return agenda.codes


@final
class _Agenda:
    """What each peer does next, and when."""

    def __init__(self, loops: Sequence[Loop], clocks: Sequence[VirtualClock]) -> None:
        self.codes = [ExitCode.DONE] * len(loops)
        self._rounds = [loop.run() for loop in loops]
        self._clocks = clocks
        self._next: dict[int, Exchange | None] = {}
        self._times: list[tuple[float, int]] = []
        for i in range(len(loops)):
            self.go_on(i, None)

    def due(self) -> dict[int, Exchange | None]:
        """What the peers do that are next in time, ascending; empty at the end."""
        first = self._times[0][0] if self._times else 0.0
        peers = []
        while self._times and self._times[0][0] == first:
            peers.append(heapq.heappop(self._times)[1])
        return {i: self._next[i] for i in peers}

    def go_on(self, i: int, delivery: Delivery | None) -> bool:
        """Let a peer run to its next exchange; False if it has finished."""
        step = _advance(self._rounds[i], delivery)
        if isinstance(step, ExitCode):
            self.codes[i] = step
            return False
        self._next[i] = step
        heapq.heappush(self._times, (self._clocks[i].now(), i))
        return True


def _wait(
    clock: VirtualClock, posted: Mapping[tuple[Tag, PeerId], float], exchange: Exchange
) -> None:
    """Let a clock wait for what its senders have posted of what it awaits."""
    awaited = [(exchange.awaited, j) for j in exchange.senders]
    last = max((posted[key] for key in awaited if key in posted), default=0.0)
    clock.sleep(last - clock.now())


def _advance(rounds: Rounds, delivery: Delivery | None) -> Exchange | ExitCode | None:
    try:
        return rounds.send(delivery)
    except StopIteration as end:
        code: ExitCode = end.value
        return code
