"""Peers in real containers: `p2p-dml up` from the run file to the report, whatever happens to them.

Needs a docker engine, or root and dockerd, which is started then and stopped at the end. The image
is built from this checkout's Dockerfile; an image of Python is made from Debian's packages where no
registry can be reached.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
IMAGE_VARIABLE = "P2P_DML_TEST_IMAGE"
"""Names an image of this checkout that is there already: making one takes minutes."""

DEADLINE_S = 240.0
BASE: Mapping[str, object] = {
    "peers": 8,
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

_OFFICIAL = "python:3.11-slim-bookworm"
_CONTEXT = (
    "constraints.txt", "docker", "LICENSE", "MANIFEST.in", "p2p_dml", "pyproject.toml", "README.md",
    "setup.cfg", "setup.py", ".dockerignore",
)  # fmt: skip
_ENGINE_S = 30.0
_BRIDGE = Path("/sys/class/net/docker0")  # which a dockerd makes at its start, and leaves behind


def _docker(*words: str) -> str:
    """What a docker command says; AssertionError with its complaint if it fails."""
    asked = subprocess.run(("docker", *words), capture_output=True, text=True, check=False)
    assert asked.returncode == 0, f"docker {words[0]}: {asked.stderr}"
    return asked.stdout


def _obstacle() -> str | None:
    """Why containers cannot be tested here, if they cannot."""
    if shutil.which("docker") is None:
        return "needs docker"
    if not _is_running() and (os.getuid() or _dockerd() is None):
        return "needs a docker engine, or root and dockerd to start one"
    return None


def _is_running() -> bool:
    """Whether an engine answers."""
    return subprocess.run(("docker", "info"), capture_output=True, check=False).returncode == 0


def _dockerd() -> str | None:
    return shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def _engine(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which docker commands work: that of the engine here, or of a new one."""
    if _is_running():
        yield {}
        return
    address, had_bridge = f"unix://{folder}/docker.sock", _BRIDGE.exists()
    places = [f"--{name}={folder}/{name}" for name in ("data-root", "exec-root", "pidfile")]
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            (str(_dockerd()), "--host", address, *places), stdout=log, stderr=log
        )
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = address
    try:
        deadline = time.monotonic() + _ENGINE_S
        while not _is_running():
            assert process.poll() is None and time.monotonic() < deadline, "dockerd does not start"
            time.sleep(0.1)
        yield {"DOCKER_HOST": address}
    finally:
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before
        process.send_signal(signal.SIGTERM)
        process.wait()
        if not had_bridge:
            subprocess.run(("ip", "link", "del", _BRIDGE.name), capture_output=True, check=False)


@contextmanager
def _image(folder: Path) -> Iterator[str]:
    """The name of an image built from this checkout's Dockerfile; gone at the end.

    Packages come from where pip gets them on this machine, and the image of Python from Debian's
    packages if the official one cannot be pulled.
    """
    if given := os.environ.get(IMAGE_VARIABLE):
        yield given
        return
    name = f"p2p-dml-test-{secrets.token_hex(4)}"
    base = _OFFICIAL
    if subprocess.run(("docker", "pull", base), capture_output=True, check=False).returncode:
        base = f"{name}:base"
        subprocess.run((str(ROOT / "tests/cluster/base_image.sh"), base), check=True)
    try:
        arguments = [f"PYTHON_IMAGE={base}", "PIP_NO_INDEX=1", "TORCH_INDEX="]
        words = [word for each in arguments for word in ("--build-arg", each)]
        context = _context(folder)
        recipe = str(context / "docker" / "Dockerfile")
        _docker("build", "--file", recipe, "--tag", name, *words, str(context))
        yield name
    finally:
        names = (name, *([base] if base != _OFFICIAL else []))
        subprocess.run(("docker", "rmi", *names), capture_output=True, check=False)


def _context(folder: Path) -> Path:
    """A copy of what the Dockerfile copies, with the wheels that it installs."""
    context = folder / "context"
    for each in _CONTEXT:
        source = ROOT / each
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        context.mkdir(exist_ok=True)
        copy(source, context / each)
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    pinned = ("--constraint", str(ROOT / "constraints.txt"))
    wheels = ("--dest", str(context / "docker" / "wheels"))
    what = ("torch", str(ROOT), "setuptools", "wheel")
    subprocess.run((*pip, *pinned, *wheels, *what), check=True)
    return context


# ---- fixtures ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of an image of this checkout, at an engine that runs."""
    if why := _obstacle():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("docker")
    with _engine(folder), _image(folder) as name:
        yield name


@final
class Up:
    """One `p2p-dml up`, and the containers that come of it."""

    def __init__(self, folder: Path, image: str, **more: object) -> None:
        self.run = folder / "out"
        (folder / "run.toml").write_text(tomli_w.dumps({**BASE, **more}), encoding="utf-8")
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
        files = [event_file(self.run, peer) for peer in range(8)]
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

    def start(**more: object) -> Up:
        runs.append(Up(tmp_path, ready, **more))
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
    run = up(devices=[{"peers": [2], "memory_mb": 64, "cpus": 0.5}])
    assert run.end() == 1
    assert "peer 2: its container ran out of memory: it used more than memory_mb = 64" in run.said


def test_ctrl_c_lets_all_save(up: Callable[..., Up]) -> None:
    run = up(rounds=10_000)
    run.wait_for_round(1)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 5
    assert run.summary["peers_stopped"] == 8
    assert all(saved_rounds(run.run, peer) for peer in range(8))


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
    run = up(rounds=10_000)
    run.wait_for_round(1)
    run.kill()
    assert all(saved_rounds(run.run, peer) for peer in range(8))


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
