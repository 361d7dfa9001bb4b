"""Launches on hosts that are folders here: from the command to the report, and what is left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file, load
from p2p_dml.errors import ConfigError, StartupError
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import simulated
from p2p_dml.launchers.ssh.environments import Environments
from p2p_dml.launchers.ssh.hosts import Cluster
from p2p_dml.launchers.ssh.launch import Voice, launch
from p2p_dml.launchers.ssh.wheel import build

if TYPE_CHECKING:
    from tests.launchers.ssh.conftest import Hosts

PEERS, ROUNDS = 4, 3
RUN: Mapping[str, Any] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "links": "ring",
    "strategy": "dpsgd",
    "model": "mine:network",
    "data": "mine:samples",
    "train": {"lr": 0.1, "steps": 2},
    "transport": {"encryption": "curve", "startup_s": 100.0},
}
MINE = """
import os
from torch import nn
from p2p_dml.data import DATASETS
from settings import HIDDEN
print("printed by a module of the user's")

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 10))

def samples():
    return DATASETS["digits"]()
"""
OTHER_DATA = """
import dataclasses
_samples = samples

def samples():
    found = _samples()
    if os.environ["HOME"].endswith("beta"):
        found = dataclasses.replace(found, train_x=found.train_x[::-1].copy())
    return found
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that all hosts share, so that one installation does for all launches."""
    return str(tmp_path_factory.mktemp("home") / "p2p-dml")


def _write(hosts: Hosts, shared: str, mine: str = MINE) -> None:
    """Hosts alpha and beta with two peers each, and a run with a module of the user's."""
    entries = [hosts.entry(name, peers=2, folder=shared) for name in ("alpha", "beta")]
    hosts.write(*entries)
    (hosts.folder / "mine.py").write_text(mine, encoding="utf-8")
    (hosts.folder / "settings.py").write_text("HIDDEN = 8\n", encoding="utf-8")
    (hosts.folder / "run.toml").write_text(tomli_w.dumps(RUN), encoding="utf-8")


def _launch(hosts: Hosts, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "p2p_dml", "launch", "hosts.toml", *options]
    return subprocess.run(words, cwd=hosts.folder, capture_output=True, text=True, timeout=110)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_launch_is_the_simulation_bit_for_bit(hosts_here: Hosts, shared: str) -> None:
    _write(hosts_here, shared)
    first = _launch(hosts_here, "run.toml", "--out", "out")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("installing") == 1
    assert "copied: mine.py, run.toml, settings.py, keys" in first.stdout
    assert not list(Path(shared).rglob("*.key"))
    assert not list(Path(shared).glob("runs/*"))
    assert not hosts_here.processes()
    out = hosts_here.folder / "out"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["peers_finished"], summary["mode"]) == (PEERS, "launch")
    run = config.load(hosts_here.folder / "run.toml")
    simulated.simulate(run, hosts_here.folder / "other", lambda *_: _nothing, batched=False)
    for peer in range(PEERS):
        file = checkpoint_file(peer, ROUNDS)
        ours, expected = load(out / file), load(hosts_here.folder / "other" / file)
        assert all(torch.equal(x, ours.tensors[name]) for name, x in expected.tensors.items())
    second = _launch(hosts_here, "run.toml", "--set", "rounds=1", "--quiet")
    assert second.returncode == 0, second.stderr
    assert "installing" not in second.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_goes_on_with_every_bit_on_hosts_that_share_it_otherwise(
    hosts_here: Hosts, shared: str
) -> None:
    _write(hosts_here, shared)
    first = _launch(hosts_here, "run.toml", "--out", "out")
    assert first.returncode == 0, first.stderr
    entries = [
        hosts_here.entry(name, peers=peers, folder=shared)
        for name, peers in (("beta", 1), ("gamma", 3))
    ]
    hosts_here.write(*entries)
    again = _launch(hosts_here, "--resume", "out", "--set", f"rounds={2 * ROUNDS}")
    assert again.returncode == 0, again.stderr
    assert f"resumed after round {ROUNDS} of {2 * ROUNDS}" in again.stdout
    run = config.load(hosts_here.folder / "run.toml", [f"rounds={2 * ROUNDS}"])
    simulated.simulate(run, hosts_here.folder / "other", lambda *_: _nothing, batched=False)
    out = hosts_here.folder / "out"
    for peer in range(PEERS):
        file = checkpoint_file(peer, 2 * ROUNDS)
        ours, expected = load(out / file), load(hosts_here.folder / "other" / file)
        assert all(torch.equal(x, ours.tensors[name]) for name, x in expected.tensors.items())
        rounds = [x["round"] for x in read_events(event_file(out, peer)) if "neighbours" in x]
        assert rounds == [*range(1, 2 * ROUNDS + 1)]
    assert "nothing to resume" in _launch(hosts_here, "--resume", "out").stderr
    (out / checkpoint_file(1, 2 * ROUNDS)).write_bytes(b"torn")
    torn = _launch(hosts_here, "--resume", "out", "--set", "rounds=9")
    assert "passed over" in torn.stdout
    assert f"resumed after round {ROUNDS} of 9" in torn.stdout


