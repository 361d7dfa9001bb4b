"""The line between a launcher and the supervisor of one of its hosts: each word a line of JSON."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Mapping
from typing import IO, Any, final


class LauncherGone(BaseException):
    """The launcher has gone. No Exception, lest somebody handle it."""


@final
class Line:
    """The line to the launcher: what it says, and what it is told."""

    def __init__(self, source: int, sink: IO[str]) -> None:
        self._source = source
        self._sink = sink
        self._unread = b""

    def say(self, words: Mapping[str, Any]) -> None:
        """Tell the launcher."""
        self._sink.write(json.dumps(words) + "\n")
        self._sink.flush()

    def next(self, timeout_s: float | None) -> Mapping[str, Any] | None:
        """The next line, or None if none comes in time. Raises LauncherGone at the end."""
        while b"\n" not in self._unread:
            if timeout_s is not None and not select.select([self._source], [], [], timeout_s)[0]:
                return None
            chunk = os.read(self._source, 1 << 16)
            if not chunk:
                raise LauncherGone
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        order: dict[str, Any] = json.loads(line)
        return order
