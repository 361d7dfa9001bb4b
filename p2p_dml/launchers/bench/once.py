"""One run as `p2p-dml run` makes it, but for its report: `python -m p2p_dml.launchers.bench.once`.

A process of its own, so that its start is measured too. Arguments: run file, run folder.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import NoReturn

from p2p_dml.console import complain
from p2p_dml.errors import ExitCode, P2PError
from p2p_dml.launchers.process import STOP_SIGNALS, signal_with_parent


def main() -> NoReturn:
    """Run the peers to their end; what went wrong is said on standard error."""
    signal_with_parent(signal.SIGTERM)
    for number in STOP_SIGNALS:  # until the peers run, when `local.run` takes signals over
        signal.signal(number, _stop)
    try:
        sys.exit(_run(Path(sys.argv[1]), Path(sys.argv[2])))
    except P2PError as error:
        complain(error)
        sys.exit(error.exit_code)


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(ExitCode.STOPPED)


def _run(file: Path, folder: Path) -> ExitCode:
    from p2p_dml import config
    from p2p_dml.launchers import local

    settings = config.load(file, folder=Path())
    outcome = local.run(settings, folder, lambda path, started: lambda: None)
    if outcome.verdict:
        complain(outcome.verdict)
    return outcome.exit_code


if __name__ == "__main__":
    main()
