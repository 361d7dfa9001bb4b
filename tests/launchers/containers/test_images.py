"""Images as files for other hosts, made by a docker that only pretends to have some."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from p2p_dml.errors import StartupError
from p2p_dml.launchers.containers import docker, images

DOCKER = f"""#!{sys.executable} -IS
import json, sys
words = sys.argv[1:]
if words[0] == "info":
    print(json.dumps(dict(NCPU=4)))
elif words[:2] == ["image", "inspect"] and words[-1] != "missing":
    print("amd64 [layers]")
elif words == ["save", "mine:1"]:
    print("an image" * 99999)
else:
    sys.exit("Error: no such image: " + words[-1])
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A docker on PATH."""
    tool = tmp_path / "bin" / "docker"
    tool.parent.mkdir()
    tool.write_text(DOCKER, encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")


def _silent(line: str) -> None:
    """Where nothing is said."""
    raise AssertionError(line)


@pytest.mark.usefixtures("fake")
def test_an_image_is_saved_for_docker_to_load(tmp_path: Path) -> None:
    turns: list[int] = []
    images.save("mine:1", tmp_path / "image", lambda: turns.append(1))
    assert gzip.decompress((tmp_path / "image").read_bytes()) == b"an image" * 99999 + b"\n"
    assert turns


@pytest.mark.usefixtures("fake")
def test_an_image_that_cannot_be_saved_is_said(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="missing cannot be saved to a file: Error: no such im"):
        images.save("missing", tmp_path / "image", lambda: None)


@pytest.mark.usefixtures("fake")
def test_saving_is_ended_when_we_are(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.save("mine:1", tmp_path / "image", interrupt)


@pytest.mark.usefixtures("fake")
def test_an_image_that_is_here_is_for_hosts_and_another_is_theirs_to_pull() -> None:
    assert images.for_hosts("mine:1", build=False, say=_silent).content == "amd64 [layers]"
    assert images.for_hosts("missing", build=False, say=_silent).content is None


def test_who_names_an_image_needs_no_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert images.for_hosts("mine:1", build=False, say=_silent).content is None
    with pytest.raises(StartupError, match="docker is not installed"):
        images.for_hosts(None, build=False, say=_silent)


@pytest.mark.usefixtures("fake")
def test_the_image_of_this_version_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    found = images.for_hosts(None, build=False, say=said.append)
    assert (found.name, found.content) == (docker.IMAGE, "amd64 [layers]")
    assert "another state of p2p_dml" in said[0]
