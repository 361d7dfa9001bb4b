"""Local training beside a bare loop of torch, and a run of 50 processes beside its training alone.

python -m benchmarks.training [--repeat 5] [--peers 50] [--rounds 100] [--only-steps]

Steps: one process, one thread, MNIST and CIFAR-10, batches of 128; processor time. The bare loop
has the samples of the peer as ready float32 tensors and takes zero_grad, forward, cross-entropy,
backward, step, and nothing else; the learner takes its samples from the data set and normalises
them, keeps seeds, and looks whether the loss is finite. Both in turn, `repeat` times; medians.

Runs: `examples/mnist50.toml` with D-PSGD, tested after the last round only: as it is, its steps of
a third of a millisecond between exchanges with 25 neighbours each; and with a model and links that
have more to compute and less to send. Their bare training is the processor time of as many steps in
bare loops, on all cores at once, divided by their number.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from benchmarks.startup import measure
from p2p_dml import data, tables
from p2p_dml.data import Dataset
from p2p_dml.learners import SupervisedLearner, Training
from p2p_dml.models import build_model

BATCH, SAMPLES = 128, 1200
CASES = [("softmax", "mnist", 400), ("mlp", "mnist", 200), ("lenet", "cifar10", 20)]
"""model, data set, steps that are timed at once."""

RUN = Path(__file__).parents[1] / "examples" / "mnist50.toml"
CHANGES: dict[str, dict[str, object]] = {
    "25 neighbours": {},
    "4 neighbours": {
        "model": "mlp",
        "links": {"kind": "static", "of": {"kind": "k_regular", "degree": 4}},
    },
}
"""What is other than in the example, by title."""


def main(
    repeat: Annotated[int, typer.Option(min=1)] = 5,
    peers: Annotated[int, typer.Option(min=2)] = 50,
    rounds: Annotated[int, typer.Option(min=1)] = 100,
    only_steps: Annotated[bool, typer.Option("--only-steps")] = False,
) -> None:
    torch.set_num_threads(1)
    console = Console()
    console.print(table_of_steps(repeat))
    if not only_steps:
        for title in CHANGES:
            console.print(table_of_run(title, repeat, peers, rounds))


# ---- one step --------------------------------------------------------------------------------


def table_of_steps(repeat: int) -> Table:
    table = Table("model", "data", "bare step, ms", "learner's step, ms", "ratio")
    for model, name, steps in CASES:
        dataset = data.load({"name": name})
        ways = bare(model, dataset, steps), learner(model, dataset, steps)
        found = [[way() for way in ways] for _ in range(repeat)]
        plain, own = (statistics.median(each) for each in zip(*found, strict=True))
        figures = (f"{1000 * plain:.3f}", f"{1000 * own:.3f}", f"{own / plain:.2f}")
        table.add_row(model, name, *figures)
    return table


def bare(model: str, dataset: Dataset, steps: int) -> Callable[[], float]:
    """Processor seconds per step of the bare loop."""
    module = module_of(model, dataset)
    x = torch.from_numpy(dataset.train_x[:SAMPLES].astype(np.float32))
    y = torch.from_numpy(dataset.train_y[:SAMPLES].astype(np.int64))
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.001)

    def way() -> float:
        begin = time.process_time()
        left = steps
        while left:
            for rows in torch.split(torch.randperm(SAMPLES), BATCH)[:left]:
                optimiser.zero_grad()
                torch.autograd.backward(F.cross_entropy(module(x[rows]), y[rows]))
                optimiser.step()
                left -= 1
        return (time.process_time() - begin) / steps

    way()
    return way


def learner(model: str, dataset: Dataset, steps: int) -> Callable[[], float]:
    """The same of rounds of eight steps of a peer."""
    training = Training(lr=0.001, batch_size=BATCH, steps=8)
    own = SupervisedLearner(
        module_of(model, dataset), dataset, np.arange(SAMPLES), training, seed=0, peer=0
    )

    def way() -> float:
        begin = time.process_time()
        for round_ in range(-(-steps // 8)):
            own.seek(round_)
            own.train()
        return (time.process_time() - begin) / (8 * -(-steps // 8))

    way()
    return way


def module_of(model: str, dataset: Dataset) -> nn.Module:
    return build_model({"name": model}, dataset.train_x.shape[1:], 10, seed=0)


# ---- a whole run -----------------------------------------------------------------------------


def table_of_run(title: str, repeat: int, peers: int, rounds: int) -> Table:
    run = tables.read_toml(RUN, "run file") | CHANGES[title]
    run |= {"peers": peers, "rounds": rounds, "strategy": "dpsgd", "evaluate_every": 0}
    model = str(run["model"])
    steps = peers * rounds * run["train"]["steps"]
    bares, runs = [], []
    for _ in range(repeat):
        bares.append(steps * bare_step_on_all_cores(model) / num_cores())
        runs.append(measure(run, []))
    plain = statistics.median(bares)
    table = Table(
        f"{peers} processes, {rounds} rounds",
        "s",
        "of bare training",
        title=f"{model}, {title}, {steps} steps",
    )
    table.add_row(f"bare training on {num_cores()} cores", f"{plain:.2f}", "1")
    for title, seconds in parts_of(runs).items():
        table.add_row(title, f"{seconds:.2f}", f"{seconds / plain:.2f}")
    return table


def parts_of(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians of what the runs took."""
    return {
        "rounds": statistics.median(each["rounds_s"] - each["met_s"] for each in runs),
        "from the command to the last round": statistics.median(each["rounds_s"] for each in runs),
        "all of it, with the report": statistics.median(each["all_s"] for each in runs),
        "processor time of all processes": statistics.median(each["cpu_s"] for each in runs),
    }


def bare_step_on_all_cores(model: str) -> float:
    """Processor seconds of a step in bare loops, one on every core at the same time."""
    with get_context("spawn").Pool(num_cores()) as pool:
        return statistics.fmean(pool.map(_bare_step, [model] * num_cores(), chunksize=1))


def _bare_step(model: str) -> float:
    torch.set_num_threads(1)
    return bare(model, data.load({"name": "mnist"}), 1000)()


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    typer.run(main)
