"""Peers of this machine, all of a run or some: forked from a nursery, told to stop, counted.

Imports no torch: the nursery does, for all, and its launcher need not wait to start it.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

from p2p_dml.errors import ExitCode, StartupError
from p2p_dml.graph import PeerId
from p2p_dml.launchers.process import STOP_GRACE_S, THREAD_VARIABLES
from p2p_dml.launchers.rendezvous import Book, Desk


class Aborted(Exception):
    """The run ended before all peers had met; `exit_codes` are those of the peers it is due to."""

    def __init__(self, exit_codes: dict[PeerId, int]) -> None:
        self.exit_codes = exit_codes


@final
class Crew:
    """The view of the nursery from outside: who runs, who ended and how."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._pids: dict[PeerId, int] = {}
        self._unread = b""
        self._stopped_at: float | None = None
        self._restarts: Counter[PeerId] = Counter()
        self._may_grow = False
        self._has_met = False
        self.has_begun = False
        self.running: set[PeerId] = set()
        self.exit_codes: dict[PeerId, int] = {}

    def begin(
        self,
        peers: Collection[PeerId],
        assignment: Mapping[str, Any],
        restarts: int = 0,
        *,
        may_grow: bool = False,
    ) -> None:
        """Have `peers` forked, each with the same assignment but for its id.

        Once all have met, one that is lost is started again, up to `restarts` times. `may_grow`:
        others may be added then.
        """
        self._may_grow = may_grow or restarts > 0
        self.has_begun = True
        self.running = set(peers)
        self._restarts = Counter(dict.fromkeys(self.running, restarts))
        self._order({"peers": sorted(self.running), "assignment": assignment})

    def _order(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it failed already; `listen` will find out
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def gather(
        self,
        desk: Desk,
        startup_s: float,
        scratch: Path,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Book:
        """Wait until all have data and address; what nobody will map from `scratch` again goes.

        Raises Aborted if one ended, or all were told to, before; StartupError if some are late.
        """

        def check() -> None:
            meanwhile()
            self.abort_if_ended()

        book = desk.gather(startup_s, check)
        if not self._may_grow:
            shutil.rmtree(scratch / "data", ignore_errors=True)  # every peer has mapped it
        self._has_met = True
        return book

    def listen(self, timeout_s: float) -> None:
        """Take in what the nursery reports, waiting at most `timeout_s`."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if selector.select(timeout_s):
                self._take(os.read(self._process.stdout.fileno(), 1 << 16))
        if self._stopped_at and time.monotonic() > self._stopped_at + STOP_GRACE_S:
            self.signal(signal.SIGKILL)

    def _take(self, chunk: bytes) -> None:
        if not chunk:  # the nursery is gone, and the kernel has ended its children
            self.exit_codes |= dict.fromkeys(self.running, -signal.SIGKILL)
            self.running.clear()
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for entry in map(json.loads, lines):
            if "pid" in entry:
                self._pids[entry["peer"]] = entry["pid"]
            elif not self._has_started_again(entry["peer"], entry["code"]):
                self.exit_codes[entry["peer"]] = entry["code"]
                self.running.discard(entry["peer"])

    def add(self, peers: Iterable[PeerId]) -> PeerId | None:
        """Start the first of `peers` that does not run, into the run; None if it is no use.

        That is if all run, or some have come to the end of the run.
        """
        if ExitCode.DONE in self.exit_codes.values():
            return None
        for peer in peers:
            if peer not in self.running:
                self.running.add(peer)
                self.exit_codes.pop(peer, None)
                self._order({"again": peer})
                return peer
        return None

    def _has_started_again(self, peer: PeerId, code: int) -> bool:
        """Have a peer forked anew if it was lost, not ended by an error of its own."""
        is_lost = code < 0 or code == ExitCode.STUCK
        if not is_lost or not self._has_met or self._stopped_at or not self._restarts[peer]:
            return False
        self._restarts[peer] -= 1
        self._pids.pop(peer, None)
        self._order({"again": peer})
        return True

    def abort_if_ended(self) -> None:
        """End everything if a peer ended, or was told to, before all had met: Aborted."""
        self.listen(0.0)
        if self._stopped_at is not None:
            raise Aborted(dict.fromkeys(self.running, int(ExitCode.STOPPED)))
        if self.exit_codes:
            self.signal(signal.SIGTERM)
            raise Aborted(dict(self.exit_codes))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every running peer."""
        for peer in self.running & self._pids.keys():
            with suppress(ProcessLookupError):
                os.kill(self._pids[peer], number)

    def stop(self, *, is_agreed: bool) -> None:
        """First call: let peers finish and save. Second: kill them.

        `is_agreed`: they know already after which round to end.
        """
        if self._stopped_at is not None:
            self.signal(signal.SIGKILL)
        elif not is_agreed:
            self.signal(signal.SIGTERM)
        self._stopped_at = time.monotonic()


@contextmanager
def hired(threads: int) -> Iterator[Crew]:
    """Start the nursery (its imports run beside ours); gone with all its children at the end.

    Raises StartupError if the system has no room for it.
    """
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "p2p_dml.launchers.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)),
            start_new_session=True,
        )
    except OSError as error:
        raise StartupError(
            f"the process that peers are forked from cannot be started: {error.strerror}; free "
            "memory or raise the limit on processes"
        ) from error
    crew = Crew(process)
    try:
        yield crew
    finally:
        assert process.stdin is not None and process.stdout is not None
        if not crew.has_begun:  # no children yet: nothing to wait for
            process.kill()
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def last_words(scratch: Path, peers: Iterable[PeerId]) -> dict[PeerId, str]:
    """What those of `peers` said that ended by an error."""
    files = {peer: scratch / f"{peer}.error" for peer in sorted(peers)}
    return {p: f.read_text(encoding="utf-8") for p, f in files.items() if f.exists()}
