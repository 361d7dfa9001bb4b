"""Peers in real containers: `p2p-dml up` from the run file to the report, whatever happens to them.

Needs a docker engine, or root and dockerd, which is started then.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import pytest
import tomli_w
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file, load, saved_rounds
from p2p_dml.events import event_file
from p2p_dml.launchers import simulated
from p2p_dml.launchers.containers import docker

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240.0
BASE: Mapping[str, object] = {
    "rounds": 40,
    "data": "digits",
    "partition": {"name": "dirichlet", "alpha": 0.3},
    "model": "mlp",
    "links": {"kind": "erdos_renyi", "density": 0.7},
    "strategy": {"name": "hyperprism", "degree": "learned"},
    "train": {"lr": 0.1, "batch_size": 32, "epochs": 1},
    "stragglers": {"round_s": 0.5},
    "transport": {"startup_s": 180.0},
}


def _docker(*words: str) -> str:
    """What a docker command says; AssertionError with its complaint if it fails."""
    asked = subprocess.run(("docker", *words), capture_output=True, text=True, check=False)
    assert asked.returncode == 0, f"docker {words[0]}: {asked.stderr}"
    return asked.stdout


# ---- fixtures ----------------------------------------------------------------------------------


@final
class Up:
    """One `p2p-dml up`, and the containers that come of it."""

    def __init__(self, folder: Path, image: str, peers: int, **more: object) -> None:
        self.run = folder / "out"
        self._peers = peers
        (folder / "run.toml").write_text(
            tomli_w.dumps({**BASE, "peers": peers, **more}), encoding="utf-8"
        )
        words = ("up", "run.toml", "--out", "out", "--image", image)
        self._log = folder / "up.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                (sys.executable, "-m", "p2p_dml", *words), cwd=folder, stdout=log, stderr=log
            )

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def containers(self) -> dict[str, docker.Container]:
        """Those of this run, by the name of the peer."""
        found = re.search(r"--project-name (p2p-\w+)", self.said)
        ids = docker.containers(found.group(1)) if found else []
        return {each.service: each for each in (docker.look(ids) if ids else None) or ()}

    def wait_for_round(self, round_: int) -> None:
        """Until every peer has done `round_`."""
        files = [event_file(self.run, peer) for peer in range(self._peers)]
        mark = f'"round_done", "t": .*"round": {round_},'
        self.wait_until(lambda: all(x.exists() and re.search(mark, x.read_text()) for x in files))

    def wait_until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def end(self) -> int:
        """The exit code; nothing of the run is left."""
        code = self.process.wait(DEADLINE_S)
        assert not self.containers
        assert not _docker("network", "ls", "--quiet", "--filter", "name=p2p-").strip()
        return code

    def kill(self) -> None:
        """Kill the launcher; what is left of its run goes by itself."""
        self.process.kill()
        self.process.wait()
        self.wait_until(lambda: not self.containers)

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.run / "summary.json").read_text("utf-8"))
        return summary


@pytest.fixture
def up(ready: str, tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts a run with changes to `BASE`; ended whatever happens."""
    runs: list[Up] = []

    def start(peers: int = 8, **more: object) -> Up:
        runs.append(Up(tmp_path, ready, peers, **more))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


# ---- what happens to them ----------------------------------------------------------------------


def test_one_is_killed_one_paused_and_the_rest_finish(up: Callable[..., Up]) -> None:
    run = up()
    run.wait_for_round(2)
    containers = run.containers
    assert _docker("exec", containers["peer-001"].id, "id", "--user").strip() != "0"
    keys = _docker("exec", containers["peer-001"].id, "ls", "/p2p/keys").split()
    assert keys == ["peer-001.key", "peers.toml"]
    _docker("kill", containers["peer-003"].id)
    _docker("pause", containers["peer-005"].id)
    assert run.end() == 1
    summary = run.summary
    assert (summary["peers_finished"], summary["peers_lost"]) == (6, 2)
    reasons = {lost["peer"]: lost["error"] for lost in summary["lost"]}
    assert reasons[3] == "its container was killed by signal 9 (Killed)"
    assert "its container was paused (docker pause) when all others had ended" in reasons[5]
    assert f"error: peer 3: {reasons[3]}; 1 more peers failed" in run.said
    page = (run.run / "report.html").read_text(encoding="utf-8")
    assert "killed by signal 9" in page and "was paused (docker pause)" in page
    assert "the container of peer 5 is paused" in run.said


def test_out_of_memory_is_said(up: Callable[..., Up]) -> None:
    run = up(peers=3, devices=[{"peers": [2], "memory_mb": 64, "cpus": 0.5}])
    assert run.end() == 1
    assert "peer 2: its container ran out of memory: it used more than memory_mb = 64" in run.said


def test_ctrl_c_lets_all_save(up: Callable[..., Up]) -> None:
    run = up(peers=3, rounds=10_000)
    run.wait_for_round(1)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 5
    assert run.summary["peers_stopped"] == 3
    assert all(saved_rounds(run.run, peer) for peer in range(3))


def test_an_emulated_network_is_the_simulators_bit_for_bit(
    up: Callable[..., Up], tmp_path: Path
) -> None:
    """A third of all messages is lost, the same ones in containers as in one process."""
    rounds, peers = 6, 4
    plain = {"strategy": "dpsgd", "stragglers": {}, "network": {"loss": 0.3}}
    run = up(**plain, peers=peers, rounds=rounds)
    assert run.end() == 0, run.said
    settings = config.load(tmp_path / "run.toml")
    simulated.simulate(settings, tmp_path / "simulated", lambda *_: _nothing, batched=False)
    for peer in range(peers):
        file = checkpoint_file(peer, rounds)
        ours, expected = load(run.run / file).tensors, load(tmp_path / "simulated" / file).tensors
        assert all(torch.equal(ours[name], x) for name, x in expected.items())
    assert run.summary["missing_messages"] > 0


def _nothing() -> None:
    """What is done after each round."""


def test_nothing_outlives_its_launcher(up: Callable[..., Up]) -> None:
    run = up(peers=3, rounds=10_000)
    run.wait_for_round(1)
    run.kill()
    assert all(saved_rounds(run.run, peer) for peer in range(3))


def test_the_example_runs_by_compose_alone(ready: str) -> None:
    words = docker.find().compose
    project = f"p2p-test-{secrets.token_hex(4)}"
    compose = (*words, "--project-name", project, "--file", str(ROOT / "docker" / "compose.yml"))
    variables = os.environ | {"P2P_DML_IMAGE": ready}

    def call(*arguments: str) -> str:
        asked = subprocess.run(
            (*compose, *arguments), env=variables, capture_output=True, text=True, check=False
        )
        return asked.stdout + asked.stderr

    try:
        said = call("up", "--no-build")
        assert "peers finished" in said and "4 of 4" in said, said
    finally:
        call("down", "--volumes")
    assert not docker.containers(project)
