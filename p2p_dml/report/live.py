"""Shows a run while it goes on: a table in a terminal, plain lines elsewhere.

All it knows comes from the event files, so it costs the peers nothing and can watch any run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from p2p_dml.events import EventTail, event_file
from p2p_dml.report._progress import PeerProgress, Progress, State, most_interesting
from p2p_dml.report._units import ABSENT, clock, digits, human_bytes, percent, plural

_STYLES: dict[State, str] = {
    "starting": "dim",
    "running": "",
    "slow": "yellow",
    "stuck": "bold yellow",
    "dead": "bold red",
    "left": "dim",
    "done": "green",
    "stopped": "yellow",
    "failed": "bold red",
}
_MAX_NOTICES = 4
# Title, column heads, the line of all peers, and one line so that the prompt does not jump.
_FRAME_LINES = 5
_SAME_S = 0.001  # events' times are rounded
_PLAIN_SHARE = 0.1
_PLAIN_MIN_S = 2.0
_PLAIN_MAX_S = 60.0


@final
class LiveView:
    """Follows the event files of a run; the caller decides how often (`update`).

    `started` is when the launcher began (seconds since the epoch); `duration_s` ends the run if the
    rounds have not.
    """

    def __init__(
        self,
        run: Path,
        peers: int,
        rounds: int,
        console: Console,
        started: float,
        now: Callable[[], float] = time.time,
        duration_s: float | None = None,
    ) -> None:
        self._name = run.name
        self._rounds = rounds
        self._duration_s = duration_s
        self._console = console
        self._started = started
        self._now = now
        self._progress = Progress(peers, started - _SAME_S)
        self._tails = [EventTail(event_file(run, peer)) for peer in range(peers)]
        self._notices: deque[str] = deque(maxlen=_MAX_NOTICES)
        self._plain_at = started
        self._plain_share = 0.0
        self._live: Live | None = None
        if console.is_terminal:
            # No refresh thread: the launcher starts processes, and threads and forks do not mix.
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()

    def update(self) -> None:
        """Read what was appended since the last call and show it."""
        lines = [line for tail in self._tails for line in tail.read()]
        for line in sorted(lines, key=lambda line: float(line["t"])):
            self._take_notice(self._progress.take(line))
        if self._live is not None:
            self._live.update(self._screen(), refresh=True)
        elif self._is_line_due():
            self._print_line()

    def close(self) -> None:
        """Show what is left to show and give the terminal back; idempotent."""
        self.update()
        if self._live is not None:
            self._live.stop()
            self._live = None
            for notice in self._notices:
                self._console.print(escape(notice), highlight=False)
            self._notices.clear()

    def _take_notice(self, notice: str | None) -> None:
        if notice is None:
            return
        stamped = f"{clock(self._now() - self._started)}  {notice}"
        if self._live is None:
            self._console.print(escape(stamped), highlight=False, soft_wrap=True)
        else:
            self._notices.append(stamped)

    def _is_line_due(self) -> bool:
        """At each tenth of the run, at most every 2 s; each minute if that takes long."""
        share = self._share(self._progress.remaining)
        waited = self._now() - self._plain_at
        passed = share >= min(1.0, self._plain_share + _PLAIN_SHARE) and share > self._plain_share
        at_end = share >= 1.0
        if not (passed and (at_end or waited >= _PLAIN_MIN_S)) and waited < _PLAIN_MAX_S:
            return False
        self._plain_share, self._plain_at = share, self._now()
        return True

    def _print_line(self) -> None:
        peers = self._progress.peers
        remaining = self._progress.remaining
        self._console.print(
            f"{clock(self._now() - self._started)}  "
            f"round {_mean_round(remaining):.0f}/{self._rounds}  "
            f"loss {digits(_mean_known([peer.loss for peer in peers]))}  "
            f"accuracy {percent(_mean_known([peer.accuracy for peer in peers]))}  "
            f"sent {human_bytes(sum(peer.bytes_out for peer in peers))}  "
            f"{len(remaining)}/{plural(len(peers), 'peer')} alive",
            highlight=False,
            soft_wrap=True,
        )

    def _screen(self) -> RenderableType:
        peers = self._progress.peers
        room = max(1, self._console.height - _FRAME_LINES - len(self._notices))
        shown = peers if len(peers) <= room else most_interesting(peers, room - 1)
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        table.add_column("peer", justify="right")
        table.add_column("state", min_width=8)
        table.add_column("round", min_width=22)
        for name in ("loss", "accuracy", "sent", "heard", "rounds/s"):
            table.add_column(name, justify="right", min_width=8, no_wrap=True)
        for peer in shown:
            self._add_peer(table, peer)
        if len(shown) < len(peers):
            table.add_row("…", Text(f"{len(peers) - len(shown)} more", style="dim"))
        self._add_all(table)
        notices = [Text(notice, style="yellow", overflow="ellipsis", no_wrap=True)
                   for notice in self._notices]  # fmt: skip
        return Group(self._title(), table, *notices)

    def _title(self) -> Text:
        elapsed = self._now() - self._started
        left = self._seconds_left()
        ending = "" if left is None else f", about {clock(left)} left"
        return Text.assemble((self._name, "bold"), f"  {clock(elapsed)} elapsed{ending}")

    def _seconds_left(self) -> float | None:
        """By the mean pace since the peers came together; None before the first round."""
        running = [peer for peer in self._progress.peers if peer.is_running]
        share, began = self._share(running), self._began(running)
        passed = self._now() - began
        return passed / share - passed if share and passed > 0 else None

    def _share(self, peers: Sequence[PeerProgress]) -> float:
        """How much is done of the run, or of what was left of it when it was resumed.

        Of its rounds, or of its duration if that ends first.
        """
        before = fmean(peer.resumed_at for peer in peers) if peers else 0.0
        share = (_mean_round(peers) - before) / max(1.0, self._rounds - before)
        if self._duration_s is None or not share:
            return share
        # By the events, whose clock need not be the one on the wall.
        passed = max(peer.last_t for peer in peers) - self._began(peers)
        return max(share, min(1.0, passed / self._duration_s))

    def _began(self, peers: Sequence[PeerProgress]) -> float:
        return min((peer.joined for peer in peers if peer.joined), default=self._started)

    def _add_peer(self, table: Table, peer: PeerProgress) -> None:
        rate = peer.rate if peer.is_running else None
        table.add_row(
            str(peer.peer),
            Text(peer.state, style=_STYLES[peer.state]),
            self._bar(peer.rounds_done),
            digits(peer.loss),
            percent(peer.accuracy),
            human_bytes(peer.bytes_out),
            ABSENT if peer.heard is None else f"{peer.heard}/{peer.expected}",
            ABSENT if rate is None else f"{rate:.1f}",
        )

    def _add_all(self, table: Table) -> None:
        peers = self._progress.peers
        remaining = self._progress.remaining
        table.add_row(
            "all",
            f"{len(remaining)} alive",
            self._bar(round(_mean_round(remaining))),
            digits(_mean_known([peer.loss for peer in peers])),
            percent(_mean_known([peer.accuracy for peer in peers])),
            human_bytes(sum(peer.bytes_out for peer in peers)),
            "",
            _rate_text([peer.rate for peer in remaining if peer.is_running]),
            style="bold",
        )

    def _bar(self, done: int) -> RenderableType:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=10)
        grid.add_column(no_wrap=True)
        grid.add_row(
            ProgressBar(total=max(1, self._rounds), completed=done, width=10),
            f"{done}/{self._rounds}",
        )
        return grid


def _mean_round(peers: Sequence[PeerProgress]) -> float:
    return fmean(peer.rounds_done for peer in peers) if peers else 0.0


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _rate_text(rates: Sequence[float | None]) -> str:
    rate = _mean_known(rates)
    return ABSENT if rate is None else f"{rate:.1f}"
