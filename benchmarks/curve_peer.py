"""One of the two peers of `benchmarks.curve`, which starts it."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import typer

from p2p_dml import keys, wire
from p2p_dml.transports import zeromq
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Payload, Tag

WARM_UP = 3
PATIENT_S = 120.0

IN_THE_CLEAR = "-"
"""Instead of a folder with keys."""


def main(
    me: int, host: str, megabytes: int, rounds: int, threads: int, frames: str, folder: str
) -> None:
    """One of the two: tell where it listens, read the address book, exchange, tell figures."""
    torch.set_num_threads(1)
    zeromq._IO_THREADS = threads
    if frames == "whole":
        wire.MAX_FRAME_BYTES = 1 << 30
    pair = keys.read(Path(folder), me, 2) if folder != IN_THE_CLEAR else None
    limits = Limits(startup_s=PATIENT_S, heartbeat_s=30.0, shared_memory=False)
    transport = ZeroMQTransport(
        me, f"tcp://{host}:*", bytes(16), 1, limits, lambda event: None, None, pair
    )
    print(transport.endpoint, flush=True)
    book = {int(key): address for key, address in json.loads(sys.stdin.readline()).items()}
    transport.open(book, [1 - me])
    figures = _rounds(transport, Payload({"x": torch.zeros(megabytes * 250_000)}), rounds)
    transport.close()
    print(json.dumps(figures), flush=True)


def _rounds(transport: ZeroMQTransport, payload: Payload, rounds: int) -> dict[str, float]:
    seconds: list[float] = []
    cpu: list[float] = []
    other = 1 - transport.me
    for round_ in range(1, rounds + 1):
        begin, begun = time.perf_counter(), _cpu_s()
        transport.post(Tag(round_), {other: payload})
        mail = transport.collect(Tag(round_), [other], PATIENT_S)
        assert mail.on_time
        seconds.append(time.perf_counter() - begin)
        cpu.append(_cpu_s() - begun)
    return {
        "round_s": statistics.median(seconds[WARM_UP:]),
        "cpu_s": statistics.median(cpu[WARM_UP:]),
    }


def _cpu_s() -> float:
    """Processor time of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    typer.run(main)
