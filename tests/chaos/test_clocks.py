"""Clocks on the wall that disagree by a day and by a year: nothing waits or counts by them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import tomli_w
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file, load
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import simulated

ROUNDS = 6
DAY_S = 86_400
SHIFTS = (0, -DAY_S, 365 * DAY_S)
PROGRAM = """
import sys, time
real, shift = time.time, float(sys.argv.pop(1))
time.time = lambda: real() + shift
from p2p_dml.cli import main
main()
"""
TABLES: Mapping[str, object] = {
    "peers": len(SHIFTS),
    "rounds": ROUNDS,
    "links": "complete",
    "strategy": "dpsgd",
    "evaluate_every": 0,
    "network": {"delay_s": 0.01},  # messages carry the time at which they left
}


def _addresses() -> list[str]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in SHIFTS]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"tcp://127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def _start(me: int, folder: Path) -> subprocess.Popen[bytes]:
    words = [str(SHIFTS[me]), "peer", "run.toml", "--me", str(me), "--out", f"out{me}"]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_peers_whose_clocks_disagree(tmp_path: Path) -> None:
    tables = {**TABLES, "transport": {"addresses": _addresses(), "startup_s": 150.0}}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    peers = [_start(me, tmp_path) for me in range(len(SHIFTS))]
    assert [peer.wait(300) for peer in peers] == [0, 0, 0]
    run = config.load(tmp_path / "run.toml")
    simulated.simulate(run, tmp_path / "simulated", lambda folder, started: lambda: None)
    began = []
    for me in range(len(SHIFTS)):
        out = tmp_path / f"out{me}"
        lines = list(read_events(event_file(out, me)))
        began.append(lines[0]["t"] - SHIFTS[me])
        assert not any(line.get("state") == "dead" for line in lines)
        assert all(line["missing"] == [] for line in lines if line["event"] == "round_done")
        file = checkpoint_file(me, ROUNDS)
        ours, theirs = (load(each / file).tensors for each in (out, tmp_path / "simulated"))
        assert all(torch.equal(x, ours[name]) for name, x in theirs.items())
    assert max(began) - min(began) < DAY_S / 2  # the clocks were shifted as meant
