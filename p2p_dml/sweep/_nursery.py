"""The nursery of cases: one process that has imported everything and forks one for each case.

`python -m p2p_dml.sweep._nursery` reads JSON lines from standard input, an order to begin a case or
a signal for all running ones, and writes a line for each case that ends. Imports take longer than a
small case; forked processes share them, and what a case does to its process ends with it. Nothing
may compute with torch before the fork: a forked child of a process with busy thread pools hangs.

When standard input closes (the sweep is gone) all cases are killed; when the nursery is gone, the
kernel kills them. No case outlives its sweep.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.ma
import numpy.random  # noqa: F401

from p2p_dml.launchers.process import fork
from p2p_dml.sweep._values import Order
from p2p_dml.sweep._work import work

_POLL_S = 0.02


def serve(act: Callable[[Order], int]) -> None:
    """Fork a process for each order, which ends with what `act` returns, until input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's business
    gc.collect()
    gc.freeze()  # later collections leave shared pages alone
    children: dict[int, str] = {}
    unread = b""
    while (chunk := _read(_POLL_S if children else None)) is not None:
        *lines, unread = (unread + chunk).split(b"\n")
        for line in lines:
            _obey(json.loads(line), children, act)
        _report_ended(children)
    _signal(children, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)


def _read(timeout_s: float | None) -> bytes | None:
    """What has come on standard input meanwhile; None if it is closed."""
    readable, _, _ = select.select([0], [], [], timeout_s)
    return (os.read(0, 1 << 16) or None) if readable else b""


def _obey(message: Any, children: dict[int, str], act: Callable[[Order], int]) -> None:
    if "signal" in message:
        _signal(children, message["signal"])
        return
    order = Order(**message)
    children[fork(lambda: act(order), Path(order.path, "log.txt"))] = order.path


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _report_ended(children: dict[int, str]) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            line = {"path": children.pop(pid), "code": os.waitstatus_to_exitcode(status)}
            os.write(1, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    serve(work)
