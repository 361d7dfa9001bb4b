"""A docker engine and the image of this checkout, made once for all tests that need them.

The engine is one that runs, or dockerd is started and stopped at the end. The image is built from
this checkout's Dockerfile; an image of Python is made from Debian's packages where no registry can
be reached.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGE_VARIABLE = "P2P_DML_TEST_IMAGE"
"""Names an image of this checkout that is there already: making one takes minutes."""

_OFFICIAL = "python:3.11-slim-bookworm"
_CONTEXT = (
    "constraints.txt", "docker", "LICENSE", "MANIFEST.in", "p2p_dml", "pyproject.toml", "README.md",
    "setup.cfg", "setup.py", ".dockerignore",
)  # fmt: skip
_ENGINE_S = 30.0
_BRIDGE = Path("/sys/class/net/docker0")  # which a dockerd makes at its start, and leaves behind


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
        build = ("docker", "build", "--file", recipe, "--tag", name, *words, str(context))
        built = subprocess.run(build, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout[-5000:] + built.stderr
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


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of an image of this checkout, at an engine that runs."""
    if why := _obstacle():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("docker")
    with _engine(folder), _image(folder) as name:
        yield name
