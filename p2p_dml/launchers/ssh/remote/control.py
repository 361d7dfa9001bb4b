"""Frames between the launcher and a host, over the standard input and output of one ssh.

A frame is an object in a line of JSON; `size` in it says how many raw bytes follow the line.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

MAX_BODY = 1 << 18
"""Bytes: larger files travel in pieces, so that other frames get in between."""

PIPE_BYTES = 1 << 20
"""So much may be under way in a pipe: on a busy machine each end has its turn seldom."""

_MAX_HEAD = 1 << 23


class ControlError(Exception):
    """What came is no frame."""


def widen(pipe: int) -> None:
    """Let a pipe take `PIPE_BYTES`; one that cannot, or is none, stays as it is."""
    with suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class Frame(NamedTuple):
    """One message: its table, and the bytes that follow."""

    head: Mapping[str, Any]
    body: bytes = b""

    def encode(self) -> bytes:
        """The bytes that `Decoder` reads."""
        sized = {**self.head, "size": len(self.body)} if self.body else self.head
        return json.dumps(sized).encode() + b"\n" + self.body


class Decoder:
    """Frames out of a stream of bytes that comes in pieces."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the frames that `chunk` completes; ControlError for what is none."""
        self._unread += chunk
        while (end := self._unread.find(b"\n")) >= 0:
            head = self._head(end)
            size = head.get("size", 0)
            if not isinstance(size, int) or not 0 <= size <= MAX_BODY:
                raise ControlError(f"a frame of {size!r} bytes")
            if len(self._unread) < end + 1 + size:
                return
            body = bytes(self._unread[end + 1 : end + 1 + size])
            del self._unread[: end + 1 + size]
            yield Frame(head, body)
        if len(self._unread) > _MAX_HEAD:
            raise ControlError("a line without an end")

    def _head(self, end: int) -> dict[str, Any]:
        line = bytes(self._unread[:end])
        try:
            head = json.loads(line)
        except ValueError as error:
            raise ControlError(f"expected JSON, found {line[:80]!r}") from error
        if not isinstance(head, dict):
            raise ControlError(f"expected an object, found {line[:80]!r}")
        return head


class Outbox:
    """Bytes on their way out of a descriptor that does not block."""

    def __init__(self) -> None:
        self._waiting: deque[memoryview] = deque()
        self.num_bytes = 0

    def put(self, content: bytes) -> None:
        """Add to what is to be written."""
        self._waiting.append(memoryview(content))
        self.num_bytes += len(content)

    def flush(self, descriptor: int) -> None:
        """Write as much as it takes; OSError if nobody reads any more."""
        while self._waiting:
            try:
                written = os.write(descriptor, self._waiting[0])
            except BlockingIOError:
                return
            self.num_bytes -= written
            self._waiting[0] = self._waiting[0][written:]
            if not self._waiting[0]:
                self._waiting.popleft()
