"""What a rank does when a signal tells it to stop, in the 30 s that torchrun gives it.

torchrun sends SIGTERM when another rank has died, when a host is to be freed, and a second signal
after Ctrl-C; so a signal says that the run is over, not why, and no second one kills.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

from p2p_dml.errors import ExitCode, P2PError
from p2p_dml.launchers.process import on_stop_signals, signal_with_parent

GRACE_S = 10.0
"""How long a round, its evaluation and a checkpoint may take after a signal."""

LAST_WORDS_S = 3.0
"""How long others may take to say why they ended; who is silent longer is lost."""


class StoppedEarly(P2PError):
    """A signal came before the first round."""

    exit_code = ExitCode.STOPPED


class Overdue(BaseException):
    """A round took too long after a signal. No Exception, lest a user's function handle it."""


@final
class Stopping:
    """When this rank was told to stop, if it was."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._is_interruptible = False

    @property
    def is_told(self) -> bool:
        return self._since is not None

    @property
    def seconds(self) -> float:
        """Since the first signal; 0 before."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def tell(self) -> None:
        """The first call sets the time; a signal handler may call this."""
        if self._since is None:
            self._since = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def check(self) -> None:
        """Raise StoppedEarly once others have had time to say why they ended."""
        if self.seconds > LAST_WORDS_S:
            raise StoppedEarly("stopped by a signal before the first round")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals to stop, and the alarm that follows; the death of torchrun is one too."""
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        try:
            with on_stop_signals(self.tell, each=True):
                signal_with_parent(signal.SIGTERM)
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Overdue inside if it does not end within GRACE_S of a signal."""
        self._is_interruptible = True
        try:
            if self.seconds > GRACE_S:
                raise Overdue
            yield
        finally:
            self._is_interruptible = False

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._is_interruptible:
            raise Overdue
