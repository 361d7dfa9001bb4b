"""Topology files: a schedule's table in TOML, with its number of peers and a description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from p2p_dml import tables
from p2p_dml.errors import ConfigError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyFile:
    """A topology file as read: `table` is the schedule's, not built yet.

    `peers` is None for a file that fits any number of peers.
    """

    path: Path
    table: Mapping[str, object]
    peers: int | None
    description: str

    def for_peers(self, num_peers: int | None) -> int:
        """The number of peers to build for; ConfigError if file and caller disagree or are mute."""
        if num_peers is None and self.peers is None:
            raise ConfigError(f"{self.path}.peers: missing; say for how many peers to build it")
        if num_peers is None or self.peers is None:
            return num_peers or self.peers or 0
        if num_peers != self.peers:
            raise ConfigError(
                f"{self.path}.peers: the file is for {self.peers} peers, the run has {num_peers}; "
                f"run {self.peers} peers or choose another topology"
            )
        return num_peers


def read(path: Path) -> TopologyFile:
    """Read a topology file; ConfigError, with path and reason, if it cannot be used."""
    table = tables.read_toml(path, "topology file")
    peers = tables.check(int | None, table.pop("peers", None), f"{path}.peers")
    description = tables.check(str, table.pop("description", ""), f"{path}.description")
    return TopologyFile(path=path, table=table, peers=peers, description=description)
