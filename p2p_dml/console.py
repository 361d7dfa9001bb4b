"""What commands that run peers show: messages, the live view, the final table."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, final

from rich.console import Console

from p2p_dml.errors import P2PError, StorageError

if TYPE_CHECKING:
    from p2p_dml.config import RunConfig


def complain(error: P2PError | str) -> None:
    """Say what went wrong, on standard error."""
    Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)


def sayer(console: Console, quiet: bool) -> Callable[[str], None]:
    """A function that says a line, unless all is to be quiet."""
    return lambda line: None if quiet else console.print(line, soft_wrap=True, markup=False)


def conclude(folder: Path, console: Console) -> None:
    """Write the report and print the final table and where everything is."""
    from p2p_dml import config, report
    from p2p_dml.assemble import schedule_of

    schedule = (
        schedule_of(config.load(folder / "run.toml")) if (folder / "run.toml").exists() else None
    )
    page = report.write(folder, schedule)
    console.print(report.final_table(report.load(folder)))
    console.print(f"report: {page}", soft_wrap=True)


def finish(folder: Path, verdict: str | None, console: Console) -> None:
    """Say what went wrong, if anything did, and conclude."""
    if verdict:
        complain(verdict)
    try:
        conclude(folder, console)
    except StorageError:
        if not verdict:  # a full disk is said already
            raise


@final
class Watch:
    """The live view of a run, or nothing with --quiet; closed whatever happens."""

    def __init__(self, settings: RunConfig, console: Console, quiet: bool) -> None:
        self._settings = settings
        self._console = console
        self._quiet = quiet
        self._close: Callable[[], None] = lambda: None
        self._next = 0.0

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def begin(self, folder: Path, started: float) -> Callable[[], None]:
        """Begin to follow a run folder; the result is to be called often."""
        from p2p_dml.report import LiveView

        if self._quiet:
            return lambda: None
        run = self._settings
        view = LiveView(
            folder, run.peers, run.rounds, self._console, started, duration_s=run.duration_s
        )
        self._close = view.close

        def update() -> None:
            if time.monotonic() >= self._next:
                view.update()
                self._next = time.monotonic() + 0.25

        return update
