"""Topology files as read: their table, peers and description."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_dml.errors import ConfigError
from p2p_dml.links import files


def read(folder: Path, text: str) -> files.TopologyFile:
    path = folder / "topo.toml"
    path.write_text(text, encoding="utf-8")
    return files.read(path)


def test_a_file_is_a_table_with_peers_and_description(tmp_path: Path) -> None:
    file = read(tmp_path, 'description = "Erdős"\npeers = 9\nkind = "erdos_renyi"\ndensity = 0.5')
    assert (file.description, file.peers) == ("Erdős", 9)
    assert file.table == {"kind": "erdos_renyi", "density": 0.5}


def test_peers_and_description_may_be_absent(tmp_path: Path) -> None:
    file = read(tmp_path, 'kind = "ring"')
    assert (file.description, file.peers) == ("", None)


@pytest.mark.parametrize(
    ("mine", "asked", "expected"), [(None, 8, 8), (8, None, 8), (8, 8, 8), (None, 0, 0)]
)
def test_peers_come_from_file_or_caller(
    mine: int | None, asked: int | None, expected: int, tmp_path: Path
) -> None:
    peers = f"peers = {mine}" if mine else ""
    assert read(tmp_path, peers).for_peers(asked) == expected


@pytest.mark.parametrize("asked", [0, 7, 9])
def test_different_numbers_of_peers_are_refused(asked: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"is for 8 peers, the run has {asked}; run 8 peers or"):
        read(tmp_path, "peers = 8").for_peers(asked)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "topo.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"topo\.toml: not valid TOML"):
        files.read(path)
