"""The nursery: one process that has imported everything, computed nothing, and forks the peers.

`python -m p2p_dml.launchers.nursery` reads one JSON line from standard input (what to run and
which peers), reads run file and data, forks a child per peer, and writes a JSON line for each that
ends; further lines say which to fork again. Importing torch costs a second and 150 MB per process;
forked children share it, and all else that is the same for all of them. Nothing may compute with
torch before the fork: a forked child of a process with busy thread pools hangs.

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
from collections import deque
from pathlib import Path
from typing import Any, final

import numpy.ma
import numpy.random  # noqa: F401

from p2p_dml.assemble import Blueprint
from p2p_dml.launchers.assignment import Assignment
from p2p_dml.launchers.process import fill_gaps, fork
from p2p_dml.launchers.single import prepare, run_assignment
from p2p_dml.types import PeerId


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
    children: dict[int, PeerId] = {}

    def start(peer: PeerId, *, again: bool = False) -> None:
        pid = _fork(Assignment(**first["assignment"], me=peer, again=again), parts)
        children[pid] = peer
        _tell({"peer": peer, "pid": pid})

    for peer in first["peers"]:
        start(peer)
    while children:
        if (order := orders.next(timeout_s=0.02)) is not None:
            start(order["again"], again=True)
        if orders.are_over:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(first["assignment"]["shared"], ignore_errors=True)
            return
        _report_ended(children)


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
