"""Files that hosts send of a run, put into the launcher's run folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from p2p_dml.launchers import folder
from p2p_dml.launchers.ssh.channel import HostError
from p2p_dml.launchers.ssh.hosts import Host

_OF_A_PEER = re.compile(
    r"events/peer-(\d{3,})\.jsonl|logs/peer-(\d{3,})\.log"
    r"|checkpoints/peer-(\d{3,})/round-\d+\.safetensors"
)
_OF_A_HOST = "logs/supervisor.log"


@final
class Arrivals:
    """Writes what hosts send to where it belongs, and nowhere else."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, host: Host, head: Mapping[str, Any], body: bytes) -> None:
        """Write a piece of a file of `host`.

        Raises HostError for a file that is not the host's to write, StorageError if it cannot be.
        """
        path = self._path / _place(host, head["file"])
        with folder.storage(self._path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
                file.seek(head["offset"])
                file.write(body)


def _place(host: Host, name: object) -> str:
    """Where a file goes; a host that is not ours any more could send anything."""
    if name == _OF_A_HOST:
        return f"logs/host-{host.index}.log"
    found = _OF_A_PEER.fullmatch(str(name))
    peer = next((int(number) for number in found.groups() if number), None) if found else None
    if peer is None or peer not in host.peers:
        raise HostError(f"it sent a file that is not its own: {name!r}")
    return str(name)
