"""Runs of torchrun that end early and go on: every bit of the uninterrupted run."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml import config
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import simulated

if TYPE_CHECKING:
    import subprocess

    from tests.launchers.conftest import Shell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the simulator computes on the CPU"),
]

PEERS = 3
RUN: Mapping[str, object] = {
    "peers": PEERS,
    "rounds": 10**6,
    "dtype": "float64",
    "evaluate_every": 5,
    "links": {"kind": "erdos_renyi", "density": 0.7},
    "strategy": {"name": "mcepl", "lr": 1.0},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"lr": 0.1, "steps": 1},
}
RANKS = ("-m", "torch.distributed.run", "--nproc-per-node", str(PEERS), "-m", "p2p_dml")


def _start(shell: Shell, *options: str, **changes: object) -> subprocess.Popen[str]:
    """Start a run, which comes to round 5 before this returns."""
    file = shell.write("run.toml", {**RUN, **changes})
    process = shell.start(file, "--out", "out", *options, program=RANKS)
    log = event_file(shell.folder / "out", 0)
    shell.wait_until(lambda: log.exists() and '"round": 5,' in log.read_text(), "round 5")
    return process


def _last_round(shell: Shell) -> int:
    rounds: list[int] = [
        line["round"]
        for peer in range(PEERS)
        for line in read_events(event_file(shell.folder / "out", peer))
        if line["event"] == "round_done"
    ]
    return max(rounds)


def _expect_every_bit(shell: Shell, rounds: int) -> None:
    """Folder `out` holds what the simulator makes of the whole run."""
    for ours, expected in shell.final_models(PEERS, rounds):
        assert all(torch.equal(x, ours[name]) for name, x in expected.items())


def _resume(shell: Shell) -> str:
    """Go on for as many rounds again, to the end; what was said."""
    rounds = 2 * _last_round(shell)
    again = ("--resume", "out", "--set", f"rounds={rounds}")
    ended = shell.run(*again, program=RANKS)
    assert (ended.code, ended.messages) == (0, [])
    assert "report: out/report.html" in ended.out
    _expect_every_bit(shell, rounds)
    assert not shell.processes()
    return ended.out


@pytest.mark.parametrize("transport", ["torchdist", "zeromq"])
def test_after_a_rank_was_killed(shell: Shell, transport: str) -> None:
    """It has the checkpoints made on the way, the others also a later one."""
    process = _start(shell, "--transport", transport, checkpoint_every=2)
    os.kill(shell.rank(1), signal.SIGKILL)
    assert shell.end(process).code == 1
    said = _resume(shell)
    assert "resumed after round" in said


def test_after_a_signal_no_round_is_lost(shell: Shell) -> None:
    """All save after the same round, so nobody needs checkpoints on the way."""
    process = _start(shell)
    process.send_signal(signal.SIGTERM)
    shell.end(process)
    last = _last_round(shell)
    assert f"resumed after round {last} of {2 * last}" in _resume(shell)


def test_without_a_common_checkpoint_it_cannot(shell: Shell) -> None:
    process = _start(shell)
    os.kill(shell.rank(1), signal.SIGKILL)
    shell.end(process)
    before = (shell.folder / "out" / "run.json").read_bytes()
    ended = shell.run("--resume", "out", program=RANKS)
    assert "exitcode  : 2" in ended.err
    (message,) = ended.messages
    assert "no round of which every peer has a whole checkpoint" in message
    assert "peer 1: none" in message
    assert (shell.folder / "out" / "run.json").read_bytes() == before


def test_a_run_of_another_command_is_not_taken_up(shell: Shell) -> None:
    run = config.parse({**RUN, "rounds": 2}, Path())
    simulated.simulate(run, shell.folder / "out", lambda folder, started: lambda: None)
    ended = shell.run("--resume", "out", program=RANKS)
    assert "exitcode  : 2" in ended.err
    (message,) = ended.messages
    assert "go on with it by `p2p-dml simulate --resume out`" in message
