"""What the machine can do at best, measured beside a run: bare loops, and copying memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from p2p_dml.assemble import DTYPES, schedule_of
from p2p_dml.config import RunConfig
from p2p_dml.errors import TransportError
from p2p_dml.launchers.bench.bare import KINDS, Kind, Plan
from p2p_dml.launchers.bench.figures import round_times
from p2p_dml.launchers.temporary import temporary_folder

_GRAPHS = 32
"""Graphs of a schedule that a bare loop goes through, again and again."""

COPY_BYTES = 44_000_000
"""More than the caches of most machines hold."""


def limits(config: RunConfig, num_params: int, rounds: int) -> dict[str, float]:
    """Milliseconds per round of the bare loops, as the median peer sees them; copying speed."""
    found = {"memory_copy_gb_s": memory_copy_gb_s()}
    size = num_params * DTYPES[config.dtype].itemsize
    for kind in KINDS:
        found[f"{kind}_ms"] = bare_loop(kind, config, size, rounds)["round_ms"]
    return found


def bare_loop(kind: Kind, config: RunConfig, num_bytes: int, rounds: int) -> dict[str, float]:
    """`round_times` of a bare loop over the links of a run, vectors of `num_bytes` each.

    Raises TransportError if a process of it failed, with what it said.
    """
    schedule = schedule_of(config)
    with temporary_folder() as folder:
        plan = Plan(
            kind=kind,
            folder=str(folder),
            num_bytes=num_bytes,
            rounds=rounds,
            scheme=config.transport.scheme,
            graphs=[schedule(tick).senders for tick in range(min(rounds, _GRAPHS))],
        )
        _run(plan)
        results = [_result(folder, peer) for peer in range(plan.num_peers)]
    return round_times([each["at"] for each in results])


def _run(plan: Plan) -> None:
    command = [sys.executable, "-m", "p2p_dml.launchers.bench.bare"]
    outcome = subprocess.run(command, input=json.dumps(asdict(plan)), text=True, check=False)
    if outcome.returncode:
        logs = [path.read_text(encoding="utf-8") for path in Path(plan.folder).glob("*.log")]
        why = next((text.strip().splitlines()[-1] for text in logs if text.strip()), "no reason")
        raise TransportError(f"the bare loop over {plan.kind} failed: {why}")


def _result(folder: Path, peer: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{peer}.json").read_bytes())
    return found


def memory_copy_gb_s(num_bytes: int = COPY_BYTES, copies: int = 20) -> float:
    """Gigabytes (10^9) per second that one core copies between warm buffers; median."""
    source, target = (np.full(num_bytes, fill, np.uint8) for fill in (1, 2))
    seconds = timed(lambda: np.copyto(target, source), copies)
    return num_bytes / 1e9 / statistics.median(seconds)


def timed(act: Callable[[], object], times: int) -> list[float]:
    """Seconds of each call of `act`."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begin)
    return seconds
