"""What a peer sends: one socket to all neighbours, and what waits for a connection or for room."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import final

import zmq

from p2p_dml.errors import StartupError
from p2p_dml.transports._addresses import route_to
from p2p_dml.types import PeerId


@final
class Outgoing:
    """Connections to neighbours over one ROUTER; at most `depth` messages of each wait."""

    def __init__(self, socket: zmq.Socket[bytes], depth: int) -> None:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self.socket = socket
        self._depth = depth
        self._waiting: dict[PeerId, deque[tuple[bytes, zmq.Frame]]] = {}

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._waiting

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._waiting)

    def monitor(self) -> zmq.Socket[bytes]:
        """A socket that reports made, broken and refused connections."""
        return self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
        )

    def connect(self, peer: PeerId, address: str) -> None:
        """Begin to connect; StartupError if the address cannot be one."""
        self._waiting[peer] = deque(maxlen=self._depth)
        self.socket.setsockopt(zmq.CONNECT_ROUTING_ID, route_to(peer))
        try:
            self.socket.connect(address)
        except zmq.ZMQError as error:
            raise StartupError(
                f"cannot use {address!r}, the address of peer {peer}: {error.strerror}; expected "
                "such as tcp://10.0.0.7:5803"
            ) from error

    def send(self, peer: PeerId, header: bytes, block: zmq.Frame | None = None) -> bool:
        """Hand a message to libzmq; False if the queue is full or nobody is connected."""
        frames: list[bytes | zmq.Frame] = [route_to(peer), header]
        if block is not None:
            frames.append(block)
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        return True

    def keep(self, peer: PeerId, header: bytes, block: zmq.Frame) -> None:
        """Let a message wait; the oldest that waits gives way."""
        self._waiting[peer].append((header, block))

    def has_waiting(self, peer: PeerId) -> bool:
        return bool(self._waiting[peer])

    def flush(self, peer: PeerId) -> bool:
        """Send what waits, oldest first; whether nothing is left."""
        waiting = self._waiting[peer]
        while waiting and self.send(peer, *waiting[0]):
            waiting.popleft()
        return not waiting
