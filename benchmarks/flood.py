"""Round time and memory of honest peers while one listed peer of their own run floods them.

python -m benchmarks.flood [--peers 4] [--parameters 200000] [--seconds 5] [--turns 3]

The hostile one does its own part in time, so that what it costs the others is not waiting for it;
it shares the machine's cores with them, at the lowest priority.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from benchmarks.flooder import KINDS, kind_at
from p2p_dml.events import event_file, read_events

LOCAL_WORK_S = 0.05
SETTLE_S = 1.0
"""What is going on begins with its second second."""


def main(
    peers: Annotated[int, typer.Option(min=3)] = 4,
    parameters: Annotated[int, typer.Option(min=1)] = 200_000,
    seconds: Annotated[float, typer.Option(help="of each kind, in turns")] = 5.0,
    turns: Annotated[int, typer.Option(min=1)] = 3,
    base_port: Annotated[int, typer.Option()] = 6400,
) -> None:
    """Run the peers, and print a JSON line for each kind of flood."""
    tables: dict[str, Any] = {
        "peers": peers,
        "rounds": 1_000_000,
        "duration_s": seconds * len(KINDS) * turns,
        "links": "complete",
        "strategy": "dpsgd",
        "model": {"name": "p2p_dml.learners.still:vector", "size": parameters},
        "train": "p2p_dml.learners.still:rest",
        "evaluate_every": 0,
        "stragglers": {"round_s": LOCAL_WORK_S},
        "transport": {"base_port": base_port, "straggler_s": 2.0, "shared_memory": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        Path(folder, "run.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
        honest = [_start(Path(folder), out, peer) for peer in range(peers - 1)]
        hostile = _start_hostile(Path(folder), out, peers - 1, seconds)
        memory = _watch(honest, seconds)
        hostile.terminate()
        hostile.wait()
        lines = [list(read_events(event_file(out, peer))) for peer in range(peers - 1)]
    durations = _durations(lines, seconds)
    for kind in KINDS:
        print(
            json.dumps({"kind": kind} | _figures(durations[kind], durations["quiet"], memory[kind]))
        )
    codes = [each.returncode for each in honest]
    print(json.dumps({"exit_codes": codes, "refused": _refused(lines)}))


def _figures(found: list[float], quiet: list[float], memory: list[float]) -> dict[str, float]:
    """Of the rounds under one kind of flood, against those in quiet; none if there were none."""
    if not found or not quiet:
        return {"rounds": len(found)}
    return {
        "rounds": len(found),
        "round_ms": round(1e3 * statistics.median(found), 2),
        "over_quiet": round(statistics.median(found) / statistics.median(quiet), 3),
        "mean_over_quiet": round(statistics.mean(found) / statistics.mean(quiet), 3),
        "peak_mb": round(max(memory, default=0.0), 1),
    }


def _start(folder: Path, out: Path, peer: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "p2p_dml", "peer", str(folder / "run.toml")]
    with (folder / f"{peer}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--me", str(peer), "--out", str(out)], stdout=log, stderr=log
        )


def _start_hostile(folder: Path, out: Path, peer: int, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.flooder", str(folder / "run.toml"), str(peer)]
    return subprocess.Popen([*command, str(out), str(seconds)], preexec_fn=lambda: os.nice(19))


def _watch(peers: list[subprocess.Popen[bytes]], seconds: float) -> dict[str, list[float]]:
    """Resident megabytes of the peers, by what was going on, until the first has ended."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    while all(each.poll() is None for each in peers):
        kind = kind_at(time.time(), seconds)
        found[kind] += [_resident_mb(each.pid) for each in peers]
        time.sleep(0.25)
    for each in peers:
        each.wait()
    return found


def _resident_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    size = re.search(r"VmRSS:\s+(\d+)", status)
    return int(size[1]) * 1024 / 1e6 if size else 0.0


def _durations(lines: list[list[dict[str, Any]]], seconds: float) -> dict[str, list[float]]:
    """Seconds of rounds that lie within one kind, by kind."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for events in lines:
        done = [event["t"] for event in events if event["event"] == "round_done"]
        for before, after in itertools.pairwise(done):
            kind = kind_at(after, seconds)
            if before % seconds > SETTLE_S and kind == kind_at(before - SETTLE_S, seconds):
                found[kind].append(after - before)
    return found


def _refused(lines: list[list[dict[str, Any]]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for event in itertools.chain(*lines):
        if event["event"] in ("rejected", "neighbour_changed"):
            why = event.get("why", "")
            counts[f"{event['event']}: {why}"[:80]] += event.get("times", 1)
    return dict(counts.most_common(8))


if __name__ == "__main__":
    typer.run(main)
