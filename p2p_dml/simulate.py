"""All peers in one process, in lock step: the bit-exact oracle of runs on real processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from p2p_dml.errors import ExitCode
from p2p_dml.peer import Delivery, Exchange, PeerLoop
from p2p_dml.types import Transport

Rounds = Generator[Exchange | None, Delivery | None, ExitCode]


def lockstep(
    loops: Sequence[PeerLoop],
    transports: Sequence[Transport],
    on_exchange: Callable[[], None] = lambda: None,
) -> list[ExitCode]:
    """Run every peer's loop exchange by exchange; returns their exit codes, in order.

    Every peer posts an exchange before any collects it, so nothing ever waits and every run of the
    same configuration is the same bit for bit. All have mixed a round before any goes on, so that
    what comes next can be computed for all of them at once.
    """
    codes = [ExitCode.DONE] * len(loops)
    rounds = [loop.run() for loop in loops]
    deliveries: list[Delivery | None] = [None] * len(loops)
    running = list(range(len(loops)))
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
                exchanges[i] = step, transports[i].post(step.tag, step.outbox)
        for i, (exchange, bytes_out) in exchanges.items():
            mail = transports[i].collect(exchange.tag, exchange.senders, 0.0)
            deliveries[i] = Delivery(mail, bytes_out)
        running = waiting
        on_exchange()
    return codes


def _advance(rounds: Rounds, delivery: Delivery | None) -> Exchange | ExitCode | None:
    try:
        return rounds.send(delivery)
    except StopIteration as end:
        code: ExitCode = end.value
        return code
