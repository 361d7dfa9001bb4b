"""Peers of several ranks: the run of one rank per peer to rounding; what is lost with a rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.events import event_file, read_events

if TYPE_CHECKING:
    from tests.launchers.conftest import Shell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the simulator computes on the CPU"),
]

PEERS, EACH, ROUNDS = 2, 2, 6
RUN: Mapping[str, object] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "dtype": "float64",
    "evaluate_every": 3,
    "links": "ring",
    "strategy": "dpsgd",
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"lr": 0.1, "momentum": 0.9, "steps": 2, "batch_size": 7, "parallel": "ddp"},
}


def _ranks(number: int) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", "--nproc-per-node", str(number), "-m", "p2p_dml")


def _expect_the_simulators(shell: Shell, rounds: int) -> None:
    """The final models of folder `out`, to rounding."""
    for ours, expected in shell.final_models(PEERS, rounds):
        for name, x in expected.items():
            torch.testing.assert_close(ours[name], x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("parallel", "transport"), [("ddp", "torchdist"), ("fsdp", "zeromq"), ("fsdp", "hybrid")]
)
def test_the_run_is_that_of_one_rank_per_peer(shell: Shell, parallel: str, transport: str) -> None:
    options = ("--set", f"train.parallel={parallel}", "--transport", transport)
    file = shell.write("run.toml", RUN)
    ended = shell.run(file, "--out", "out", *options, program=_ranks(PEERS * EACH))
    assert (ended.code, ended.messages) == (0, [])
    assert ended.out.count("report: out/report.html") == 1
    _expect_the_simulators(shell, ROUNDS)
    assert not shell.processes()


def test_a_peer_ends_with_any_of_its_ranks_and_goes_on_with_one(shell: Shell) -> None:
    file = shell.write("run.toml", {**RUN, "rounds": 10**6, "checkpoint_every": 2})
    process = shell.start(file, "--out", "out", program=_ranks(PEERS * EACH))
    log = event_file(shell.folder / "out", 1)
    shell.wait_until(lambda: log.exists() and '"round": 5,' in log.read_text(), "round 5")
    os.kill(shell.rank(3), signal.SIGKILL)
    ended = shell.end(process)
    assert ended.err.count("exitcode  : 6") == 3
    assert any("rank 3 of peer 1 is gone" in message for message in ended.messages)
    logs = [event_file(shell.folder / "out", peer) for peer in range(PEERS)]
    ends = [[*read_events(each)][-1] for each in logs]
    assert [end["exit_code"] for end in ends] == [6, 6]
    assert "rank 3 of peer 1 is gone" in ends[1]["error"]
    assert "peer 1" in ends[0]["error"]
    rounds = 2 * ends[1]["round"]
    again = ("--resume", "out", "--set", "train.parallel=none", "--set", f"rounds={rounds}")
    ended = shell.run(*again, program=_ranks(PEERS))
    assert (ended.code, ended.messages) == (0, [])
    _expect_the_simulators(shell, rounds)
    assert not shell.processes()


def test_the_ranks_of_a_peer_are_on_one_host(shell: Shell) -> None:
    command = [shell.write("run.toml", {**RUN, "peers": 1}), "--out", "out"]
    for process in shell.start_hosts(command, command):
        ended = shell.end(process)
        assert "exitcode  : 2" in ended.err
        (message,) = ended.messages
        assert "2 ranks train each peer, and this host has 1" in message
    assert not (shell.folder / "out").exists()
