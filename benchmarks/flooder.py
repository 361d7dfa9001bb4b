"""The hostile peer of `benchmarks.flood`, which starts and ends it: FILE ME OUT SECONDS.

It is a peer of the run like any other, in time with its own messages; while it waits for those of
others it sends them, on the same connections, as much else as they take. What, changes with time.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import zmq

from p2p_dml import config, wire
from p2p_dml.launchers.single import run_alone
from p2p_dml.peer import PeerLoop
from p2p_dml.transports.zeromq import ZeroMQTransport
from p2p_dml.types import Tag
from p2p_dml.wire import Kind, Slot

KINDS = ("quiet", "noise", "replayed", "ahead", "hellos", "large")
"""What is sent besides: nothing; frames that are no header; messages of round 0; messages of
exchanges to come; hellos; messages of 1 MB that are refused only when they have been read."""

_BURST_S = 0.005
_MEGABYTE = 1 << 20

Message = tuple[bytes, Sequence[zmq.Frame]]


def kind_at(now: float, seconds: float) -> str:
    """What is sent at a time (seconds since the epoch)."""
    return KINDS[int(now / seconds) % len(KINDS)]


def messages(peer: ZeroMQTransport, kind: str) -> Iterator[Message]:
    """Endless messages of a kind, as this peer would sign them."""
    sign, tag = peer.signature.header, peer._hands.tag
    block = [zmq.Frame(bytes(_MEGABYTE))] if kind == "large" else []
    slots = (Slot("x", "uint8", (_MEGABYTE,), 0, _MEGABYTE),) if kind == "large" else ()
    for i in itertools.count(1000):
        if kind == "noise":
            header = b"\xc1" * 200
        elif kind == "hellos":
            header = wire.encode_header(sign(Kind.HELLO, tag))
        else:
            place = Tag(tag.round, i) if kind == "ahead" else Tag(0)
            header = wire.encode_header(sign(Kind.ROUND, place, slots=slots))
        yield header, block


def main(file: str, me: str, out: str, seconds: str) -> None:
    """Take part in the run, and flood."""
    pump = ZeroMQTransport._pump

    def flood(self: ZeroMQTransport, timeout_s: float) -> None:
        kind = kind_at(time.time(), float(seconds))
        if kind == "quiet" or not self._hands._is_open:
            pump(self, timeout_s)
            return
        until = time.perf_counter() + _BURST_S
        for header, block in messages(self, kind):
            sent = [self._out.send(peer, header, block) for peer in self._out]
            if not any(sent) or time.perf_counter() > until:
                break
        pump(self, min(timeout_s, 0.0005))

    ZeroMQTransport._pump = flood  # type: ignore[method-assign]
    PeerLoop._pause = lambda self: None  # type: ignore[method-assign]
    run_alone(config.load(Path(file)), int(me), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
