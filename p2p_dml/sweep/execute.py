"""Runs the cases of a sweep: a process each, several at a time, stopped together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from p2p_dml.errors import ExitCode
from p2p_dml.launchers.process import on_stop_signals
from p2p_dml.sweep._folder import last_words, mark_finished, prepare
from p2p_dml.sweep._values import Case, Fate, Mode

Command = Callable[[Path], Sequence[str]]
"""From the folder of a case, which holds case.toml, to the command that writes its run folder."""

STOP_GRACE_S = 60.0
"""How long cases may take to end after a first Ctrl-C."""

_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Watcher(Protocol):
    """Who is told how a sweep goes on."""

    def started(self, case: Case) -> None: ...

    def ended(self, case: Case, fate: Fate, why: str, seconds: float) -> None:
        """`why` says what went wrong with a case that failed."""

    def update(self) -> None:
        """Called often."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the cases ended that were run: what the failed ones said, by digest."""

    errors: dict[str, str]
    is_stopped: bool


def command_of(mode: Mode) -> Command:
    """The command line of a case in its own process."""

    def command(path: Path) -> Sequence[str]:
        file, run = str(path / "case.toml"), str(path / "run")
        return [sys.executable, "-m", "p2p_dml", mode, file, "--out", run, "--quiet"]

    return command


def execute(
    cases: Sequence[Case], out: Path, jobs: int, command: Command, watcher: Watcher
) -> Ending:
    """Run `cases`, at most `jobs` at a time; one that fails does not stop the others.

    The first SIGINT or SIGTERM ends the running cases, which will be run again another time; the
    second kills them. Raises StorageError if the folder cannot be written.
    """
    waiting = deque(cases)
    errors: dict[str, str] = {}
    children = _Children()
    with on_stop_signals(children.stop, each=True), _killed_at_the_end(children):
        while children.running or (waiting and not children.is_stopping):
            while waiting and len(children.running) < jobs and not children.is_stopping:
                case = waiting.popleft()
                children.start(case, prepare(out, case), command)
                watcher.started(case)
            time.sleep(_POLL_S)
            children.heed()
            for child, code in children.reap():
                fate, why = _conclude(child, code, is_stopping=children.is_stopping)
                if fate == "failed":
                    errors[child.case.digest] = why
                watcher.ended(child.case, fate, why, child.seconds)
            watcher.update()
    return Ending(errors=errors, is_stopped=children.is_stopping)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    case: Case
    path: Path
    process: subprocess.Popen[bytes]
    since: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


@final
class _Children:
    """The running processes, and how often a signal has asked to stop them."""

    def __init__(self) -> None:
        self.running: list[_Child] = []
        self._stops = 0
        self._heeded = 0
        self._kill_at = 0.0

    @property
    def is_stopping(self) -> bool:
        return self._stops > 0

    def stop(self) -> None:
        """Note a signal; that is all a handler may do, since it comes between any two lines."""
        self._stops += 1

    def heed(self) -> None:
        """Do what the signals so far ask for: end the children, then kill them."""
        if not self._stops:
            return
        if not self._heeded:
            self._kill_at = time.monotonic() + STOP_GRACE_S
            self._signal(signal.SIGTERM)
        elif self._stops > self._heeded or time.monotonic() > self._kill_at:
            self._signal(signal.SIGKILL)
        self._heeded = self._stops

    def start(self, case: Case, path: Path, command: Command) -> None:
        with (path / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                command(path),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(case),
                start_new_session=True,  # the terminal's Ctrl-C is for us to pass on
                preexec_fn=_end_with_parent,
            )
        child = _Child(case=case, path=path, process=process, since=time.monotonic())
        self.running.append(child)

    def reap(self) -> list[tuple[_Child, int]]:
        """Those that have ended since the last call, and their exit codes."""
        polled = [(child, child.process.poll()) for child in self.running]
        self.running = [child for child, code in polled if code is None]
        return [(child, code) for child, code in polled if code is not None]

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        for child in self.running:
            child.process.wait()

    def _signal(self, number: int) -> None:
        for child in self.running:
            child.process.send_signal(number)


@contextmanager
def _killed_at_the_end(children: _Children) -> Iterator[None]:
    try:
        yield
    finally:
        children.kill()


def _conclude(child: _Child, code: int, *, is_stopping: bool) -> tuple[Fate, str]:
    """Mark a case that is done as finished; of one that failed say why."""
    if code == ExitCode.DONE:
        mark_finished(child.path, child.case, child.seconds)
        return "done", ""
    return ("stopped", "") if is_stopping else ("failed", last_words(child.path, code))


def _environment(case: Case) -> dict[str, str]:
    """Modules of the user's own are looked for beside the original run file."""
    places = [str(case.config.folder.resolve()), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}


def _end_with_parent() -> None:
    """Have the kernel end this process when the sweep is gone, where it can (Linux)."""
    with suppress(AttributeError):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
