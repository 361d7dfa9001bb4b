"""One peer's loop over a transport that blocks: what runs in every process of a peer."""

from __future__ import annotations

import time
from collections.abc import Callable

from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.exchange import Delivery, Exchange
from p2p_dml.peer import PeerLoop
from p2p_dml.types import Mail, Transport, outbox_of


def drive(
    loop: PeerLoop,
    transport: Transport,
    straggler_s: float,
    on_round: Callable[[], None] = lambda: None,
) -> ExitCode:
    """Run a peer's loop over a blocking transport, to the end or to the first error.

    `on_round` is called when a round is mixed; it may stop the loop. Raises ConfigError if the
    transport is not elastic and a strategy does not send to exactly those that await it.
    """
    rounds = loop.run()
    delivery: Delivery | None = None
    mail: Mail | None = None
    while True:
        try:
            exchange = rounds.send(delivery)
        except StopIteration as end:
            code: ExitCode = end.value
            return code
        delivery = mail = None  # the last exchange's models may go before new ones come
        if exchange is None:
            on_round()
            continue
        if not transport.elastic:
            _check_receivers(loop.me, exchange)
        begin = time.perf_counter()
        transport.expect(exchange.upcoming)
        bytes_out = transport.post(exchange.tag, exchange.sent)
        sent = time.perf_counter()
        mail = transport.collect(exchange.awaited, exchange.senders, straggler_s)
        delivery = Delivery(mail, bytes_out, sent - begin, time.perf_counter() - sent)


def _check_receivers(me: int, exchange: Exchange) -> None:
    """Whoever awaits a message that is never sent would wait until the run breaks."""
    named, awaiting = sorted(outbox_of(exchange.sent)), sorted(exchange.receivers)
    if named != awaiting:
        raise ConfigError(
            f"peer {me}, round {exchange.tag.round}, exchange {exchange.tag.exchange}: the "
            f"strategy sends to peers {named}, and by the links {awaiting} await a message; send "
            'each of them one, if need be an empty Payload, or set transport.kind = "zeromq"'
        )