def _nothing() -> None:
    """What is done after each round."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_hosts_with_other_data_do_not_begin(hosts_here: Hosts, shared: str) -> None:
    _write(hosts_here, shared, MINE + OTHER_DATA)
    ended = _launch(hosts_here, "run.toml", "--out", "out")
    assert ended.returncode == 3, ended.stdout
    assert "error: beta: another data than on alpha; make them equal" in ended.stderr
    assert not (hosts_here.folder / "out").exists()
    assert not list(Path(shared).glob("runs/*"))
    assert not hosts_here.processes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_module_that_does_not_load_on_hosts_is_said_once_for_each(
    hosts_here: Hosts, shared: str
) -> None:
    _write(hosts_here, shared, MINE + "import no_such_package\n")
    ended = _launch(hosts_here, "run.toml", "--out", "out")
    assert ended.returncode == 3, ended.stdout
    assert "no module named 'no_such_package'" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (hosts_here.folder / "out").exists()


def _parsed(hosts: Hosts, **changes: object) -> config.RunConfig:
    tables = {**RUN, "model": "mlp", "data": "digits", **changes}
    return config.parse(tables, hosts.folder)


def _launched(cluster: Cluster, run: config.RunConfig, out: Path) -> None:
    voice = Voice(say=lambda line: None, watch=lambda folder, started: lambda: None)
    launch(cluster, run, Environments(cluster, build()), out, voice)


def test_a_host_that_fails_the_checks_keeps_all_from_starting(hosts_here: Hosts) -> None:
    cluster = hosts_here.cluster(*(hosts_here.entry(x, peers=2) for x in ("alpha", "unreachable")))
    out = hosts_here.folder / "out"
    with pytest.raises(StartupError, match=r"^unreachable: .*Connection refused"):
        _launched(cluster, _parsed(hosts_here), out)
    assert not out.exists()
    assert not hosts_here.left("alpha")
    assert not hosts_here.processes()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"peers": 5}, "4 peers in all, the run has 5"),
        ({"links": "one_peer_exponential"}, "metropolis needs symmetric links"),
        ({"transport": {"kind": "torchdist"}}, "transport.kind"),
        ({"transport": {"encryption": "curve", "keys": "none"}}, r"none/peers\.toml: cannot read"),
    ],
)
def test_what_can_be_known_here_is_said_before_any_host_is_asked(
    hosts_here: Hosts, changes: Mapping[str, Any], expected: str
) -> None:
    cluster = hosts_here.cluster(hosts_here.entry("alpha", peers=PEERS))
    with pytest.raises(ConfigError, match=expected):
        _launched(cluster, _parsed(hosts_here, **changes), hosts_here.folder / "out")
    assert not hosts_here.homes.exists()
