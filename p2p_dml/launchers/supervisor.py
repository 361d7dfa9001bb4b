"""The peers of this host, of a run on several: `python -m p2p_dml.launchers.supervisor`.

JSON lines on standard input say what to run and when to go on or stop; those on standard output say
how far all is. Peers here begin once the launcher has heard that those of all hosts are there. When
standard input closes, nothing is left running and the scratch folder is gone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from p2p_dml import config as run_files
from p2p_dml.errors import P2PError
from p2p_dml.launchers.crew import hired
from p2p_dml.launchers.line import LauncherGone, Line
from p2p_dml.launchers.temporary import temporary_folder


def supervise(order: Mapping[str, Any], launcher: Line) -> None:
    """Run the peers that `order` names to their end; P2PError if they cannot begin."""
    config = run_files.load(Path(order["home"]) / "run.toml")
    with temporary_folder() as scratch, hired(config.threads) as crew:
        from p2p_dml.launchers.hosting import host  # imports torch, while the crew does

        host(crew, scratch, config, order, launcher)


def _own_output() -> IO[str]:
    """Standard output for our lines alone: what a user's module prints goes to the log."""
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return sink


def _leave(number: int, frame: object) -> NoReturn:
    raise LauncherGone


def main() -> None:
    """Do what standard input says; an error that a user can meet is said there too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's business
    signal.signal(signal.SIGTERM, _leave)
    line = Line(0, _own_output())
    try:
        order = line.next(None)
        assert order is not None
        supervise(order, line)
    except P2PError as error:
        line.say({"failed": str(error), "code": error.exit_code})
        sys.exit(error.exit_code)
    except (LauncherGone, BrokenPipeError):  # by now its peers are gone, too
        sys.exit(0)


if __name__ == "__main__":
    main()
