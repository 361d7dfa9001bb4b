"""Peers on hosts whose addresses nobody knew beforehand, one of them behind a firewall."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomli_w
import torch

from p2p_dml import config, keys
from p2p_dml.checkpoint import checkpoint_file, load
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import simulated

if TYPE_CHECKING:
    from tests.cluster.ssh.conftest import FakeHost

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PEERS, ROUNDS, HIDDEN = 4, 12, 3
DEADLINE_S = 200.0


def _start(host: FakeHost, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = ("ip", "netns", "exec", host.namespace, sys.executable, "-m", "p2p_dml", *words)
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _run_file(folder: Path, directory: str) -> config.RunConfig:
    tables = {
        "peers": PEERS,
        "rounds": ROUNDS,
        "strategy": "dpsgd",
        "links": "complete",
        "train": {"lr": 0.1, "steps": 4},
        "network": {"loss": 0.3, "delay_s": 0.01},
        "transport": {"directory": directory, "startup_s": 120.0},
    }
    (folder / "run.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    return config.load(folder / "run.toml")


def test_peers_meet_by_a_directory_and_are_relayed_with_the_bits_of_the_simulation(
    fake_hosts: list[FakeHost], tmp_path: Path
) -> None:
    """Encrypted, and over an emulated network that loses a third of all messages."""
    settings = _run_file(tmp_path, f"tcp://{fake_hosts[PEERS].address}:5700")
    keys.create(tmp_path / "keys", PEERS)
    hidden = fake_hosts[HIDDEN]
    with ExitStack() as stack:
        hidden.inside("iptables", "-I", "INPUT", "-i", "eth0", "-p", "tcp", "--syn", "-j", "DROP")
        stack.callback(hidden.heal)
        office = _start(fake_hosts[PEERS], tmp_path, "directory", "run.toml", "--relay")
        stack.callback(_end, office)
        peers = []
        for me in range(PEERS):
            how = ["--set", "transport.reached_at=relay"] if me == HIDDEN else []
            words = ("peer", "run.toml", "--me", str(me), "--out", "out", *how)
            peers.append(_start(fake_hosts[me], tmp_path, *words))
            stack.callback(_end, peers[-1])
        for peer in peers:
            assert peer.wait(DEADLINE_S) == 0, peer.communicate()[0]
        office.send_signal(signal.SIGINT)
        said = office.communicate(timeout=20.0)[0]
    assert f"peer {HIDDEN} is at tcp://{fake_hosts[PEERS].address}:{5702 + HIDDEN} " in said
    simulated.simulate(
        settings, tmp_path / "simulated", lambda folder, started: lambda: None, batched=False
    )
    for me in range(PEERS):
        ours, expected = (
            load(tmp_path / run / checkpoint_file(me, ROUNDS)).tensors
            for run in ("out", "simulated")
        )
        assert all(torch.equal(ours[name], x) for name, x in expected.items())
        lines = read_events(event_file(tmp_path / "out", me))
        assert sum(len(x["missing"]) for x in lines if x["event"] == "round_done") > 0
