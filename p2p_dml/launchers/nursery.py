"""The nursery: one process that has imported everything, computed nothing, and forks the peers.

`python -m p2p_dml.launchers.nursery` reads one JSON line from standard input (what to run and
which peers), forks a child per peer, and writes a JSON line for each that ends. Importing torch
costs a second and 150 MB per process; forked children share it. Nothing may compute with torch
before the fork: a forked child of a process with busy thread pools hangs.

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
from pathlib import Path

import numpy.ma
import numpy.random  # noqa: F401
import torch._dynamo  # noqa: F401  (the first optimiser imports it: 1 s and 75 MB)

from p2p_dml.launchers.process import fork
from p2p_dml.launchers.single import Assignment, run_assignment
from p2p_dml.types import PeerId


def main() -> None:
    """Fork the peers named on standard input and report how each ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's business
    line = sys.stdin.buffer.readline()
    if not line:
        return
    order = json.loads(line)
    gc.collect()
    gc.freeze()  # later collections leave shared pages alone
    children: dict[int, PeerId] = {}
    for peer in order["peers"]:
        pid = _fork(Assignment(**order["assignment"], me=peer))
        children[pid] = peer
        _tell({"peer": peer, "pid": pid})
    while children:
        if _launcher_is_gone():
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(order["assignment"]["shared"], ignore_errors=True)
            return
        _report_ended(children)


def _fork(assignment: Assignment) -> int:
    log = Path(assignment.run) / "logs" / f"peer-{assignment.me:03d}.log"
    return fork(lambda: run_assignment(assignment), log, own_group=True)


def _launcher_is_gone() -> bool:
    """Wait up to 20 ms for standard input to close."""
    readable, _, _ = select.select([sys.stdin], [], [], 0.02)
    return bool(readable) and not sys.stdin.buffer.read(1)


def _report_ended(children: dict[int, PeerId]) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _tell({"peer": children.pop(pid), "code": os.waitstatus_to_exitcode(status)})


def _tell(line: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
