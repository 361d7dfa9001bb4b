"""Groups of torch.distributed within hosts and ZeroMQ between them: a lost host is only missed."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.events import event_file, read_events

if TYPE_CHECKING:
    from tests.launchers.conftest import Shell

pytestmark = pytest.mark.slow

PEERS, ROUNDS = 4, 40
HERE, THERE = (2, 3), (0, 1)
RUN = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "evaluate_every": 0,
    "links": "ring",
    "strategy": "dpsgd",
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"lr": 0.1, "steps": 2},
    "transport": {"kind": "hybrid", "straggler_s": 6.0},
}
SLOW = """
import time
from torch import nn

def network():
    return nn.Linear(2, 1)

def train(model, round):
    time.sleep(0.1)
    return 0.5
"""


def _ended(shell: Shell, peer: int) -> tuple[int, int, str | None]:
    lines = read_events(event_file(shell.folder / "out", peer))
    (end,) = [line for line in lines if line["event"] == "finished"]
    return end["exit_code"], end["round"], end["error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the simulator computes on the CPU")
def test_two_hosts_leave_what_the_simulator_does(shell: Shell) -> None:
    command = [shell.write("run.toml", RUN), "--out", "out"]
    ended = [shell.end(process) for process in shell.start_hosts(command, command, ranks=2)]
    assert [(each.code, each.messages) for each in ended] == [(0, []), (0, [])]
    words = "transport: torch.distributed (gloo) within a host, ZeroMQ between hosts, because"
    assert words in ended[0].out
    assert "report: out/report.html" in ended[0].out
    for ours, expected in shell.final_models(PEERS, ROUNDS):
        assert all(torch.equal(x, ours[key]) for key, x in expected.items())
    assert not shell.processes()


def test_a_lost_host_is_missed_by_the_other_one_which_finishes(shell: Shell) -> None:
    """The lost one is that of torchrun's store, so that nobody is left to ask who ended how."""
    (shell.folder / "slow.py").write_text(SLOW, encoding="utf-8")
    changes = {"model": "slow:network", "train": {"function": "slow:train"}}
    command = [shell.write("run.toml", RUN | changes), "--out", "out"]
    first, second = shell.start_hosts(command, command, ranks=2)
    log = event_file(shell.folder / "out", 0)
    shell.wait_until(lambda: log.exists() and '"round": 3,' in log.read_text(), "round 3")
    first.send_signal(signal.SIGKILL)  # its ranks take that for a signal to stop
    shell.end(first)
    ended = shell.end(second)
    assert (ended.code, ended.messages) == (0, [])
    assert "report: out/report.html" in ended.out
    for peer in HERE:
        assert _ended(shell, peer) == (0, ROUNDS, None)
    for peer in THERE:
        code, round_, error = _ended(shell, peer)
        assert (code, round_ < ROUNDS) == (6, True)
        assert "torchrun's store does not answer" in str(error)
    shell.wait_until(lambda: not shell.processes(), "all have ended")
