"""The least that a round can take: a loop of processes that only move bytes, by the same links.

`python -m p2p_dml.launchers.bench.bare` reads a `Plan` as JSON from standard input and forks a
process per peer. In each round a peer copies its vector into a send buffer, passes it to all that
hear it, and copies what it hears into memory that it keeps. Nothing is allocated, checked, mixed or
logged. `pyzmq`: over ZeroMQ sockets, in frames of 1 MiB. `shared`: in memory that all map; only
tokens, which say that a vector is there, go through pipes.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, final

import numpy as np
import zmq
from numpy.typing import NDArray

from p2p_dml.errors import ExitCode
from p2p_dml.files import write_whole
from p2p_dml.launchers.process import (
    allow_many_files,
    fork,
    keep_freed_memory,
    signal_with_parent,
)

Bytes = NDArray[np.uint8]
Senders = Sequence[Sequence[int]]
Kind = Literal["pyzmq", "shared"]
KINDS: tuple[Kind, ...] = ("pyzmq", "shared")

FRAME_BYTES = 1 << 20
_TOKEN = struct.Struct("<iI")  # who, round
_PATIENCE_S = 60.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`graphs[r % len]` are the senders of round r; results go to `folder`, a file per peer."""

    kind: Kind
    folder: str
    num_bytes: int
    rounds: int
    scheme: str
    graphs: Sequence[Senders]

    @property
    def num_peers(self) -> int:
        return len(self.graphs[0])


class Wires(Protocol):
    """How a peer's vector reaches others and theirs come here."""

    def send(self, round_: int, vector: Bytes, receivers: Sequence[int]) -> None: ...

    def take(self, round_: int, senders: Sequence[int], into: Bytes) -> None:
        """Wait until each of `senders` has sent in this round; copy what each sent."""
        ...

    def close(self) -> None:
        """Wait until everything has left."""
        ...


@final
class SharedWires:
    """Two vectors per peer in a file that all map, written in turn; tokens in named pipes."""

    def __init__(self, me: int, plan: Plan) -> None:
        self._me, self._plan, self._folder = me, plan, Path(plan.folder)
        self._arrived: dict[int, int] = {}
        self._pipes: dict[int, int] = {}
        self._vectors: dict[int, Bytes] = {}
        with (self._folder / f"{me}.block").open("wb") as file:
            file.truncate(2 * plan.num_bytes)
        os.mkfifo(self._folder / f"{me}.pipe")
        self._tokens = os.open(self._folder / f"{me}.pipe", os.O_RDWR)

    def send(self, round_: int, vector: Bytes, receivers: Sequence[int]) -> None:
        np.copyto(self._half(self._me, round_), vector)
        for peer in receivers:
            if peer not in self._pipes:
                path = self._folder / f"{peer}.pipe"
                _wait_for(path)
                self._pipes[peer] = os.open(path, os.O_WRONLY)
            os.write(self._pipes[peer], _TOKEN.pack(self._me, round_))

    def take(self, round_: int, senders: Sequence[int], into: Bytes) -> None:
        left = list(senders)
        while left:
            here = [j for j in left if self._arrived.get(j, -1) >= round_]
            for peer in here:
                np.copyto(into, self._half(peer, round_))
                left.remove(peer)
            if not here:
                tokens = os.read(self._tokens, 512 * _TOKEN.size)
                self._arrived |= dict(_TOKEN.iter_unpack(tokens))

    def close(self) -> None:
        """Nothing is under way: what was sent is in memory and pipes that others have open."""

    def _half(self, peer: int, round_: int) -> Bytes:
        if peer not in self._vectors:
            with (self._folder / f"{peer}.block").open("r+b") as file:
                self._vectors[peer] = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
        size = self._plan.num_bytes
        return self._vectors[peer][round_ % 2 * size :][:size]


