"""What a host finds at home: ports, room, tools, data."""

from __future__ import annotations

import gzip
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from p2p_dml.launchers.ssh.remote.facts import (
    count_gpus,
    data_folder,
    find,
    is_taken,
    look,
    look_for_package,
    obstacle,
)

REQUEST: Mapping[str, Any] = {"ports": [], "files": [], "data": None}
PACKAGE = {"package": "abc", "needs": "xyz", "inherit": False}


def test_a_bare_host_is_looked_at_without_changing_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("P2P_DML_DATA", raising=False)
    facts = look({**REQUEST, "folder": str(tmp_path / "new" / "er")})
    assert (tmp_path / "new" / "er").is_dir()
    assert facts["obstacle"] is None
    assert facts["disk_mb"] > 0
    assert facts["user"] == [os.getuid(), os.getgid()]
    assert facts["data"] is facts["data_folder"] is None
    assert look({**REQUEST, "folder": str(tmp_path), "data": str(tmp_path)})["data_folder"] == str(
        tmp_path.resolve()
    )


def test_on_a_bare_host_there_is_no_package(tmp_path: Path) -> None:
    found = look_for_package({**PACKAGE, "folder": str(tmp_path)})
    assert not found["has_env"] and not found["has_package"]
    assert found["can_install"] in (True, False)


def test_a_port_is_taken_while_somebody_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert is_taken(port)
    assert not is_taken(port)


def test_data_are_the_same_plain_or_packed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "x").write_bytes(b"content")
    (tmp_path / "b" / "x.gz").write_bytes(gzip.compress(b"content"))
    (tmp_path / "c" / "x").write_bytes(b"another")
    a, b, c = (find(["x"], tmp_path / name)["digest"] for name in "abc")
    assert a == b != c


def test_missing_data_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()
    found = find(["x", "y"], tmp_path)
    assert (found["missing"], found["digest"]) == (["y"], None)
    assert find(["x"], None) == {"place": None, "missing": ["x"], "digest": None}
    monkeypatch.setenv("P2P_DML_DATA", str(tmp_path))
    assert find(["x"], data_folder(None))["missing"] == []
    assert data_folder("~/there") == Path.home() / "there"


def test_a_damaged_archive_is_other_data(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(b"no gzip at all")
    assert find(["x"], tmp_path)["digest"] is not None


def test_a_folder_in_the_way_is_an_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert obstacle(tmp_path / "file" / "below") == "Not a directory"
    assert obstacle(tmp_path / "new") is None


@pytest.mark.parametrize(
    ("tool", "expected"), [("echo 'GPU 0: x'; echo 'GPU 1: y'", 2), ("exit 9", 0)]
)
def test_gpus_are_counted_by_their_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, expected: int
) -> None:
    if Path("/proc/driver/nvidia/gpus").exists():
        pytest.skip("there are GPUs here")
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\n{tool}\n", encoding="ascii")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_gpus() == expected
