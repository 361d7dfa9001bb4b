"""Files that hosts send of a run, put into the launcher's run folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from p2p_dml.launchers import folder
from p2p_dml.launchers.ssh.channel import HostError
from p2p_dml.launchers.ssh.quarters import Site

_OF_A_PEER = re.compile(
    r"events/peer-(\d{3,})\.jsonl|logs/peer-(\d{3,})\.log"
    r"|checkpoints/peer-(\d{3,})/round-\d+\.safetensors"
)


@final
class Arrivals:
    """Writes what hosts send to where it belongs, and nowhere else.

    Events and logs that are there already, of a run that goes on, are kept: what comes is appended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = {
            str(file.relative_to(path)): _end_line(file)
            for pattern in ("events/*", "logs/*")
            for file in path.glob(pattern)
        }

    def take(self, site: Site, head: Mapping[str, Any], body: bytes) -> None:
        """Write a piece of a file of `site`; a checkpoint has its name once it is whole.

        Raises HostError for a file that is not the site's to write, StorageError if it cannot be.
        """
        place = _place(site, head["file"])
        path = self._path / place
        is_growing = path.suffix != ".safetensors"
        nascent = path if is_growing else path.with_suffix(".part")
        with folder.storage(self._path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(nascent, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
                file.seek(self._kept.get(place, 0) + head["offset"])
                file.write(body)
            if not is_growing and head["offset"] + len(body) >= head["size"]:
                os.replace(nascent, path)


def _end_line(file: Path) -> int:
    """The size of a file, whose last line is ended if a launcher was killed within it."""
    with file.open("r+b") as lines:
        size = lines.seek(0, os.SEEK_END)
        lines.seek(max(0, size - 1))
        if lines.read(1) not in (b"", b"\n"):
            lines.write(b"\n")
        return lines.tell()


def _place(site: Site, name: object) -> str:
    """Where a file goes; a host that is not ours any more could send anything."""
    if name == f"logs/{site.name}.log":
        return f"logs/{site.name}.log"
    found = _OF_A_PEER.fullmatch(str(name))
    peer = next((int(number) for number in found.groups() if number), None) if found else None
    if peer is None or peer not in site.peers:
        raise HostError(f"it sent a file that is not its own: {name!r}")
    return str(name)
