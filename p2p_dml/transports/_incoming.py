"""What comes to a peer: one bound socket, its gate if there are keys, and the answers it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

import numpy as np
import zmq

from p2p_dml import wire
from p2p_dml.errors import WireError
from p2p_dml.keys import Keys
from p2p_dml.transports import _curve
from p2p_dml.transports._addresses import is_ipv6, to_listen_on
from p2p_dml.transports._sockets import Frames, plain_address, receive
from p2p_dml.transports._zap import Gate
from p2p_dml.types import Payload, PeerId
from p2p_dml.wire import Header


@final
class Incoming:
    """The connections that others make; messages are told with whose key theirs has shown."""

    def __init__(self, socket: zmq.Socket[bytes], keys: Keys | None) -> None:
        self.socket = socket
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
        """All messages that are there; contact, header and block, if it is one of this runtime."""
        while frames := receive(self.socket):
            yield frames

    def holder(self, frames: Frames) -> PeerId | None:
        """Whose key the connection has shown on which a message came; None without keys."""
        return self._gate.holder(frames[-1]) if self._gate else None

    def answer(self, contact: bytes, header: Header) -> None:
        """Reply on a connection; dropped silently if it is gone, which is fine."""
        self.socket.send_multipart([contact, wire.encode_header(header)], zmq.NOBLOCK)

    def turned_away(self) -> Mapping[str, int]:
        """Who got no further than the gate since the last call, and why; how often each."""
        return self._gate.take() if self._gate else {}

    def close(self) -> None:
        """To be called before the context is closed."""
        if self._gate:
            self._gate.close()


def decode(frames: Frames, max_block_bytes: int) -> tuple[Header, Payload]:
    """Parse a message of `Incoming.read`. Raises WireError."""
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
    return wire.decode(frames[1].buffer, block.data, max_block_bytes)


def origin(frames: Frames) -> str:
    """Where a message came from, to be added to a sentence; nothing if libzmq does not know."""
    try:
        return f" (from {plain_address(str(frames[-1].get('Peer-Address')))})"
    except zmq.ZMQError:
        return ""
