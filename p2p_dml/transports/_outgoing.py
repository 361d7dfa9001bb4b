"""What a peer sends: one socket to all neighbours, and what waits for a connection or for room."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, final

import zmq

from p2p_dml import wire
from p2p_dml.addresses import is_here, is_ipv6, route_to
from p2p_dml.errors import StartupError
from p2p_dml.keys import Keys
from p2p_dml.transports import _curve
from p2p_dml.transports._sockets import monitor, send
from p2p_dml.types import PeerId

Block = Sequence[bytes | zmq.Frame]
Message = tuple[bytes, Block]
"""Header and block."""


class Parcel(Protocol):
    """Something to send, which may have to wait."""

    def to(self, peer: PeerId) -> Message:
        """What `peer` is sent."""
        ...

    def went(self, peer: PeerId) -> None:
        """Take note that libzmq has taken it."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Letter:
    """A parcel that is the same for everybody."""

    header: bytes
    block: Block = ()

    def to(self, peer: PeerId) -> Message:
        return self.header, self.block

    def went(self, peer: PeerId) -> None:
        """Nothing depends on it."""


FAILED_HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)


@dataclass(slots=True, kw_only=True)
class _Line:
    """The connection to one neighbour: its routing id, its end, and what waits for it."""

    route: bytes
    address: str
    waiting: deque[Parcel]
    moves: int = 0


@final
class Outgoing:
    """Connections to neighbours over one ROUTER; at most `depth` messages of each wait.

    Over `pulse`, another, goes nothing but heartbeats: behind a message that its receiver does not
    take, libzmq sends none.

    With `keys` they are encrypted, each to the holder of the neighbour's key.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        pulse: zmq.Socket[bytes],
        depth: int,
        keys: Keys | None = None,
    ) -> None:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        for each in (socket, pulse):
            each.setsockopt(zmq.RECONNECT_IVL, 20)
            each.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            if keys is not None:
                _curve.use(each, keys.own)
        self.socket = socket
        self._pulse = pulse
        self._depth = depth
        self._keys = keys
        self._lines: dict[PeerId, _Line] = {}

    def frame_bytes(self, peer: PeerId) -> int:
        """How long frames to `peer` may be: within a machine, unless they are encrypted, longer."""
        is_near = self._keys is None and is_here(self._lines[peer].address)
        return wire.MAX_NEAR_FRAME_BYTES if is_near else wire.MAX_FRAME_BYTES

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._lines

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._lines)

    def monitor(self) -> zmq.Socket[bytes]:
        """A socket that reports made, broken and refused connections."""
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
        return monitor(self.socket, events | sum(FAILED_HANDSHAKE))

    def pulse_monitor(self) -> zmq.Socket[bytes]:
        """A socket that reports whose heartbeats have stopped."""
        return monitor(self._pulse, zmq.EVENT_DISCONNECTED)

    def peer_at(self, address: str) -> PeerId | None:
        """To whom the connection goes that ends there."""
        return next((peer for peer, line in self._lines.items() if line.address == address), None)

    def is_current(self, peer: PeerId, route: bytes) -> bool:
        """Whether a reply came on the connection that is in use."""
        return self._lines[peer].route == route

    def connect(self, peer: PeerId, address: str) -> None:
        """Begin to connect; StartupError if the address cannot be one."""
        line = _Line(route=route_to(peer, 0), address=address, waiting=deque(maxlen=self._depth))
        self._lines[peer] = line
        self._connect(peer, line)

    def move(self, peer: PeerId, address: str) -> None:
        """Give up the connection to `peer` for one to where it is now. StartupError as above."""
        line = self._lines[peer]
        for each in (self.socket, self._pulse):
            with suppress(zmq.ZMQError):  # it was no address either
                each.disconnect(line.address)
        line.moves += 1
        # A route of its own: libzmq frees the old one at a time of its choice.
        line.route, line.address = route_to(peer, line.moves), address
        self._connect(peer, line)

    def _connect(self, peer: PeerId, line: _Line) -> None:
        self.socket.setsockopt(zmq.CONNECT_ROUTING_ID, line.route)
        try:
            for each in (self.socket, self._pulse):
                each.setsockopt(zmq.IPV6, is_ipv6(line.address))
                if self._keys is not None:
                    _curve.expect(each, self._keys.public[peer])
                each.connect(line.address)
        except zmq.ZMQError as error:
            raise StartupError(
                f"cannot use {line.address!r}, the address of peer {peer}: {error.strerror}; "
                "expected such as tcp://10.0.0.7:5803"
            ) from error

    def send(self, peer: PeerId, header: bytes, block: Block = ()) -> bool:
        """Hand a message to libzmq; False if the queue is full or nobody is connected."""
        try:
            send(self.socket, [self._lines[peer].route, header, *block])
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        return True

    def post(self, peer: PeerId, parcel: Parcel) -> bool:
        """The same of a parcel."""
        if not self.send(peer, *parcel.to(peer)):
            return False
        parcel.went(peer)
        return True

    def keep(self, peer: PeerId, parcel: Parcel) -> None:
        """Let it wait; the oldest that waits gives way."""
        self._lines[peer].waiting.append(parcel)

    def deliver(self, peer: PeerId, parcel: Parcel) -> None:
        """Send as soon as there is room; nothing that waits is overtaken."""
        if not (self.flush(peer) and self.post(peer, parcel)):
            self.keep(peer, parcel)

    def has_waiting(self, peer: PeerId) -> bool:
        return bool(self._lines[peer].waiting)

    def flush(self, peer: PeerId) -> bool:
        """Send what waits, oldest first; whether nothing is left."""
        waiting = self._lines[peer].waiting
        while waiting and self.post(peer, waiting[0]):
            waiting.popleft()
        return not waiting
