"""The last line of an event log whose peer could not write it: how it ended, as others saw it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from p2p_dml.events import EventLog, Finished, event_file, read_events
from p2p_dml.types import PeerId

_SIGNALLED = 128  # exit code of a shell for a process ended by signal 0


def log_ending(
    run: Path, peer: PeerId, code: int, why: str, clock: Callable[[], float] = time.time
) -> None:
    """Add to a peer's event log that it ended so, unless it said itself how it did.

    `code`: its exit code, that of a signal negative. `clock`: says when that was.
    """
    path = event_file(run, peer)
    lines = list(read_events(path)) if path.exists() else []
    if lines and lines[-1]["event"] == "finished":
        return
    done = max((line["round"] for line in lines if line["event"] == "round_done"), default=0)
    log = EventLog(path, peer, clock)
    why = why.removeprefix(f"peer {peer}: ")  # the log is its own
    log.write(Finished(done, code if code >= 0 else _SIGNALLED - code, why))
    log.close()
