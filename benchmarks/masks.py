"""Neighbours' masks as bits against models as float32, as ratios of time. One JSON line per case.

python -m benchmarks.masks [--masks 8 …] [--parameters 1227328 …] [--threads 1 …] [--keep 0.3]

`pack + count` packs every mask from a byte per value and counts how many masks have each value; the
`sum` it is compared with adds as many float32 models in place, the least that a mean of models
takes. All cases of one size take turns, so that a busy machine slows all of them; `ratio` is the
median over the turns of a case's time by that of the sum in the same turn, `best_ratio` the
shortest time by the shortest. Coding cases handle one mask; `bytes` is what they send.
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

from p2p_dml.kernels import entropy
from p2p_dml.kernels.masks import count, ones, pack, top_share, unpack

SUM = "sum"
TURNS = 11


def main(
    masks: Annotated[list[int], typer.Option(min=2)] = [8],  # noqa: B006
    parameters: Annotated[list[int], typer.Option(min=1)] = [1_227_328, 11_000_000],  # noqa: B006
    threads: Annotated[list[int], typer.Option(min=1)] = [1],  # noqa: B006
    keep: float = 0.3,
) -> None:
    for size, number in itertools.product(parameters, masks):
        torch.manual_seed(0)
        xs = [torch.randn(size) for _ in range(number)]
        for used in threads:
            torch.set_num_threads(used)
            facts = {"masks": number, "parameters": size, "threads": used, "keep": keep}
            for case in figures(xs, keep):
                print(json.dumps(facts | case), flush=True)


def figures(xs: Sequence[Tensor], keep: float) -> list[dict[str, Any]]:
    """Milliseconds and ratio of each case, and the bytes of what is sent."""
    drawn = [top_share(x, keep) for x in xs]
    packed = [pack([mask]) for mask in drawn]
    cases = calls(xs, drawn, packed, keep)
    times = [turn(cases) for _ in range(TURNS + 1)][1:]
    best = {name: min(each[name] for each in times) for name in cases}
    sent = sent_bytes(xs, packed)
    return [
        {
            "case": name,
            "ms": round(1e3 * statistics.median(each[name] for each in times), 3),
            "ratio": round(statistics.median(each[name] / each[SUM] for each in times), 3),
            "best_ratio": round(best[name] / best[SUM], 3),
        }
        | ({"bytes": sent[name]} if name in sent else {})
        for name in cases
    ]


def calls(
    xs: Sequence[Tensor], drawn: Sequence[Tensor], packed: Sequence[Tensor], keep: float
) -> Mapping[str, Callable[[], object]]:
    numel = xs[0].numel()
    code = entropy.encode(packed[0], [numel])
    return {
        SUM: partial(add_up, xs, torch.empty_like(xs[0])),
        "pack + count": lambda: count([pack([mask]) for mask in drawn], numel),
        "pack one + count": lambda: count([pack([drawn[0]]), *packed[1:]], numel),
        "count": partial(count, packed, numel),
        "pack": partial(pack, [drawn[0]]),
        "unpack": partial(unpack, packed[0], [(numel,)]),
        "ones": partial(ones, packed[0], [numel]),
        "top share": partial(top_share, xs[0], keep),
        "encode": partial(entropy.encode, packed[0], [numel]),
        "decode": partial(entropy.decode, code, [numel]),
    }


def sent_bytes(xs: Sequence[Tensor], packed: Sequence[Tensor]) -> dict[str, int]:
    """Size of a message by the case that makes it."""
    code = entropy.encode(packed[0], [xs[0].numel()])
    return {SUM: xs[0].nbytes, "pack": packed[0].nbytes, "encode": code.nbytes}


def turn(cases: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of every case once."""
    return {name: seconds(call) for name, call in cases.items()}


def add_up(xs: Sequence[Tensor], out: Tensor) -> None:
    torch.add(xs[0], xs[1], out=out)
    for x in xs[2:]:
        out.add_(x)


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    typer.run(main)
