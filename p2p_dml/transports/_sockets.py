"""The sockets of a peer: how they are set up, and how they are read without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import zmq

from p2p_dml import wire

Frames = list[zmq.Frame]

THIS_MACHINE = "this machine"

# As numbers: sums of pyzmq's own flags cost more than to send a short frame.
_NOW, _NOW_MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK) | int(zmq.SNDMORE)

_ENCRYPTION_BYTES = 1024
"""More than encryption adds to a frame."""

_BACKLOG = 1024
"""Connections that the kernel holds until libzmq takes them: a flood must not fill it at once."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times and sizes of a ZeroMQ transport; `[transport]` of a run file.

    `resend`: so many of the newest messages that a neighbour's full queue did not take are kept
    and sent when there is room; 0: they are dropped. `handshake_s`: a connection that is not ready
    by then is ended. `patience`: deadlines in a row that a neighbour may miss, see `Liveness`.
    `shared_memory`: whether peers of one machine hand each other payloads in it.
    """

    startup_s: float = 60.0
    heartbeat_s: float = 3.0
    drain_s: float = 0.02
    patience: int = 3
    linger_s: float = 5.0
    handshake_s: float = 10.0
    queue_messages: int = 4
    resend: int = 0
    max_message_bytes: int = 1 << 30
    shared_memory: bool = True


def router(
    context: zmq.Context[zmq.Socket[bytes]],
    limits: Limits,
    *,
    pings: bool = True,
    frame_bytes: int = wire.MAX_FRAME_BYTES,
) -> zmq.Socket[bytes]:
    """A ROUTER with bounded queues for each peer and direction, limits and heartbeats.

    `frame_bytes`: the longest frame of a block that it takes.

    `pings` False: it answers the heartbeats of others and has none of its own, as must be where
    the queue may be full: libzmq up to 4.3.5 would abort the whole process there when a connection
    breaks (its issues 3937, 4364 and 4767). The kernel then finds out who is gone.
    """
    each = context.socket(zmq.ROUTER)
    each.setsockopt(zmq.LINGER, 0)
    each.setsockopt(zmq.SNDHWM, limits.queue_messages)
    each.setsockopt(zmq.RCVHWM, limits.queue_messages)
    # What libzmq makes room for as soon as somebody, anybody, announces it.
    most = max(wire.MAX_HEADER_BYTES, frame_bytes) + _ENCRYPTION_BYTES
    each.setsockopt(zmq.MAXMSGSIZE, most)
    each.setsockopt(zmq.BACKLOG, _BACKLOG)
    each.setsockopt(zmq.HANDSHAKE_IVL, max(1, int(limits.handshake_s * 1000)))
    if pings:
        heartbeat_ms = int(limits.heartbeat_s * 1000)
        each.setsockopt(zmq.HEARTBEAT_IVL, max(1, heartbeat_ms // 3))
        each.setsockopt(zmq.HEARTBEAT_TIMEOUT, heartbeat_ms)
    else:
        seconds = max(1, round(limits.heartbeat_s / 3))
        each.setsockopt(zmq.TCP_KEEPALIVE, 1)
        each.setsockopt(zmq.TCP_KEEPALIVE_IDLE, seconds)
        each.setsockopt(zmq.TCP_KEEPALIVE_INTVL, seconds)
        each.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    return each


def monitor(each: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """A socket that reports what happens to the connections of `each`."""
    address = f"inproc://monitor-{id(each)}"
    each.monitor(address, events)
    reports: zmq.Socket[bytes] = each.context.socket(zmq.PAIR)
    # No bound: where nobody reads for long, libzmq would wait, and with it all connections.
    reports.setsockopt(zmq.RCVHWM, 0)
    reports.connect(address)
    return reports


def receive(each: zmq.Socket[bytes]) -> Frames:
    """The next message of a socket, empty if there is none."""
    try:
        frames = [each.recv(_NOW, copy=False)]
    except zmq.Again:
        return []
    while frames[-1].more:
        frames.append(each.recv(_NOW, copy=False))
    return frames


def send(each: zmq.Socket[bytes], frames: Sequence[bytes | zmq.Frame]) -> None:
    """Send a message without waiting. Raises zmq.ZMQError, before anything of it has gone."""
    for frame in frames[:-1]:
        each.send(frame, _NOW_MORE, copy=not isinstance(frame, zmq.Frame))
    each.send(frames[-1], _NOW, copy=not isinstance(frames[-1], zmq.Frame))


def plain_address(found: str) -> str:
    """An address that libzmq found as people write it; of Unix sockets it has user and process."""
    if found.startswith("localhost:"):
        return THIS_MACHINE
    return found.removeprefix("::ffff:")  # IPv4 by a socket of IPv6
