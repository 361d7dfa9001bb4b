"""Files from hosts: written where they belong, and no host writes what is not its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml.launchers.ssh.arrivals import Arrivals
from p2p_dml.launchers.ssh.channel import HostError
from p2p_dml.launchers.ssh.hosts import Host, HostEntry

HOST = Host(index=1, entry=HostEntry(ssh="b"), peers=range(2, 4))


def _take(folder: Path, name: object, body: bytes, offset: int = 0) -> None:
    Arrivals(folder).take(HOST, {"file": name, "offset": offset}, body)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("events/peer-002.jsonl", "events/peer-002.jsonl"),
        ("logs/peer-003.log", "logs/peer-003.log"),
        ("checkpoints/peer-003/round-000010.safetensors",) * 2,
        ("logs/supervisor.log", "logs/host-1.log"),
    ],
)
def test_pieces_are_put_together(tmp_path: Path, name: str, place: str) -> None:
    _take(tmp_path, name, b"one ")
    _take(tmp_path, name, b"two", 4)
    _take(tmp_path, name, b"two", 4)  # sent again
    assert (tmp_path / place).read_bytes() == b"one two"


@pytest.mark.parametrize(
    "name",
    [
        "events/peer-001.jsonl",
        "events/peer-002.jsonl/../../../x",
        "../events/peer-002.jsonl",
        "/etc/passwd",
        "run.toml",
        "checkpoints/peer-002/../../x.safetensors",
        "events/peer-002.jsonl\n",
        None,
        ["events/peer-002.jsonl"],
    ],
)
def test_anything_else_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(HostError, match="not its own"):
        _take(tmp_path / "run", name, b"x")
    assert not list(tmp_path.rglob("*"))
