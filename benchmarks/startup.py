"""From the command to training: 16, 100 and 1,000 peers as processes of this machine. One table.

python -m benchmarks.startup [--peers 16] [--peers 100] [--peers 1000] [--rounds 10] [--repeat 5]

`p2p-dml run` on MNIST, softmax regression, D-PSGD, four neighbours drawn once. Times are those of
the last peer, in seconds from the start of the command, interpreter and imports included; medians
over the repeats. `all` is the whole command, with its report; `cpu` the processor time of all its
processes, which says more than seconds where the machine has other work.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from rich.console import Console
from rich.table import Table

from p2p_dml.events import event_file, read_events

COLUMNS = ("met_s", "first_step_s", "rounds_s", "all_s", "cpu_s", "pss_mb", "pss_mb_max")
AFTER_TRAINING = ("send", "wait", "mix", "evaluate")


def main(
    peers: Annotated[list[int] | None, typer.Option(min=5)] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    repeat: Annotated[int, typer.Option(min=1)] = 5,
    data: str = "mnist",
    set_: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    table = Table("peers", *COLUMNS, title=f"{rounds} rounds, medians of {repeat}")
    for num_peers in peers or [16, 100, 1000]:
        run = run_file(num_peers, rounds, data)
        found = [measure(run, set_ or []) for _ in range(repeat)]
        figures = (statistics.median(each[key] for each in found) for key in COLUMNS)
        table.add_row(str(num_peers), *(f"{each:.3g}" for each in figures))
    Console().print(table)


def run_file(num_peers: int, rounds: int, data: str) -> Mapping[str, Any]:
    return {
        "name": "startup",
        "peers": num_peers,
        "rounds": rounds,
        "data": data,
        "model": "softmax",
        "links": {"kind": "static", "of": {"kind": "k_regular", "degree": 4}},
        "strategy": "dpsgd",
        "train": {"lr": 0.01, "batch_size": 32, "steps": 1},
        "evaluate_every": 0,
        "transport": {"startup_s": 300.0, "straggler_s": 300.0},
    }


def measure(run: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, float]:
    """Run the command once; SystemExit with what it said if it fails."""
    with tempfile.TemporaryDirectory() as name:
        file, folder = Path(name, "run.toml"), Path(name, "run")
        file.write_text(tomli_w.dumps(dict(run)), encoding="utf-8")
        command = [sys.executable, "-m", "p2p_dml", "run", str(file), "--out", str(folder)]
        command += [word for each in overrides for word in ("--set", each)]
        begun, cpu_s = time.time(), _children_cpu_s()
        outcome = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
        ended = time.time()
        if outcome.returncode:
            raise SystemExit(outcome.stderr)
        files = [event_file(folder, peer) for peer in range(run["peers"])]
        return figures([list(read_events(each)) for each in files], begun) | {
            "all_s": ended - begun,
            "cpu_s": _children_cpu_s() - cpu_s,
        }


def _children_cpu_s() -> float:
    """Processor seconds of all processes that were waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def figures(peers: Sequence[Sequence[Mapping[str, Any]]], begun: float) -> dict[str, float]:
    """The columns of the table, from each peer's events."""
    joined = [line["t"] for lines in peers for line in lines if line["event"] == "joined"]
    done = [[line for line in lines if line["event"] == "round_done"] for lines in peers]
    memory = [[line for line in lines if line["event"] == "memory"][-1] for lines in peers]
    return {
        "met_s": max(joined) - begun,
        "first_step_s": max(map(trained_at, (own[0] for own in done))) - begun,
        "rounds_s": max(own[-1]["t"] for own in done) - begun,
        "pss_mb": statistics.median(each["pss_mb"] for each in memory),
        "pss_mb_max": max(each["pss_mb"] for each in memory),
    }


def trained_at(done: Mapping[str, Any]) -> float:
    """When the local training of a round was over."""
    return float(done["t"] - sum(done["seconds"][phase] for phase in AFTER_TRAINING))


if __name__ == "__main__":
    typer.run(main)
