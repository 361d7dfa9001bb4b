"""Measures one case after the other: real processes, a training that does nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import zmq

from p2p_dml import __version__, kernels
from p2p_dml.assemble import blueprint
from p2p_dml.checks import check_needs
from p2p_dml.config import RunConfig, dump
from p2p_dml.errors import ExitCode
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers.bench.bare import KINDS
from p2p_dml.launchers.bench.cases import WARM_UP, Case
from p2p_dml.launchers.bench.figures import figures, medians
from p2p_dml.launchers.bench.limits import limits
from p2p_dml.launchers.process import STOP_GRACE_S
from p2p_dml.launchers.single import check_transport
from p2p_dml.launchers.temporary import temporary_folder

_RUN_S = ("round_ms", "mean_round_ms")


@final
class RunFailed(Exception):
    """A run of a case ended otherwise than it should; what it said is on standard error."""

    def __init__(self, exit_code: int) -> None:
        known = exit_code in tuple(ExitCode)
        self.exit_code = ExitCode(exit_code) if known else ExitCode.FAILED


def check(cases: Sequence[Case]) -> None:
    """Raise ConfigError if a case cannot be run, before any is."""
    for case in cases:
        config = case.config()
        check_transport(config)
        check_needs(blueprint(config))


def measure(
    cases: Sequence[Case], repeat: int, *, with_limits: bool, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """The line of each case, over `repeat` runs of it; raises RunFailed.

    `with_limits`: before each run the bare loops of the same links and size are measured, so that
    both see the same machine.
    """
    for place, case in enumerate(cases):
        runs: list[dict[str, float]] = []
        bounds: list[dict[str, float]] = []
        for turn in range(repeat):
            say(f"case {place + 1} of {len(cases)}, run {turn + 1} of {repeat}: {case.facts()}")
            if with_limits:
                bounds.append(limits(case.config(), case.params, WARM_UP + case.rounds))
            runs.append(run_once(case.config()))
        yield line_of(case, runs, bounds)


def line_of(
    case: Case, runs: Sequence[dict[str, float]], bounds: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """One case: what was measured, medians over its runs, and of what."""
    middle = medians(runs)
    line = {**case.facts(), "repeat": len(runs), **middle}
    line["runs"] = {key: [medians([run])[key] for run in runs] for key in _RUN_S}
    if bounds:
        best = medians(bounds)
        line["limits"] = best
        line["ratio"] = {
            kind: float(f"{middle['round_ms'] / best[f'{kind}_ms']:.3g}") for kind in KINDS
        }
    return line | {"machine": machine(), "versions": versions()}


def run_once(config: RunConfig) -> dict[str, float]:
    """The figures of one run of `config`, from the start of its launcher on."""
    with temporary_folder() as place:
        file, folder = place / "bench.toml", place / "run"
        dump(config, file)
        begun = time.time()
        _launch([sys.executable, "-m", "p2p_dml.launchers.bench.once", str(file), str(folder)])
        peers = [list(read_events(event_file(folder, peer))) for peer in range(config.peers)]
    return figures(peers, begun)


def _launch(command: Sequence[str]) -> None:
    """Run a launcher to its end; it is told to stop if this process is."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait(STOP_GRACE_S)
            raise
    if code != ExitCode.DONE:
        raise RunFailed(code)


def machine() -> dict[str, Any]:
    """Where it was measured: cores that may be used, their kind, and how busy they were."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_name(),
        "system": f"{platform.system()} {platform.release()}",
        "load_1min": round(os.getloadavg()[0], 1),
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def versions() -> dict[str, str]:
    """Of what took part; `kernels`: what computed the means."""
    return {
        "p2p_dml": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "pyzmq": zmq.pyzmq_version(),
        "libzmq": zmq.zmq_version(),
        "kernels": kernels.backend(),
    }


def append(file: Path, line: str) -> None:
    """Add a line to a file that may be there."""
    with file.open("a", encoding="utf-8") as out:
        out.write(line + "\n")


def as_text(line: dict[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(line)
