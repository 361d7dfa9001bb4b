"""What a GPU makes of it: bandwidth of means, masks per second, simulations. One JSON line each.

python -m benchmarks.gpu [--parameters 11000000] [--models 8 …] [--peers 100] [--rounds 20] …

`copy_share` is the time of a copy on the device that moves as many bytes as a mean must (it reads
every model and writes every result once) by that of the mean. `--table` shows all figures once more
at the end.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from p2p_dml import config
from p2p_dml.events import event_file, read_events
from p2p_dml.kernels import _fused, _native
from p2p_dml.kernels._power import power_mean
from p2p_dml.kernels.masks import count, pack, top_share, unpack
from p2p_dml.kernels.means import weighted_power_mean
from p2p_dml.launchers import simulated

Figure = Mapping[str, Any]
Call = Callable[[], object]

TURNS = 20
CALLS = 5
"""Calls that are timed together on a GPU."""

SLEEP_CYCLES = 20_000_000
"""How long the GPU sleeps before them, so that this process gets ahead of it."""

KEEP = 0.3
TABLE_WIDTH = 120


def main(
    parameters: Annotated[int, typer.Option(min=16)] = 11_000_000,
    models: Annotated[list[int], typer.Option(min=1)] = [2, 8, 32],  # noqa: B006
    peers: Annotated[int, typer.Option(min=2)] = 100,
    rounds: Annotated[int, typer.Option(min=3)] = 20,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, …; cpu to try the program")] = "cuda",
    table: Annotated[bool, typer.Option("--table")] = False,
) -> None:
    if device != "cpu" and not torch.cuda.is_available():
        print("no GPU with CUDA here: nothing is measured")
        return
    found = []
    for figure in _figures(parameters, models, peers, rounds, torch.device(device)):
        print(json.dumps(figure), flush=True)
        found.append(figure)
    if table:
        Console(width=TABLE_WIDTH).print(_table(found))


def _figures(
    parameters: int, models: Sequence[int], peers: int, rounds: int, device: torch.device
) -> Iterator[Figure]:
    num_bytes = 4 * parameters * (max(models) + 1)
    gb_per_s = round(num_bytes / _copy_seconds(num_bytes, device) / 1e9, 1)
    yield {"case": "copy", "device": _name(device), "gb_per_s": gb_per_s}
    for number in models:
        yield from _means(parameters, number, device)
    yield from _masks(parameters, max(models), device)
    for model in ("softmax", "mlp"):
        for place in dict.fromkeys((str(device), "cpu")):
            yield _simulation(peers, rounds, model, place)


def _copy_seconds(num_bytes: int, device: torch.device) -> float:
    """Time to read half as many bytes and to write the other half."""
    x = torch.ones(num_bytes // 2, dtype=torch.uint8, device=device)
    return _seconds(partial(torch.empty_like(x).copy_, x), device)


def _means(parameters: int, number: int, device: torch.device) -> Iterator[Figure]:
    """Means of `number` models, also by torch's operations alone."""
    xs = [torch.randn(parameters, device=device) for _ in range(number)]
    weights, out, slope = [1 / number] * number, torch.empty_like(xs[0]), torch.empty_like(xs[0])
    cases: dict[str, tuple[Call, int]] = {
        f"p={p:g}": (partial(weighted_power_mean, xs, weights, p, out), 1) for p in (1.0, 3.0, 4.5)
    }
    cases["p=4.5 slope"] = partial(power_mean, xs, weights, 4.5, out, slope), 2
    for name, (call, results) in cases.items():
        s = _seconds(call, device)
        num_bytes = (number + results) * out.nbytes
        yield {
            "case": name,
            "models": number,
            "by": _backend(xs),
            "ms": round(1e3 * s, 4),
            "gb_per_s": round(num_bytes / s / 1e9, 1),
            "copy_share": round(_copy_seconds(num_bytes, device) / s, 3),
        }


def _backend(xs: Sequence[Tensor]) -> str:
    if _fused.takes(xs):
        return "triton"
    return "native" if _native.takes(xs) else "torch"


def _masks(parameters: int, number: int, device: torch.device) -> Iterator[Figure]:
    x = torch.randn(parameters, device=device)
    mask = top_share(x, KEEP)
    bits = pack([mask])
    cases: dict[str, Call] = {
        "top share": partial(top_share, x, KEEP),
        "pack": partial(pack, [mask]),
        "unpack": partial(unpack, bits, [(parameters,)]),
        f"count {number}": partial(count, [bits] * number, parameters),
    }
    for name, call in cases.items():
        s = _seconds(call, device)
        yield {"case": name, "ms": round(1e3 * s, 4), "per_s": round(1 / s, 1)}


def _simulation(peers: int, rounds: int, model: str, device: str) -> Figure:
    """Rounds per second of D-PSGD on the digits, all peers as one batch, from the second on."""
    tables = {
        "peers": peers,
        "rounds": rounds,
        "data": "digits",
        "model": model,
        "strategy": "dpsgd",
        "links": {"kind": "erdos_renyi", "density": 0.1},
        "train": {"lr": 0.05, "batch_size": 32, "steps": 8},
        "evaluate_every": 0,
    }
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "run")
        run = config.parse(tables, Path())
        simulated.simulate(
            run, folder, lambda path, started: lambda: None, batched=None, device=device
        )
        ends = [_ends(folder, peer) for peer in range(peers)]
    first, last = max(times[0] for times in ends), max(times[-1] for times in ends)
    case = f"simulation of {peers} peers, {model}"
    return {"case": case, "device": device, "per_s": round((rounds - 1) / (last - first), 2)}


def _ends(folder: Path, peer: int) -> list[float]:
    """When a peer's rounds ended, ascending."""
    events = read_events(event_file(folder, peer))
    return [event["t"] for event in events if event["event"] == "round_done"]


def _seconds(call: Call, device: torch.device) -> float:
    """Median time of a call that has been warmed up, the device's work included."""
    for _ in range(3):
        call()
    return statistics.median(_once(call, device) for _ in range(TURNS))


def _once(call: Call, device: torch.device) -> float:
    """Seconds of a call; those of the device alone where a call does not wait for it."""
    if device.type == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "12")  # type: ignore[no-untyped-call]
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / CALLS


def _name(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def _table(found: Sequence[Figure]) -> Table:
    columns = list(dict.fromkeys(key for figure in found for key in figure))
    table = Table(*columns)
    for figure in found:
        table.add_row(*(str(figure.get(key, "")) for key in columns))
    return table


if __name__ == "__main__":
    typer.run(main)
