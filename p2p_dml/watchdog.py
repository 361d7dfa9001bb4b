"""Tells when a peer hangs: in which phase, in which round, for how long; and ends it if so wanted.

The learner, the transport and what writes files are wrapped; each says what the peer does now, and
a thread looks now and then how long it has done it. Waiting for neighbours has deadlines of its own
and is not judged. What holds Python's lock all the while hides from this thread; from its
neighbours a peer cannot hide (see `liveness`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple, final

from p2p_dml.attended import AttendedLearner
from p2p_dml.checkpoint import Write
from p2p_dml.config import WatchdogConfig
from p2p_dml.errors import ExitCode, P2PError
from p2p_dml.events import Event, Finished, Stuck
from p2p_dml.peer import LocalLearner
from p2p_dml.types import Mail, PeerId, Sent, Tag, Tensors, Transport

Phase = Literal["train", "send", "wait", "mix", "evaluate", "checkpoint", "log"]
Report = Callable[[Event], None]

_STORAGE: Final = ("checkpoint", "log")
_LAST_WORDS_S = 2.0
"""How long the last words of a peer may take that ends: its disk may be what hangs."""


class Step(NamedTuple):
    """What the peer does, since when. Told apart by identity; made several times a round."""

    phase: Phase
    round: int
    since: float


@final
class Watchdog:
    """Watches one peer while it is entered; wrap what its loop is given with it.

    `report` writes an event, from any thread. `end` gets what to say when the peer is to end.
    """

    def __init__(
        self,
        me: PeerId,
        config: WatchdogConfig,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._me = me
        self._config = config
        self._report = report
        self._clock = clock
        self._end = end or _end
        self._writing = threading.RLock()
        self._step = Step("mix", 0, clock())
        self._told: Step | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> None:
        self._step = Step("mix", self._step.round, self._clock())
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(_LAST_WORDS_S)

    # ---- what the peer does ---------------------------------------------------------------

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """While this is entered, the peer is in `phase`; then it is where it was before."""
        outer, now = self._step, self._clock()
        inner = self._step = Step(phase, outer.round, now)
        if outer.phase == "mix":
            self._recover(outer, now)
        try:
            yield
        finally:
            now = self._clock()
            self._step = outer._replace(since=now) if outer.phase == "mix" else outer
            self._recover(inner, now)

    def seek(self, round: int) -> None:
        """From now on the peer is in `round`."""
        self._step = self._step._replace(round=round)

    def log(self, event: Event) -> None:
        """Write an event, and watch that."""
        with self._writing, self.during("log"):
            self._report(event)

    def learner(self, learner: LocalLearner) -> LocalLearner:
        """`learner`, whose training and evaluation are watched."""
        return AttendedLearner(learner, self)

    def transport(self, transport: Transport) -> Transport:
        """`transport`, whose sending is watched."""
        return _WatchedTransport(transport, self)

    def writer(self, write: Write) -> Write:
        """`write`, which is watched."""

        def watched(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
            with self.during("checkpoint"):
                write(tensors, path, metadata)

        return watched

    def _recover(self, step: Step, now: float) -> None:
        """Say that a step which was told to be stuck is over."""
        if self._told is step:
            self._told = None
            self.log(Stuck(step.round, step.phase, round(now - step.since, 3), is_over=True))

    # ---- what the thread does -------------------------------------------------------------

    def _watch(self) -> None:
        shortest_s = min(self._config.step_s, self._config.storage_s)
        while not self._over.wait(min(1.0, shortest_s / 4)):
            self.look()

    def look(self) -> None:
        """Tell if the present step lasts too long, once of each."""
        step = self._step
        seconds = self._clock() - step.since
        if step.phase == "wait" or step is self._told or seconds <= self._limit_s(step.phase):
            return
        self._told = step
        why = self._in_words(step, seconds)
        self._tell(Stuck(step.round, step.phase, round(seconds, 3)), why)
        if self._config.action == "end" and step is self._step:
            self._tell(Finished(step.round, ExitCode.STUCK, why), why)
            self._end(why)

    def _in_words(self, step: Step, seconds: float) -> str:
        key = "storage_s" if step.phase in _STORAGE else "step_s"
        return (
            f"peer {self._me}, round {step.round}: stuck in {step.phase!r} for {seconds:.1f} s, "
            f"watchdog.{key} = {self._limit_s(step.phase):g}"
        )

    def _limit_s(self, phase: Phase) -> float:
        return self._config.storage_s if phase in _STORAGE else self._config.step_s

    def _tell(self, event: Event, why: str) -> None:
        """Into the log, or, if that is what hangs, where errors go; within bounded time."""

        def tell() -> None:
            if not self._writing.acquire(timeout=_LAST_WORDS_S / 4):
                print(why, file=sys.stderr, flush=True)
                return
            try:
                with suppress(P2PError):  # the disk may be full; who writes next will say so
                    self._report(event)
            finally:
                self._writing.release()

        _within(_LAST_WORDS_S, tell)


def _within(seconds: float, act: Callable[[], None]) -> None:
    """Wait at most so long for something that a disk may hold up."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)


def _end(why: str) -> None:
    """Leave a picture of all threads in the log, and end the process at once, whatever hangs."""
    # Not by `faulthandler`: it would keep this thread from ending the process on a disk that hangs.
    stacks = "".join(_stacks())
    _within(_LAST_WORDS_S, lambda: print(f"{why}\n{stacks}", file=sys.stderr, flush=True))
    os._exit(ExitCode.STUCK)


def _stacks() -> Iterator[str]:
    """Where each thread is, the newest call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"thread {names.get(ident, ident)}:\n"
        yield from traceback.format_stack(frame)


@final
class _WatchedTransport:
    """The transport as the loop sees it."""

    def __init__(self, transport: Transport, watchdog: Watchdog) -> None:
        self.elastic = transport.elastic
        self._transport = transport
        self._watchdog = watchdog

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        self._transport.expect(neighbours)

    def post(self, tag: Tag, sent: Sent) -> int:
        with self._watchdog.during("send"):
            return self._transport.post(tag, sent)

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        with self._watchdog.during("wait"):
            return self._transport.collect(tag, senders, deadline_s)

    def close(self) -> None:
        self._transport.close()