@final
class ZeroMQWires:
    """One socket that takes in, one to each receiver; two send buffers, in turn."""

    def __init__(self, me: int, plan: Plan) -> None:
        self._me, self._folder = me, Path(plan.folder)
        self._buffers = [np.zeros(plan.num_bytes, np.uint8) for _ in range(2)]
        self._context = zmq.Context()
        self._in = self._socket(zmq.PULL)
        local = f"ipc://{self._folder}/{me}.sock"
        self._in.bind(local if plan.scheme == "ipc" else "tcp://127.0.0.1:*")
        endpoint = self._in.getsockopt_string(zmq.LAST_ENDPOINT)
        write_whole(self._folder / f"{me}.address", endpoint.encode())
        self._out: dict[int, zmq.Socket[bytes]] = {}
        self._arrived: dict[int, int] = {}

    def send(self, round_: int, vector: Bytes, receivers: Sequence[int]) -> None:
        buffer = self._buffers[round_ % 2]  # free: who hears this peer has read the last but one
        np.copyto(buffer, vector)
        frames = [
            zmq.Frame(buffer[begin : begin + FRAME_BYTES].data, copy=False)
            for begin in range(0, len(buffer), FRAME_BYTES)
        ]
        token = _TOKEN.pack(self._me, round_)
        for peer in receivers:
            if peer not in self._out:
                self._connect(peer)
            self._out[peer].send_multipart([token, *frames], copy=False)

    def take(self, round_: int, senders: Sequence[int], into: Bytes) -> None:
        while any(self._arrived.get(j, -1) < round_ for j in senders):
            token, *frames = self._in.recv_multipart(copy=False)
            sender, their_round = _TOKEN.unpack(token.buffer)
            begin = 0
            for frame in frames:
                np.copyto(into[begin : begin + len(frame)], np.frombuffer(frame.buffer, np.uint8))
                begin += len(frame)
            self._arrived[sender] = their_round

    def close(self) -> None:
        self._context.destroy(linger=int(1000 * _PATIENCE_S))

    def _connect(self, peer: int) -> None:
        address = self._folder / f"{peer}.address"
        _wait_for(address)
        self._out[peer] = self._socket(zmq.PUSH)
        self._out[peer].connect(address.read_text())

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option in (zmq.SNDHWM, zmq.RCVHWM):
            socket.setsockopt(option, 0)  # the pattern itself allows two vectors under way
        return socket


_WIRES: dict[Kind, Callable[[int, Plan], Wires]] = {"pyzmq": ZeroMQWires, "shared": SharedWires}


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} was not there within {_PATIENCE_S:g} s")
        time.sleep(0.005)


def run_peer(me: int, plan: Plan) -> int:
    """One peer's rounds; writes when each began, and the processor time at its begin."""
    keep_freed_memory()
    allow_many_files()
    wires = _WIRES[plan.kind](me, plan)
    vector, into = (np.full(plan.num_bytes, fill, np.uint8) for fill in (1, 2))
    routes = [
        ([i for i, heard in enumerate(senders) if me in heard], senders[me])
        for senders in plan.graphs
    ]
    at: list[float] = []
    cpu_s: list[float] = []
    for round_ in range(plan.rounds):
        at.append(time.time())
        cpu_s.append(time.process_time())
        receivers, senders = routes[round_ % len(routes)]
        wires.send(round_, vector, receivers)
        wires.take(round_, senders, into)
    wires.close()
    result = json.dumps({"at": at, "cpu_s": cpu_s}).encode()
    write_whole(Path(plan.folder) / f"{me}.json", result)
    return ExitCode.DONE


def main() -> None:
    """Fork the peers and wait for them; exit code 1 if one failed."""
    signal_with_parent(signal.SIGKILL)
    table: dict[str, Any] = json.loads(sys.stdin.read())
    plan, failed = Plan(**table), False
    children = {
        fork(functools.partial(run_peer, me, plan), Path(plan.folder) / f"{me}.log")
        for me in range(plan.num_peers)
    }
    while children and not failed:
        pid, status = os.wait()
        children.discard(pid)
        failed = status != 0
    for pid in children:  # they would wait for the one that failed
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
