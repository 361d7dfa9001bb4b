"""The gate of an encrypted socket: listed keys get in, and whoever does not is counted and named.

A thread answers libzmq's questions (ZAP, ZeroMQ RFC 27) and reads its reports of connections: the
peer's own thread may train for minutes, and neighbours must get in meanwhile. pyzmq's own handler
(`zmq.auth`) would answer as well, with an event loop; it tells refusals to `logging` only, names no
address, and hears nothing of connections that end before a key was shown.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from typing import final

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from p2p_dml.transports._sockets import THIS_MACHINE, Frames, monitor, plain_address, receive
from p2p_dml.types import PeerId

NOT_LISTED = "showed a key that is not among those of the run's peers"
NO_HANDSHAKE = "did not complete the handshake: no key, or silence"
WRONG_HANDSHAKE = "made a handshake without a key, or not with this peer's"
BROKEN_OFF = "was cut off or left before it showed a key: not a peer, or over the limit of sizes"

_ZAP = "inproc://zeromq.zap.01"
_STOP = "inproc://p2p_dml.gate"
_MAX_KINDS = 1000
_SOMEWHERE = "an unknown address"

_FAILURES: Mapping[int, str | None] = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: NO_HANDSHAKE,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: WRONG_HANDSHAKE,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: None,  # by the answer of the gate
}


@final
class Ledger:
    """Who was turned away, from what libzmq reports of connections; pure.

    Its reports of how a handshake went do not say on which connection; the next one to end is it.
    Of connections that end without a report, those that were let in from the same address are not
    told from others: so many are not counted. Nor do reports say where a connection comes from: it
    is asked while it lasts, and who is gone within a millisecond may have no address.
    """

    def __init__(self) -> None:
        self._address_of: dict[int, str] = {}
        self._failed: list[str | None] = []
        self._let_in: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()

    def accepted(self, descriptor: int, address: str) -> None:
        self._address_of[descriptor] = address

    def let_in(self, address: str) -> None:
        self._let_in[address] += 1

    def failed(self, why: str | None) -> None:
        """A handshake did not succeed; None: why is known already."""
        self._failed.append(why)

    def ended(self, descriptor: int) -> tuple[str, str] | None:
        """Address and reason, if it was not a peer's and is not known already."""
        address = self._address_of.pop(descriptor, _SOMEWHERE)
        if self._failed:
            why = self._failed.pop(0)
            return (address, why) if why else None
        self._ended[address] += 1
        is_foreign = self._ended[address] > self._let_in[address]
        return (address, BROKEN_OFF) if is_foreign else None


@final
class Gate:
    """Guards one socket, which takes connections of the holders of listed keys only.

    To be made before the socket is bound; the only one of its context.
    """

    def __init__(self, guarded: zmq.Socket[bytes], public: Mapping[PeerId, str]) -> None:
        context = guarded.context
        self._holders = {z85.decode(key.encode()): b"%d" % peer for peer, key in public.items()}
        self._ledger = Ledger()
        self._lock = threading.Lock()
        self._refusals: Counter[str] = Counter()
        self._asked = context.socket(zmq.REP)
        self._asked.bind(_ZAP)
        self._reports = monitor(
            guarded, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | sum(_FAILURES)
        )
        self._stop, self._stopped = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        self._stopped.bind(_STOP)
        self._stop.connect(_STOP)
        self._thread = threading.Thread(target=self._serve, name="gate", daemon=True)
        self._thread.start()

    def holder(self, frame: zmq.Frame) -> PeerId:
        """Whose key the connection showed on which a frame came."""
        return int(frame.get("User-Id"))

    def take(self) -> Mapping[str, int]:
        """Who was turned away and why, in words, and how often, since the last call."""
        with self._lock:
            taken, self._refusals = self._refusals, Counter()
        return taken

    def close(self) -> None:
        """End the thread; idempotent."""
        if not self._stop.closed:
            self._stop.send(b"")
            self._thread.join()
            self._stop.close()

    def _serve(self) -> None:
        mine = self._asked, self._reports, self._stopped
        poller = zmq.Poller()
        for each in mine:
            poller.register(each, zmq.POLLIN)
        while not self._stopped.poll(0):
            poller.poll()
            while report := receive(self._reports):
                self._on_report(report)
            while question := receive(self._asked):
                self._answer(question)
        for each in mine:
            each.close(linger=0)

    def _answer(self, question: Frames) -> None:
        version, number, _, address, _, mechanism, *credentials = (x.bytes for x in question)
        holder = self._holders.get(credentials[0]) if mechanism == b"CURVE" else None
        place = plain_address(address.decode())
        if holder is None:
            self._count(place, NOT_LISTED)
            answer = [version, number, b"400", b"not listed", b"", b""]
        else:
            self._ledger.let_in(place)
            answer = [version, number, b"200", b"", holder, b""]
        self._asked.send_multipart(answer)

    def _on_report(self, frames: Frames) -> None:
        report = parse_monitor_message([frame.bytes for frame in frames])
        if report["event"] == zmq.EVENT_ACCEPTED:
            self._ledger.accepted(report["value"], _address_of(report["value"]))
        elif report["event"] == zmq.EVENT_DISCONNECTED:
            if refusal := self._ledger.ended(report["value"]):
                self._count(*refusal)
        else:
            self._ledger.failed(_FAILURES[report["event"]])

    def _count(self, address: str, why: str) -> None:
        with self._lock:
            who = "somebody" if len(self._refusals) >= _MAX_KINDS else address
            self._refusals[f"{who} {why}"] += 1


def _address_of(descriptor: int) -> str:
    """Where a connection comes from. It may have ended, and its descriptor be another's, by now."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as line:
            name = line.getpeername()
    except OSError:
        return _SOMEWHERE
    return plain_address(name[0]) if isinstance(name, tuple) else THIS_MACHINE
