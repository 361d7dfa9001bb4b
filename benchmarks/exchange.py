"""Time per round without training: what the runtime itself costs. One JSON line per case.

python -m benchmarks.exchange [--peers 8] [--parameters 1000000] [--links ring] [--rounds 200]
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from p2p_dml import config
from p2p_dml.events import PHASES, event_file, read_events
from p2p_dml.launchers import local

WARM_UP = 20


def main(
    peers: Annotated[int, typer.Option(min=2)] = 8,
    parameters: Annotated[int, typer.Option(min=1)] = 1_000_000,
    links: str = "ring",
    rounds: Annotated[int, typer.Option(min=WARM_UP + 10)] = 200,
    scheme: str = "ipc",
    strategy: str = "dpsgd",
) -> None:
    tables = {
        "name": "exchange",
        "peers": peers,
        "rounds": rounds,
        "links": links,
        "strategy": strategy,
        "model": {"name": "benchmarks.vector:vector", "size": parameters},
        "train": "benchmarks.vector:nothing",
        "evaluate_every": 0,
        "transport": {"scheme": scheme},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        outcome = local.run(config.parse(tables, Path()), run, lambda path, started: lambda: None)
        lines = [list(read_events(event_file(run, peer))) for peer in range(peers)]
    case = {"peers": peers, "parameters": parameters, "links": links, "scheme": scheme}
    print(json.dumps(case | {"exit_code": int(outcome.exit_code)} | figures(lines)))


def figures(lines: Iterable[list[dict[str, Any]]]) -> dict[str, Any]:
    """Milliseconds per round (median over rounds and peers) and per phase; memory in MB."""
    durations: list[float] = []
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    memory: list[dict[str, float]] = []
    for events in lines:
        done = [e for e in events if e["event"] == "round_done"][WARM_UP:-1]
        durations += [b["t"] - a["t"] for a, b in itertools.pairwise(done)]
        for phase, values in phases.items():
            values += [e["seconds"][phase] for e in done]
        memory += [e for e in events if e["event"] == "memory"][-1:]
    return {
        "round_ms": round(1e3 * statistics.median(durations), 2),
        "round_ms_p90": round(1e3 * statistics.quantiles(durations, n=10)[-1], 2),
        "phase_ms": {k: round(1e3 * statistics.median(v), 2) for k, v in phases.items()},
        "pss_mb": round(statistics.median(e["pss_mb"] for e in memory), 1),
        "rss_mb": round(statistics.median(e["rss_mb"] for e in memory), 1),
    }


if __name__ == "__main__":
    typer.run(main)
