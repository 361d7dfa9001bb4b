"""Round time of honest peers while strangers do what they can, over without, in one run.

python -m benchmarks.attacks [--peers 4] [--parameters 200000] [--seconds 6]

Attacks and quiet take turns. The attackers share the machine's cores with the peers, at the lowest
priority; what they cost in the kernel, they cost here too.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, final

import typer

from benchmarks.attacker import ATTACKS
from p2p_dml import config
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import local

LOCAL_WORK_S = 0.05
TURNS = 2


def main(
    peers: Annotated[int, typer.Option(min=2)] = 4,
    parameters: Annotated[int, typer.Option(min=1)] = 200_000,
    seconds: Annotated[float, typer.Option(help="of each attack, and of quiet between")] = 6.0,
) -> None:
    """Run the peers, attack them, and print a JSON line for each attack."""
    tables = {
        "name": "attacks",
        "peers": peers,
        "rounds": 1_000_000,
        "duration_s": seconds * (2 * TURNS * len(ATTACKS) + 1),
        "links": "ring",
        "strategy": "dpsgd",
        "model": {"name": "p2p_dml.learners.still:vector", "size": parameters},
        "train": "p2p_dml.learners.still:rest",
        "evaluate_every": 0,
        "stragglers": {"round_s": LOCAL_WORK_S},
        "transport": {"scheme": "tcp", "encryption": "curve", "shared_memory": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        plan = Plan(run, peers, seconds)
        outcome = local.run(config.parse(tables, Path()), run, lambda path, started: plan.update)
        plan.end()
        lines = [list(read_events(event_file(run, peer))) for peer in range(peers)]
    for attack, figures in plan.figures(lines).items():
        print(json.dumps({"attack": attack, "exit_code": int(outcome.exit_code)} | figures))


@final
class Plan:
    """Which attack is on when."""

    def __init__(self, run: Path, peers: int, seconds: float) -> None:
        self._files = [event_file(run, peer) for peer in range(peers)]
        self._seconds = seconds
        self._due = [kind for _ in range(TURNS) for each in ATTACKS for kind in ("quiet", each)]
        self._next_at = 0.0
        self._attacker: subprocess.Popen[bytes] | None = None
        self._windows: list[tuple[float, float, str]] = []

    def update(self) -> None:
        """Go on to what is due, once all peers have met."""
        if time.time() < self._next_at or not self._due:
            return
        endpoints = self._endpoints()
        if endpoints is None:
            return
        self.end()
        kind = self._due.pop(0)
        if kind != "quiet":
            self._attacker = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.attacker", kind, *endpoints],
                preexec_fn=lambda: os.nice(19),
            )
        now = time.time()
        self._next_at = now + self._seconds
        # What is going on begins with its second second.
        self._windows.append((now + 1.0, self._next_at, kind))

    def _endpoints(self) -> list[str] | None:
        if not all(file.exists() for file in self._files):
            return None
        lines = [list(read_events(file)) for file in self._files]
        if not all(any(line["event"] == "joined" for line in each) for each in lines):
            return None
        return [each[0]["endpoint"] for each in lines]

    def end(self) -> None:
        """End the attack that is on."""
        if self._attacker is not None:
            self._attacker.terminate()
            self._attacker.wait()
            self._attacker = None

    def figures(self, lines: list[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
        """Milliseconds per round of each attack, their ratio to quiet, and what was refused."""
        durations: dict[str, list[float]] = {kind: [] for kind in ("quiet", *ATTACKS)}
        for events in lines:
            done = [event["t"] for event in events if event["event"] == "round_done"]
            for before, after in itertools.pairwise(done):
                if kind := self._kind_at(before, after):
                    durations[kind].append(after - before)
        quiet = statistics.median(durations["quiet"])
        return {
            kind: {
                "round_ms": round(1e3 * statistics.median(each), 2),
                "over_quiet": round(statistics.median(each) / quiet, 3),
                "mean_over_quiet": round(
                    statistics.mean(each) / statistics.mean(durations["quiet"]), 3
                ),
            }
            for kind, each in durations.items()
        } | {"all, refused": _refused(lines)}

    def _kind_at(self, begin: float, end: float) -> str | None:
        return next((k for a, b, k in self._windows if a <= begin and end <= b), None)


def _refused(lines: list[list[dict[str, Any]]]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for event in itertools.chain(*lines):
        if event["event"] == "rejected":
            counts[event["why"]] += event["times"]
    return dict(counts)


if __name__ == "__main__":
    typer.run(main)
