"""What comes to a peer: one bound socket, its gate if there are keys, and the answers it gives.

Nobody can keep a peer reading: it takes so many messages at a time, of all connections in turn, and
of one on which it has refused many in a second the others are thrown away unread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import final

import numpy as np
import zmq
from numpy.typing import NDArray

from p2p_dml import wire
from p2p_dml.addresses import is_ipv6, to_listen_on
from p2p_dml.errors import WireError
from p2p_dml.keys import Keys
from p2p_dml.transports import _curve
from p2p_dml.transports._sockets import Frames, plain_address, receive
from p2p_dml.transports._zap import Gate
from p2p_dml.types import PeerId
from p2p_dml.wire import Header

AT_A_TIME = 64
"""Messages that are read before the peer looks at what else there is to do."""

REFUSED_PER_S = 100
"""Refusals and hellos of one connection after which nothing more of it is read in that second."""


@final
class Incoming:
    """The connections that others make; messages are told with whose key theirs has shown."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        keys: Keys | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.socket = socket
        self._clock = clock
        self._refused: Counter[bytes] = Counter()  # by contact, in this second
        self._second = 0
        self._gate: Gate | None = None
        if keys is not None:
            _curve.accept(socket, keys.own)
            self._gate = Gate(socket, keys.public)

    def listen(self, address: str) -> str:
        """Listen on `address`; returns it with the port that was taken. May raise zmq.ZMQError."""
        numeric = to_listen_on(address)
        self.socket.setsockopt(zmq.IPV6, is_ipv6(numeric))
        self.socket.bind(numeric)
        return self.socket.get_string(zmq.LAST_ENDPOINT)

    def read(self) -> Iterator[Frames]:
        """What is there, at most AT_A_TIME; contact, header and block, if it is of this runtime."""
        for _ in range(AT_A_TIME):
            if not (frames := receive(self.socket)):
                return
            if self._refused[frames[0].bytes] < REFUSED_PER_S or self._is_over():
                yield frames

    def count(self, contact: bytes) -> bool:
        """Note a refusal, or a hello, of this connection; whether they were too many now."""
        self._is_over()
        self._refused[contact] += 1
        return self._refused[contact] == REFUSED_PER_S

    def _is_over(self) -> bool:
        """Whether another second has begun; then all connections are as they were."""
        second = int(self._clock())
        if second == self._second:
            return False
        self._second = second
        self._refused.clear()
        return True

    def holder(self, frames: Frames) -> PeerId | None:
        """Whose key the connection has shown on which a message came; None without keys."""
        return self._gate.holder(frames[-1]) if self._gate else None

    def answer(self, contact: bytes, *frames: bytes) -> None:
        """Reply on a connection; dropped silently if it is gone, which is fine."""
        self.socket.send_multipart([contact, *frames], zmq.NOBLOCK)

    def turned_away(self) -> Mapping[str, int]:
        """Who got no further than the gate since the last call, and why; how often each."""
        return self._gate.take() if self._gate else {}

    def close(self) -> None:
        """To be called before the context is closed."""
        if self._gate:
            self._gate.close()


def decode(frames: Frames, max_block_bytes: int) -> tuple[Header, NDArray[np.uint8]]:
    """Header and block of a message of `Incoming.read`. Raises WireError."""
    if len(frames) == 1:
        raise WireError("no header")
    parts = [np.frombuffer(frame.buffer, dtype=np.uint8) for frame in frames[2:] if len(frame)]
    parts = parts or [np.empty(0, dtype=np.uint8)]
    num_bytes = sum(part.size for part in parts)
    if num_bytes > max_block_bytes:
        raise WireError(f"block of {num_bytes} bytes, limit {max_block_bytes}")
    if len(frames) - 2 > 1 + num_bytes // wire.MAX_FRAME_BYTES:
        raise WireError(f"{len(frames) - 1} frames for a block of {num_bytes} bytes")
    block = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return wire.decode_header(frames[1].buffer, max_block_bytes), block


def origin(frames: Frames) -> str:
    """Where a message came from, to be added to a sentence; nothing if libzmq does not know."""
    try:
        return f" (from {plain_address(str(frames[-1].get('Peer-Address')))})"
    except zmq.ZMQError:
        return ""
