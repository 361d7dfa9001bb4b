"""Files from hosts: written where they belong, and no host writes what is not its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml.launchers.ssh.arrivals import Arrivals
from p2p_dml.launchers.ssh.channel import HostError
from p2p_dml.launchers.ssh.hosts import Host, HostEntry
from p2p_dml.launchers.ssh.quarters import Site

HOST = Host(index=1, entry=HostEntry(ssh="b"), peers=range(2, 6))
SITE = Site(host=HOST, name="container-2", peers=range(2, 4), label="the container")


def _head(name: object, offset: int) -> dict[str, object]:
    return {"file": name, "offset": offset, "size": 7}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("events/peer-002.jsonl",) * 2,
        ("logs/peer-003.log",) * 2,
        ("checkpoints/peer-003/round-000010.safetensors",) * 2,
        ("logs/container-2.log",) * 2,
    ],
)
def test_pieces_are_put_together(tmp_path: Path, name: str, place: str) -> None:
    arrivals = Arrivals(tmp_path)
    arrivals.take(SITE, _head(name, 0), b"one ")
    arrivals.take(SITE, _head(name, 4), b"two")
    assert (tmp_path / place).read_bytes() == b"one two"


def test_a_checkpoint_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    name, arrivals = "checkpoints/peer-003/round-000010.safetensors", Arrivals(tmp_path)
    arrivals.take(SITE, _head(name, 0), b"one ")
    assert not (tmp_path / name).exists()
    arrivals.take(SITE, _head(name, 4), b"two")
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b"new"), (b"{}\n", b"{}\nnew"), (b"{}\n{to", b"{}\n{to\nnew"), (b"x", b"x\nnew")],
)
def test_events_of_before_are_kept_and_torn_lines_ended(
    tmp_path: Path, before: bytes, after: bytes
) -> None:
    name = "events/peer-002.jsonl"
    (tmp_path / "events").mkdir()
    (tmp_path / name).write_bytes(before)
    Arrivals(tmp_path).take(SITE, _head(name, 0), b"new")
    assert (tmp_path / name).read_bytes() == after


@pytest.mark.parametrize(
    "name",
    [
        "events/peer-001.jsonl",
        "events/peer-004.jsonl",
        "logs/container-3.log",
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
        Arrivals(tmp_path / "run").take(SITE, _head(name, 0), b"x")
    assert not list(tmp_path.rglob("*"))
