"""The sockets of a peer: how they are set up, and how they are read without waiting."""

from __future__ import annotations

import zmq

from p2p_dml import wire

Frames = list[zmq.Frame]


def router(
    context: zmq.Context[zmq.Socket[bytes]],
    queue_messages: int,
    max_message_bytes: int,
    heartbeat_s: float,
) -> zmq.Socket[bytes]:
    """A ROUTER with bounded queues for each peer and direction, limits and heartbeats."""
    each = context.socket(zmq.ROUTER)
    each.setsockopt(zmq.LINGER, 0)
    each.setsockopt(zmq.SNDHWM, queue_messages)
    each.setsockopt(zmq.RCVHWM, queue_messages)
    each.setsockopt(zmq.MAXMSGSIZE, max(max_message_bytes, wire.MAX_HEADER_BYTES))
    heartbeat_ms = int(heartbeat_s * 1000)
    each.setsockopt(zmq.HEARTBEAT_IVL, max(1, heartbeat_ms // 3))
    each.setsockopt(zmq.HEARTBEAT_TIMEOUT, heartbeat_ms)
    return each


def receive(each: zmq.Socket[bytes]) -> Frames:
    """The next message of a socket, empty if there is none."""
    try:
        return each.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return []
