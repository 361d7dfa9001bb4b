"""What a round costs a peer in processor time: measured with 8 peers, held against runs of more.

python -m benchmarks.costs [--params 7850] [--rounds 200] [--check 16,50,100] [--repeat 3]

Real processes exchange vectors over sockets (no shared memory, as between hosts) with D-PSGD and
no training; `cpu_ms` of `p2p-dml bench rounds`, medians over the repeats. Rings and complete graphs
of 8 tell rounds from messages, longer vectors tell messages from bytes. Then a torus (4 neighbours)
of more peers, which took no part in that. A local step: softmax regression, 32 samples of MNIST.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.on_paper import Costs
from p2p_dml import config
from p2p_dml.assemble import blueprint, learner_of, load_data
from p2p_dml.launchers.bench.cases import Case
from p2p_dml.launchers.bench.rounds import run_once

PEERS, LARGE = 8, 400_000
NO_SHARED_MEMORY = "shared_memory=false"
STEPS = 200


def main(
    params: Annotated[int, typer.Option(min=1)] = 7850,
    rounds: Annotated[int, typer.Option(min=1)] = 200,
    check: str = "16,50,100",
    repeat: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    costs = measure(params, rounds, repeat)
    console = Console(width=110)
    console.print(in_words(costs))
    table = Table("peers", "neighbours", "ms, measured", "ms, on paper", "error")
    for num_peers in map(int, check.split(",")):
        found = cpu_ms(num_peers, "torus", params, rounds, repeat)
        foretold = 1e3 * costs.round_of(4, 4 * params)
        row = (f"{found:.3g}", f"{foretold:.3g}", f"{foretold / found - 1:+.0%}")
        table.add_row(str(num_peers), "4", *row)
    console.print(table)


def measure(params: int, rounds: int = 200, repeat: int = 3) -> Costs:
    """The costs of peers that exchange vectors of about `params` float32."""
    ring = cpu_ms(PEERS, "ring", params, rounds, repeat)
    every = cpu_ms(PEERS, "complete", params, rounds, repeat)
    large = cpu_ms(PEERS, "ring", LARGE, rounds, repeat)
    return solved(ring, every, large, 4 * params, 4 * LARGE, step_s())


def solved(
    ring_ms: float, complete_ms: float, large_ms: float, small: int, large: int, step_s: float
) -> Costs:
    """Costs by which rounds of 8 peers take so long: rings and complete graphs, messages of
    `small` bytes, and rings of `large` ones. None is below 0.
    """
    byte_s = max(0.0, (large_ms - ring_ms) / 1e3 / (2 * 2 * (large - small)))
    exchange_s = max(0.0, (complete_ms - ring_ms) / 1e3 / (PEERS - 1 - 2))
    return Costs(
        round_s=max(0.0, ring_ms / 1e3 - 2 * exchange_s),
        message_s=max(0.0, exchange_s / 2 - byte_s * small),
        byte_s=byte_s,
        step_s=step_s,
    )


def cpu_ms(num_peers: int, topology: str, params: int, rounds: int, repeat: int) -> float:
    """Processor milliseconds of the median peer per round."""
    case = Case(
        peers=num_peers,
        topology=topology,
        params=params,
        rounds=rounds,
        transport=NO_SHARED_MEMORY,
    )
    return statistics.median(run_once(case.config())["cpu_ms"] for _ in range(repeat))


def step_s() -> float:
    """Processor seconds of a local step, without what a round costs otherwise."""
    table = {
        "peers": PEERS,
        "rounds": 1,
        "data": "mnist",
        "model": "softmax",
        "links": "ring",
        "strategy": "local",
        "train": {"lr": 0.01, "batch_size": 32, "steps": STEPS},
    }
    settings = config.parse(table, Path())
    torch.set_num_threads(settings.threads)
    parts = blueprint(settings, *load_data(settings))
    learner = learner_of(parts, parts.model(), 0)
    seconds = []
    for round_ in (1, 2, 3):
        learner.seek(round_)
        begin = time.process_time()
        learner.train()
        seconds.append(time.process_time() - begin)
    return min(seconds) / STEPS


def in_words(costs: Costs) -> str:
    return (
        f"processor time of a peer: {costs.round_s * 1e3:.3g} ms per round, "
        f"{costs.message_s * 1e3:.3g} ms per message and {costs.byte_s * 1e9:.3g} ns per byte at "
        f"either end, {costs.step_s * 1e3:.3g} ms per local step"
    )


if __name__ == "__main__":
    typer.run(main)
