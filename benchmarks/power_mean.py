"""Weighted power means against the plain weighted mean, as ratios of time. One JSON line per case.

python -m benchmarks.power_mean [--models 8 …] [--parameters 1000000 …] [--threads 1 …] [--dtype …]

All cases of one size take turns, so that a busy machine slows all of them; `ratio` is the median
over the turns of a case's time by that of the weighted mean in the same turn, `best_ratio` the
shortest time by the shortest, which other work on the machine disturbs least. `torch chain` is the
mean as torch.mul and one torch.add per model, without tiles.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from p2p_dml.kernels import backend
from p2p_dml.kernels._power import power_mean
from p2p_dml.kernels.means import weighted_power_mean

DEGREES = (3.0, 5.0, 9.0, 15.0, 4.5)
MEAN = "weighted mean"
TURNS = (5, 100)
VALUES_PER_CASE = 200_000_000


def main(
    models: Annotated[list[int], typer.Option(min=1)] = [2, 8, 32],  # noqa: B006
    parameters: Annotated[list[int], typer.Option(min=1)] = [7_850, 1_000_000, 11_000_000],  # noqa: B006
    threads: Annotated[list[int], typer.Option(min=1)] = [1, 2],  # noqa: B006
    dtype: str = "float32",
) -> None:
    for size, count in itertools.product(parameters, models):
        xs = [torch.randn(size, dtype=getattr(torch, dtype)) for _ in range(count)]
        for number in threads:
            torch.set_num_threads(number)
            facts = {"models": count, "parameters": size, "dtype": dtype, "threads": number}
            for case in figures(xs):
                print(json.dumps({"backend": backend()} | facts | case), flush=True)


def figures(xs: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Seconds and ratio of each case; gigabytes per second count every input and output once."""
    cases = calls(xs)
    turns = min(max(VALUES_PER_CASE // sum(x.numel() for x in xs), TURNS[0]), TURNS[1])
    times = [turn(cases) for _ in range(turns + 1)][1:]
    best = {name: min(each[name] for each in times) for name in cases}
    found = []
    for name in cases:
        median = statistics.median(each[name] for each in times)
        ratio = statistics.median(each[name] / each[MEAN] for each in times)
        num_bytes = (len(xs) + 1 + name.endswith("slope")) * xs[0].nbytes
        found.append(
            {
                "case": name,
                "ms": round(1e3 * median, 4),
                "ratio": round(ratio, 2),
                "best_ratio": round(best[name] / best[MEAN], 2),
                "gb_per_s": round(num_bytes / median / 1e9, 1),
                "turns": turns,
            }
        )
    return found


def calls(xs: Sequence[Tensor]) -> Mapping[str, Callable[[], object]]:
    weights, out, slope = [1 / len(xs)] * len(xs), torch.zeros_like(xs[0]), torch.zeros_like(xs[0])
    cases: dict[str, Callable[[], object]] = {
        MEAN: partial(weighted_power_mean, xs, weights, 1.0, out)
    }
    for p in DEGREES:
        cases[f"p={p:g}"] = partial(weighted_power_mean, xs, weights, p, out)
    for p in (3.0, 4.5):
        cases[f"p={p:g} slope"] = partial(power_mean, xs, weights, p, out, slope)
    cases["torch chain"] = partial(chain, xs, weights, out)
    return cases


def turn(cases: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of every case once; untimed first, as torch's threads stay awake after a chain."""
    cases[MEAN]()
    return {name: seconds(call) for name, call in cases.items()}


def chain(xs: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    torch.mul(xs[0], weights[0], out=out)
    for x, weight in zip(xs[1:], weights[1:], strict=True):
        out.add_(x, alpha=weight)


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    typer.run(main)
