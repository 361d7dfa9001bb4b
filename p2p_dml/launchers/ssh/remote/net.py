"""Whether other hosts can be reached, and how fast: a listener and a caller in plain TCP."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

_NUMBER = struct.Struct("!Q")
_CHUNK_BYTES = 1 << 16
_CONNECT_S = 3.0
_TALK_S = 20.0
_NUM_PINGS = 10


class Listeners:
    """Answers callers on some ports, each in a thread of its own, until closed."""

    def __init__(self, ports: Sequence[int]) -> None:
        """OSError if a port is taken."""
        self._sockets: list[socket.socket] = []
        for port in ports:
            listener = _listen(port)
            self._sockets.append(listener)
            threading.Thread(target=_serve, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Let go of the ports."""
        for each in self._sockets:
            each.shutdown(socket.SHUT_RDWR)  # wakes the thread up, which `close` alone does not
            each.close()


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=False
        )
    return socket.create_server(("", port))


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:  # closed
            return
        with caller:
            caller.settimeout(_TALK_S)
            try:
                _answer(caller)
            except OSError:
                continue


def _answer(caller: socket.socket) -> None:
    """Echo numbers (pings); the one that is not 0 says how many bytes follow, which are counted."""
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while number := _read(caller, _NUMBER.size):
        (size,) = _NUMBER.unpack(number)
        _skip(caller, size)
        caller.sendall(number)


def _read(caller: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or none if the caller has finished."""
    content = b""
    while len(content) < size:
        chunk = caller.recv(size - len(content))
        if not chunk:
            return b""
        content += chunk
    return content


def _skip(caller: socket.socket, size: int) -> None:
    while size:
        chunk = caller.recv(min(size, _CHUNK_BYTES))
        if not chunk:
            raise OSError("cut off")
        size -= len(chunk)


def measure(address: str, port: int, num_bytes: int) -> dict[str, Any]:
    """Call a listener: `rtt_s`, the shortest of some round trips, and `bytes_per_s` of a transfer.

    `error` instead if it cannot be reached. With `num_bytes` 0 nothing is transferred.
    """
    try:
        with socket.create_connection((address, port), _CONNECT_S) as callee:
            callee.settimeout(_TALK_S)
            callee.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            rtt_s = min(_timed(callee, 0) for _ in range(_NUM_PINGS if num_bytes else 1))
            if not num_bytes:
                return {"rtt_s": rtt_s}
            seconds = _timed(callee, num_bytes) - rtt_s
            return {"rtt_s": rtt_s, "bytes_per_s": num_bytes / max(seconds, 1e-6)}
    except OSError as error:
        return {"error": error.strerror or str(error) or type(error).__name__}


def _timed(callee: socket.socket, size: int) -> float:
    """Seconds until `size` bytes have been sent and acknowledged by the callee's program."""
    begin, block = time.perf_counter(), bytes(_CHUNK_BYTES)
    callee.sendall(_NUMBER.pack(size))
    left = size
    while left:
        left -= callee.send(block[: min(left, len(block))])
    if not _read(callee, _NUMBER.size):
        raise OSError("the connection was closed")
    return time.perf_counter() - begin
