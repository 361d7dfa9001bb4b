"""Shows a sweep while it goes on: a line for each case, and in a terminal the running ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from p2p_dml.report import clock
from p2p_dml.sweep._values import Case, Fate


@final
class View:
    """Follows the cases; `num_cases` are to be run, `jobs` at a time.

    `now` is a clock in seconds. A quiet view shows nothing.
    """

    def __init__(
        self, num_cases: int, jobs: int, console: Console, now: Callable[[], float], *, quiet: bool
    ) -> None:
        self._num_cases = num_cases
        self._jobs = jobs
        self._console = console
        self._now = now
        self._quiet = quiet
        self._began = now()
        self._running: dict[str, tuple[Case, float]] = {}
        self._seconds: list[float] = []
        self._failed = 0
        self._live: Live | None = None
        if console.is_terminal and not quiet:
            # No refresh thread: threads and the forks of new processes do not mix.
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()

    def started(self, case: Case) -> None:
        self._running[case.digest] = case, self._now()

    def ended(self, case: Case, fate: Fate, why: str, seconds: float) -> None:
        del self._running[case.digest]
        self._seconds.append(seconds)
        self._failed += fate == "failed"
        if self._quiet:
            return
        how = f"{fate} after {clock(seconds)}" + (f": {why}" if why else "")
        line = f"{self._elapsed}  {self._done}/{self._num_cases}  {case.title}  {how}"
        ending = "" if self._live else self._left_in_words
        self._console.print(escape(line + ending), highlight=False, soft_wrap=True)

    def update(self) -> None:
        """Redraw the running cases, in a terminal."""
        if self._live is not None:
            self._live.update(self._screen(), refresh=True)

    def close(self) -> None:
        """Give the terminal back; idempotent."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def seconds_left(self) -> float | None:
        """By the mean time of the cases so far; None before the first has ended."""
        if not self._seconds:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        spent = sum(min(mean, self._now() - since) for _, since in self._running.values())
        waiting = self._num_cases - self._done
        return (mean * waiting - spent) / min(self._jobs, max(1, waiting))

    @property
    def _done(self) -> int:
        return len(self._seconds)

    @property
    def _elapsed(self) -> str:
        return clock(self._now() - self._began)

    @property
    def _left_in_words(self) -> str:
        left = self.seconds_left
        return f", about {clock(left)} left" if left else ""

    def _screen(self) -> Group:
        failed = f", {self._failed} failed" if self._failed else ""
        title = f"{self._done}/{self._num_cases} cases{failed}  {self._elapsed} elapsed"
        head = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=self._num_cases, completed=self._done, width=20)
        head.add_row(bar, Text(title + self._left_in_words, style="bold"))
        running = Table.grid(padding=(0, 2, 0, 0))
        for case, since in self._running.values():
            running.add_row(Text(clock(self._now() - since), style="dim"), Text(case.title))
        return Group(head, running)
