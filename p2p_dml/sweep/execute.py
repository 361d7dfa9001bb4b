"""Runs the cases of a sweep: a process each, several at a time, stopped together."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from p2p_dml.errors import ExitCode
from p2p_dml.launchers.process import on_stop_signals
from p2p_dml.sweep._folder import last_words, mark_finished, prepare
from p2p_dml.sweep._processes import Nursery
from p2p_dml.sweep._values import Case, Fate, Mode, Order

OrderOf = Callable[[Case, Path], Order]
"""From a case and its folder, which holds case.toml, to what its process is told."""

STOP_GRACE_S = 60.0
"""How long cases may take to end after a first Ctrl-C."""

_POLL_S = 0.05


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


def ordering(mode: Mode, *, with_reports: bool, device: str = "cpu") -> OrderOf:
    """Orders for cases that are run in `mode`, on `device`, and leave a report, or none."""

    def order(case: Case, path: Path) -> Order:
        return Order(
            path=str(path),
            folder=str(case.config.folder.resolve()),
            mode=mode,
            with_report=with_reports,
            device=device,
        )

    return order


def execute(
    cases: Sequence[Case],
    out: Path,
    jobs: int,
    order_of: OrderOf,
    nursery: Nursery,
    watcher: Watcher,
) -> Ending:
    """Run `cases`, at most `jobs` at a time; one that fails does not stop the others.

    The first SIGINT or SIGTERM ends the running cases, which will be run again another time; the
    second kills them. Raises StorageError if the folder cannot be written.
    """
    waiting = deque(cases)
    errors: dict[str, str] = {}
    children = _Children(nursery)
    with on_stop_signals(children.stop, each=True), _killed_at_the_end(children):
        while children.running or (waiting and not children.is_stopping):
            while waiting and children.running < jobs and not children.is_stopping:
                case = waiting.popleft()
                children.start(case, prepare(out, case), order_of)
                watcher.started(case)
            ended = children.reap(_POLL_S)
            children.heed()
            for child, code in ended:
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
    since: float
    device: str

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


@final
class _Children:
    """The running cases, and how often a signal has asked to stop them."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._by_path: dict[str, _Child] = {}
        self._stops = 0
        self._heeded = 0
        self._kill_at = 0.0

    @property
    def running(self) -> int:
        return len(self._by_path)

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
            self._nursery.signal(signal.SIGTERM)
        elif self._stops > self._heeded or time.monotonic() > self._kill_at:
            self._nursery.signal(signal.SIGKILL)
        self._heeded = self._stops

    def start(self, case: Case, path: Path, order_of: OrderOf) -> None:
        order = order_of(case, path)
        (path / "log.txt").touch()
        child = _Child(case=case, path=path, since=time.monotonic(), device=order.device)
        self._by_path[order.path] = child
        self._nursery.begin(order)

    def reap(self, timeout_s: float) -> list[tuple[_Child, int]]:
        """Those that have ended, and their exit codes; waits at most so long for one."""
        codes = self._nursery.ended(timeout_s)
        return [(self._by_path.pop(path), code) for path, code in codes.items()]

    def kill(self) -> None:
        """Kill what runs, and wait for its end."""
        if self._by_path:
            self._nursery.signal(signal.SIGKILL)
        while self._by_path:
            self.reap(_POLL_S)


@contextmanager
def _killed_at_the_end(children: _Children) -> Iterator[None]:
    try:
        yield
    finally:
        children.kill()


def _conclude(child: _Child, code: int, *, is_stopping: bool) -> tuple[Fate, str]:
    """Mark a case that is done as finished; of one that failed say why."""
    if code == ExitCode.DONE:
        mark_finished(child.path, child.case, child.seconds, child.device)
        return "done", ""
    return ("stopped", "") if is_stopping else ("failed", last_words(child.path, code))
