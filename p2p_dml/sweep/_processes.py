"""The sweep's view of the nursery: cases are begun, told to stop, and end with an exit code."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, final

from p2p_dml.errors import ExitCode
from p2p_dml.sweep._values import Order

PROGRAM = (sys.executable, "-m", "p2p_dml.sweep._nursery")

FORKABLE = {
    "OPENBLAS_NUM_THREADS": "1",  # a thread pool of numpy's would stand in the way of forking,
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # and so would CUDA, even where torch only looks for it
}
"""Environment of the nursery and so of its cases."""


@final
class Nursery:
    """Forks a process for each order; started when it is first needed, closed with its cases.

    If it dies itself, all running cases have ended the way it did, and the next begins with a new
    one. `program` is the command that starts it.
    """

    def __init__(self, program: Sequence[str] = PROGRAM) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._running: set[str] = set()
        self._unread = b""

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Kill what runs, and wait for its end."""
        if self._process is not None:
            self._end(self._process)

    def begin(self, order: Order) -> None:
        """Have a case begun; `ended` will say by the path of its order how it ended."""
        self._process = self._process or self._start()
        self._running.add(order.path)
        self._tell(asdict(order))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every running case."""
        self._tell({"signal": int(number)})

    def ended(self, timeout_s: float) -> Mapping[str, int]:
        """Exit codes, or minus the signal, of those that have ended; waits at most so long."""
        if self._process is None or self._process.stdout is None:
            return {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return {}
        chunk = os.read(self._process.stdout.fileno(), 1 << 16)
        if not chunk:
            return self._lose(self._process)
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        codes = {entry["path"]: entry["code"] for entry in map(json.loads, lines)}
        self._running -= codes.keys()
        return codes

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | FORKABLE,
            start_new_session=True,  # the terminal's Ctrl-C is for us to pass on
        )

    def _tell(self, message: Mapping[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with suppress(BrokenPipeError):  # it is gone; `ended` will find out
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _lose(self, process: subprocess.Popen[bytes]) -> Mapping[str, int]:
        """All cases of a nursery that is gone: the kernel has ended them."""
        self._end(process)
        codes = dict.fromkeys(self._running, process.returncode or int(ExitCode.FAILED))
        self._running = set()
        return codes

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        process.wait()
        self._process, self._unread = None, b""
