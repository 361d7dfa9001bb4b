"""Reads event files while they grow, whatever state a killed peer left them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import final

from p2p_dml.report._values import Line

# How EventLog begins each line. Quotes inside strings are escaped, so it is nowhere else.
_BEGIN = b'{"event": '


def parse(line: bytes) -> Line | None:
    """The event in one line; None for one that is torn or no event.

    A peer that was killed while writing and came back appends to its half line: what follows the
    torn half is still read.
    """
    try:
        event = json.loads(line[max(0, line.rfind(_BEGIN)) :])
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event and "t" in event else None


@final
class EventTail:
    """One event file, read in instalments; costs one `stat` when nothing was appended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._half_line = b""

    def read(self) -> list[Line]:
        """Events completed since the last call; a line without its end waits for the next."""
        try:
            if self._path.stat().st_size <= self._offset:
                return []
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(fresh)
        *lines, self._half_line = (self._half_line + fresh).split(b"\n")
        return [event for event in map(parse, lines) if event is not None]
