"""Turns arbitrary bytes into choices, so that a fuzzer that knows only bytes can steer a test."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeVar, final

T = TypeVar("T")

EDGES = (0, 1, 2, 7, 255, 1 << 31, (1 << 53) - 1, 1 << 53, (1 << 63) - 1)


@final
class Feed:
    """Reads bytes from the front; behind the end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def is_over(self) -> bool:
        return self._place >= len(self._data)

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        found = self._data[self._place : self._place + count]
        self._place += count
        return found.ljust(count, b"\0")

    def rest(self) -> bytes:
        """All that is left."""
        found, self._place = self._data[self._place :], len(self._data)
        return found

    def byte(self) -> int:
        return self.take(1)[0]

    def natural(self) -> int:
        """A small number, one at an edge of what fits somewhere, or any of 63 bits."""
        kind = self.byte()
        if kind < 128:
            return kind % 8
        if kind < 224:
            return EDGES[kind % len(EDGES)]
        return int.from_bytes(self.take(8), "little") >> 1

    def number(self) -> float:
        """A float, NaN and infinities among them."""
        kind = self.byte()
        if kind < 128:
            return float(self.natural())
        found: float = struct.unpack("<d", self.take(8))[0]
        return found

    def text(self) -> str:
        return self.take(self.byte()).decode("utf-8", errors="replace")

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.byte() % len(choices)]
