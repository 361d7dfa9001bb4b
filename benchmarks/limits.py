"""What this machine can do at best: the limits that other figures are held against. One table.

python -m benchmarks.limits [--megabytes 44] [--rounds 20] [--repeat 5]

Every limit is measured `repeat` times, in turn with the others, each time in fresh processes. The
table has median, smallest and largest of these; "both ways" is between two processes at once.
"""

from __future__ import annotations

import functools
import json
import os
import select
import socket
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from p2p_dml.errors import ExitCode
from p2p_dml.launchers.bench.bare import Kind
from p2p_dml.launchers.bench.cases import Case
from p2p_dml.launchers.bench.limits import bare_loop, memory_copy_gb_s, timed
from p2p_dml.launchers.process import fork, keep_freed_memory

WARM_UP = 3
STEPS = 300

Measure = Callable[[], float]


def main(
    megabytes: Annotated[int, typer.Option(min=1)] = 44,
    rounds: Annotated[int, typer.Option(min=5)] = 20,
    repeat: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    size = megabytes * 10**6
    both_ways = f"{megabytes} MB both ways"
    limits: dict[tuple[str, str], Measure] = {
        ("memory copy, one core", "GB/s"): lambda: memory_copy_gb_s(size),
        (f"raw TCP on loopback, {both_ways}", "ms"): lambda: loopback_ms(size, rounds),
        (f"bare pyzmq over TCP, {both_ways}", "ms"): lambda: bare_ms("pyzmq", "tcp", size, rounds),
        (f"bare pyzmq over ipc, {both_ways}", "ms"): lambda: bare_ms("pyzmq", "ipc", size, rounds),
        (f"bare shared memory, {both_ways}", "ms"): lambda: bare_ms("shared", "ipc", size, rounds),
        (f"bare gloo, {both_ways}", "ms"): lambda: gloo_ms(size, rounds),
        ("torch: step of softmax regression, 128 of 784", "ms"): step_ms,
    }
    found: dict[tuple[str, str], list[float]] = {key: [] for key in limits}
    for _ in range(repeat):
        for key, measure in limits.items():
            found[key].append(measure())
    table = Table("limit", "unit", "median", "smallest", "largest")
    for (name, unit), values in found.items():
        figures = (statistics.median(values), min(values), max(values))
        table.add_row(name, unit, *(f"{each:.3g}" for each in figures))
    Console().print(table)


def bare_ms(kind: Kind, scheme: str, size: int, rounds: int) -> float:
    """Milliseconds per round of a bare loop of two peers."""
    case = Case(
        peers=2, topology="ring", params=1, rounds=rounds, transport=f"scheme={scheme}"
    ).config()
    return bare_loop(kind, case, size, case.rounds)["round_ms"]


def loopback_ms(size: int, rounds: int) -> float:
    """Milliseconds in which two processes send each other `size` bytes, without any library."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        seconds = in_children([functools.partial(_swaps, end, size, rounds) for end in (near, far)])
    return 1e3 * seconds


def _swaps(end: socket.socket, size: int, rounds: int) -> list[float]:
    end.setblocking(False)
    out, into = memoryview(bytes(size)), memoryview(bytearray(size))
    return timed(lambda: _swap(end, out, into), rounds)


def _swap(end: socket.socket, out: memoryview, into: memoryview) -> None:
    """Send all of `out` and fill `into`."""
    while out or into:
        readable, writable, _ = select.select([end] * bool(into), [end] * bool(out), [])
        if readable:
            into = into[end.recv_into(into) :]
        if writable:
            out = out[end.send(out) :]


def gloo_ms(size: int, rounds: int) -> float:
    """Milliseconds in which two ranks exchange `size` bytes by torch.distributed."""
    with tempfile.TemporaryDirectory() as name:
        meeting = f"file://{name}/store"
        ranks = [functools.partial(_exchanges, rank, meeting, size, rounds) for rank in (0, 1)]
        return 1e3 * in_children(ranks)


def _exchanges(rank: int, meeting: str, size: int, rounds: int) -> list[float]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    out, into = (torch.ones(size, dtype=torch.uint8) for _ in range(2))
    ops = [dist.P2POp(dist.isend, out, 1 - rank), dist.P2POp(dist.irecv, into, 1 - rank)]

    def exchange() -> None:
        for work in dist.batch_isend_irecv(ops):
            work.wait()

    seconds = timed(exchange, rounds)
    dist.barrier()
    return seconds


def step_ms() -> float:
    """Milliseconds of one step of softmax regression on MNIST's shape, one thread."""
    return 1e3 * in_children([_steps])


def _steps() -> list[float]:
    torch.set_num_threads(1)
    model = nn.Linear(784, 10)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.ones(128, 784), torch.zeros(128, dtype=torch.int64)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
        optimiser.step()

    return timed(step, STEPS)


def in_children(acts: Sequence[Callable[[], list[float]]]) -> float:
    """Have each act done in a process of its own, at once; median of the slowest one's seconds.

    Forked: nothing in this process may have computed with torch.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children = [
            fork(_noting(act, folder / str(i)), folder / "log") for i, act in enumerate(acts)
        ]
        codes = [os.waitpid(child, 0)[1] for child in children]
        if any(codes):
            raise SystemExit((folder / "log").read_text(encoding="utf-8"))
        found = [json.loads((folder / str(i)).read_bytes()) for i in range(len(acts))]
    return max(float(np.median(seconds[WARM_UP:])) for seconds in found)


def _noting(act: Callable[[], list[float]], file: Path) -> Callable[[], int]:
    def note() -> int:
        keep_freed_memory()
        file.write_text(json.dumps(act()), encoding="utf-8")
        return ExitCode.DONE

    return note


if __name__ == "__main__":
    typer.run(main)
