"""The nursery: one process that has imported everything, computed nothing, and forks the peers.

`python -m p2p_dml.launchers.nursery` reads one JSON line from standard input (what to run and
which peers), reads run file and data, forks a child per peer, and writes a JSON line for each that
ends; further lines say which to fork again. Importing torch costs a second and 150 MB per process;
forked children share it, and all else that is the same for all of them. Nothing may compute with
torch before the fork: a forked child of a process with busy thread pools hangs. A peer that the
system has no room for is tried again for a second, and has failed then; the others go on.

When standard input closes (the launcher is gone) all children are killed and the shared folder is
removed; when the nursery is gone, the kernel kills them. No peer outlives its launcher.
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy.ma
import numpy.random  # noqa: F401

from p2p_dml.assemble import Blueprint
from p2p_dml.errors import ExitCode
from p2p_dml.launchers.assignment import Assignment
from p2p_dml.launchers.process import fill_gaps, fork
from p2p_dml.launchers.single import prepare, run_assignment
from p2p_dml.types import PeerId

_ATTEMPTS, _PAUSE_S = 5, 0.25  # of one peer; others are attended to in between


def main() -> None:
    """Fork the peers named on standard input and report how each ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's business
    orders = _Orders(sys.stdin.fileno())
    first = orders.next(None)
    if first is None:
        return
    parts = prepare(Assignment(**first["assignment"], me=-1), first["peers"])
    gc.collect()
    fill_gaps()
    gc.freeze()  # later collections leave shared pages alone
    shared = first["assignment"]["shared"]
    births = Births(
        lambda peer, again: _fork(Assignment(**first["assignment"], me=peer, again=again), parts),
        Path(shared),
        _tell,
    )
    for peer in first["peers"]:
        births.order(peer)
    while not orders.are_over:  # the last peer of a host may be ordered again, too
        births.attempt()
        _report_ended(births.children)
        if (order := orders.next(timeout_s=0.02)) is not None:
            births.order(order["again"], again=True)
    if births.children:
        for pid in births.children:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(shared, ignore_errors=True)


@dataclass(slots=True)
class _Birth:
    """A peer that is to be forked, not before `at`; `again`: as in an `Assignment`."""

    peer: PeerId
    again: bool
    at: float
    num_failed: int = 0


@final
class Births:
    """The peers that are to be forked, and the processes of those that were.

    `fork(peer, again)` returns a process id or raises OSError; `tell` takes lines for the launcher.
    """

    def __init__(
        self,
        fork: Callable[[PeerId, bool], int],
        shared: Path,
        tell: Callable[[dict[str, int]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fork = fork
        self._shared = shared
        self._tell = tell
        self._clock = clock
        self._due: list[_Birth] = []
        self.children: dict[int, PeerId] = {}

    def order(self, peer: PeerId, *, again: bool = False) -> None:
        """Have a peer forked at the next attempt."""
        self._due.append(_Birth(peer, again, self._clock()))

    def attempt(self) -> None:
        """Fork those whose turn it is; waits for none, so that who ends meanwhile is noticed."""
        now = self._clock()
        turn = [birth for birth in self._due if birth.at <= now]
        self._due = [birth for birth in self._due if birth.at > now]
        for birth in turn:
            try:
                pid = self._fork(birth.peer, birth.again)
            except OSError as error:  # memory or processes are short, perhaps for a moment
                self._put_off(birth, error, now)
            else:
                self.children[pid] = birth.peer
                self._tell({"peer": birth.peer, "pid": pid})

    def _put_off(self, birth: _Birth, error: OSError, now: float) -> None:
        """Let a peer wait for its next attempt; after the last one it has failed."""
        birth.num_failed += 1
        if birth.num_failed < _ATTEMPTS:
            birth.at = now + _PAUSE_S
            self._due.append(birth)
            return
        why = (
            f"peer {birth.peer}: cannot be started: {error.strerror or error}; free memory or "
            "raise the limit on processes"
        )
        with suppress(OSError):  # there may be no room for it either
            (self._shared / f"{birth.peer}.error").write_text(why, encoding="utf-8")
        self._tell({"peer": birth.peer, "code": int(ExitCode.FAILED)})


@final
class _Orders:
    """Lines of JSON from the launcher, until it is gone."""

    def __init__(self, source: int) -> None:
        self.are_over = False
        self._source = source
        self._unread = b""
        self._due: deque[dict[str, Any]] = deque()

    def next(self, timeout_s: float | None) -> dict[str, Any] | None:
        """Wait for an order (`timeout_s` None: until they are over); None if there is none."""
        while not self._due and not self.are_over:
            readable, _, _ = select.select([self._source], [], [], timeout_s)
            if not readable:
                return None
            chunk = os.read(self._source, 1 << 16)
            self.are_over = not chunk
            *lines, self._unread = (self._unread + chunk).split(b"\n")
            self._due += map(json.loads, lines)
        return self._due.popleft() if self._due else None


def _fork(assignment: Assignment, parts: Blueprint | None) -> int:
    log = Path(assignment.run) / "logs" / f"peer-{assignment.me:03d}.log"
    return fork(lambda: run_assignment(assignment, parts), log, own_group=True)


def _report_ended(children: dict[int, PeerId]) -> None:
    while children:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if not ended:
            return
        _tell({"peer": children.pop(ended), "code": os.waitstatus_to_exitcode(status)})


def _tell(line: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
