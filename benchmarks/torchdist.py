"""Time of an exchange over torch.distributed against a bare batch of the same buffers.

torchrun --nproc-per-node 4 -m benchmarks.torchdist [--parameters 11000000] [--rounds 40]

Ranks in a ring, gloo; both kinds of exchange in each round, and each goes first in every other one.
One JSON line, figures of rank 0; an exchange includes the copy of the model that is sent.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import torch.distributed as dist
import typer

from p2p_dml.transports.torchdist import Group, TorchDistTransport
from p2p_dml.types import Mail, Payload, PeerId, Tag

DEADLINE_S = 60.0
WARM_UP = 3
CPU = torch.device("cpu")


def main(
    parameters: Annotated[int, typer.Option(min=1)] = 11_000_000,
    rounds: Annotated[int, typer.Option(min=WARM_UP + 4)] = 40,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    bare, ours = times(parameters, rounds)
    if dist.get_rank() == 0:
        case = {"ranks": dist.get_world_size(), "parameters": parameters, "exchanges": len(ours)}
        ratios = [a / b for a, b in zip(ours, bare, strict=True)]
        figures = {
            "bare_ms": round(1e3 * statistics.median(bare), 2),
            "transport_ms": round(1e3 * statistics.median(ours), 2),
            "ratio": round(statistics.median(ours) / statistics.median(bare), 3),
            "ratio_of_pairs": round(statistics.median(ratios), 3),
        }
        print(json.dumps(case | figures))
    dist.destroy_process_group()


def times(parameters: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each bare and each whole exchange, without the first ones."""
    me, ranks = dist.get_rank(), dist.get_world_size()
    neighbours = sorted({(me - 1) % ranks, (me + 1) % ranks} - {me})
    model = torch.randn(parameters)
    transport = TorchDistTransport(Group(CPU), bytes(16), home=CPU)
    buffers = {j: torch.zeros(parameters) for j in neighbours}
    bare: list[float] = []
    ours: list[float] = []
    for round_ in range(1, rounds + 1):
        tag = Tag(round_)
        kinds: list[tuple[list[float], Callable[[], object]]] = [
            (bare, lambda: bare_batch(model, buffers)),
            (ours, lambda t=tag: exchange(transport, t, Payload({"x": model}), neighbours)),  # type: ignore[misc]
        ]
        for seconds, act in kinds[:: 1 if round_ % 2 else -1]:
            seconds.append(timed(act))
    return bare[WARM_UP:], ours[WARM_UP:]


def timed(act: Callable[[], object]) -> float:
    """Seconds from when all ranks begin until this one is done."""
    dist.barrier()
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def bare_batch(model: torch.Tensor, buffers: dict[PeerId, torch.Tensor]) -> None:
    ops = [dist.P2POp(dist.isend, model, j) for j in buffers]
    ops += [dist.P2POp(dist.irecv, buffer, j) for j, buffer in buffers.items()]
    for work in dist.batch_isend_irecv(ops):
        work.wait()


def exchange(
    transport: TorchDistTransport, tag: Tag, payload: Payload, neighbours: list[PeerId]
) -> Mail:
    transport.post(tag, dict.fromkeys(neighbours, payload))
    return transport.collect(tag, neighbours, DEADLINE_S)


if __name__ == "__main__":
    typer.run(main)
