"""One peer's loop over a transport that blocks: what runs in every process of a peer."""

from __future__ import annotations

import time

from p2p_dml.errors import ExitCode
from p2p_dml.peer import Delivery, PeerLoop
from p2p_dml.types import Mail, Transport


def drive(loop: PeerLoop, transport: Transport, straggler_s: float) -> ExitCode:
    """Run a peer's loop over a blocking transport, to the end or to the first error."""
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
            continue
        begin = time.perf_counter()
        transport.expect(exchange.upcoming)
        bytes_out = transport.post(exchange.tag, exchange.outbox)
        sent = time.perf_counter()
        mail = transport.collect(exchange.tag, exchange.senders, straggler_s)
        delivery = Delivery(mail, bytes_out, sent - begin, time.perf_counter() - sent)
