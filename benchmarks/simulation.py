"""Rounds per second of simulations, as one batch and one after another. One JSON line per case.

python -m benchmarks.simulation [--peers 50] [--rounds 100] [--threads 1] [--model softmax] …
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from p2p_dml import config
from p2p_dml.events import PHASES, event_file, read_events
from p2p_dml.launchers import simulated

STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "dpsgd": {"name": "dpsgd"},
    "hyperprism p=9": {"name": "hyperprism", "degree": 9.0},
    "hyperprism learned": {"name": "hyperprism", "degree": "learned"},
}


def main(
    peers: Annotated[int, typer.Option(min=2)] = 50,
    rounds: Annotated[int, typer.Option(min=1)] = 100,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    data: str = "mnist",
    model: str = "softmax",
    steps: int = 8,
    batch_size: int = 128,
    density: float = 0.5,
) -> None:
    tables = {
        "peers": peers,
        "rounds": rounds,
        "threads": threads,
        "data": data,
        "model": model,
        "partition": {"name": "dirichlet", "alpha": 0.1},
        "links": {"kind": "erdos_renyi", "density": density},
        "train": {"lr": 0.01, "batch_size": batch_size, "steps": steps},
        "evaluate_every": 10,
    }
    facts = {key: tables[key] for key in ("peers", "rounds", "threads", "data", "model")}
    for name, strategy in STRATEGIES.items():
        for batched in (True, False):
            run = config.parse({**tables, "strategy": strategy}, Path())
            print(json.dumps({**facts, "strategy": name, **measure(run, batched)}), flush=True)


def measure(run: config.RunConfig, batched: bool) -> dict[str, Any]:
    """Seconds of one simulation in all, and of its phases summed over the peers."""
    with tempfile.TemporaryDirectory() as parent:
        folder, begin, cpu_begin = Path(parent, "run"), time.perf_counter(), time.process_time()
        simulated.simulate(run, folder, lambda path, started: lambda: None, batched=batched)
        wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
        files = [event_file(folder, peer) for peer in range(run.peers)]
        done = [e for file in files for e in read_events(file) if e["event"] == "round_done"]
    seconds = {phase: round(sum(e["seconds"][phase] for e in done), 2) for phase in PHASES}
    return {
        "batched": batched,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "rounds_per_s": round(run.rounds / wall_s, 2),
        "seconds": {phase: seconds[phase] for phase in ("train", "mix", "evaluate")},
    }


if __name__ == "__main__":
    typer.run(main)
