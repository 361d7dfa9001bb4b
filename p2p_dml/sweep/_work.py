"""What the process of a case does: run it, and write the figures that the sweep reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from p2p_dml import config, plugins, report
from p2p_dml.assemble import schedule_of
from p2p_dml.config import RunConfig
from p2p_dml.errors import ExitCode, P2PError
from p2p_dml.launchers import local, simulated
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.sweep._values import Order


def work(order: Order) -> int:
    """Run a case in the folder it is given; its exit code. What went wrong is printed."""
    file, run = Path(order.path, "case.toml"), Path(order.path, "run")
    # What run.json shows is what does the same again.
    device = [] if order.device == "cpu" else ["--device", order.device]
    sys.argv = ["p2p-dml", order.mode, str(file), "--out", str(run), *device]
    _look_in(Path(order.folder))
    try:
        return _work(config.load(file), run, order)
    except P2PError as error:
        print(f"error: {error}")
        return int(error.exit_code)


def _work(settings: RunConfig, run: Path, order: Order) -> int:
    outcome = _run(settings, run, order)
    if outcome.verdict:
        print(f"error: {outcome.verdict}")
    elif outcome.exit_code is ExitCode.DONE and order.with_report:
        report.write(run, schedule_of(settings))
    elif outcome.exit_code is ExitCode.DONE:
        report.write_figures(run)
    return int(outcome.exit_code)


def _run(settings: RunConfig, run: Path, order: Order) -> Outcome:
    if order.mode == "run":
        return local.run(settings, run, _unwatched)
    return simulated.simulate(
        settings, run, _unwatched, batched=None, device=order.device, say=print
    )


def _unwatched(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


def _look_in(folder: Path) -> None:
    """Have modules of the user's own found beside the original run file, by our children too."""
    plugins.look_in(folder)
    places = (str(folder.resolve()), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
