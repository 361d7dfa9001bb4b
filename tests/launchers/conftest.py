"""The command line as a user runs it, with every process that comes of it in sight."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

import pytest
import tomli_w

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file, load
from p2p_dml.launchers import simulated
from p2p_dml.types import Tensors

DEADLINE_S = 240.0


@final
class Ended:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def messages(self) -> list[str]:
        """The error messages, without the warnings and lines of progress around them."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@final
class Shell:
    """Starts `p2p-dml` in a folder of its own; a mark in the environment tells all descendants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = f"P2P_DML_TEST_MARK={secrets.token_hex(8)}"
        self._started: list[subprocess.Popen[str]] = []

    def write(self, name: str, tables: Mapping[str, object]) -> str:
        """Write a run file; returns its name."""
        (self.folder / name).write_text(tomli_w.dumps(tables), encoding="utf-8")
        return name

    def start(
        self, *arguments: str, program: Sequence[str] = ("-m", "p2p_dml")
    ) -> subprocess.Popen[str]:
        """Start the command with this Python."""
        key, _, value = self._mark.partition("=")
        process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=self.folder,
            env=os.environ | {key: value, "P2P_DML_DATA": str(self.folder), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def start_hosts(self, *arguments: Sequence[str], ranks: int = 1) -> list[subprocess.Popen[str]]:
        """Start a torchrun of so many `ranks` for each list of arguments, as if on hosts."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        program = ["-m", "torch.distributed.run", "--nnodes", str(len(arguments))]
        program += ["--nproc-per-node", str(ranks), "--master-addr", "127.0.0.1"]
        program += ["--master-port", port]
        return [
            self.start(*each, program=(*program, "--node-rank", str(node), "-m", "p2p_dml"))
            for node, each in enumerate(arguments)
        ]

    def run(self, *arguments: str, program: Sequence[str] = ("-m", "p2p_dml")) -> Ended:
        """Run the command to its end."""
        return self.end(self.start(*arguments, program=program))

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for a started command."""
        out, err = process.communicate(timeout=DEADLINE_S)
        return Ended(process.returncode, out, err)

    def processes(self) -> set[int]:
        """Ids of the living processes that descend from anything started here."""
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile, or another user's
                if self._mark.encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
        return found

    def rank(self, number: int) -> int:
        """Id of the process of a rank of torchrun."""
        mark = f"RANK={number}".encode()
        (found,) = [
            pid
            for pid in self.processes()
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ]
        return found

    def final_models(self, peers: int, rounds: int) -> Iterator[tuple[Tensors, Tensors]]:
        """Of each peer what folder `out` has after `rounds`, and what the simulator makes of it.

        The latter's bits are those of `run.toml` run on the CPU without any interruption.
        """
        run = config.load(self.folder / "run.toml", [f"rounds={rounds}"])
        other = self.folder / "other"
        simulated.simulate(run, other, lambda folder, started: lambda: None, batched=False)
        for peer in range(peers):
            file = checkpoint_file(peer, rounds)
            ours, expected = load(self.folder / "out" / file), load(other / file)
            assert ours.tensors.keys() == expected.tensors.keys()
            yield ours.tensors, expected.tensors

    def wait_until(self, holds: Callable[[], object], what: str) -> None:
        """Poll until `holds()` is true; fails the test, saying `what`, if it never is."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, f"never happened: {what}"
            time.sleep(0.02)

    def close(self) -> None:
        """Kill what is left."""
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in the test's own folder; nothing started in it outlives the test."""
    each = Shell(tmp_path)
    yield each
    each.close()
