"""An `ssh` that stays on this machine: each host is a home folder of its own."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest
import tomli_w

from p2p_dml.launchers.ssh import hosts
from p2p_dml.launchers.ssh.hosts import Cluster
from tests.launchers.ssh.stage import Play, Stage

# Words before -- are ssh's. "unreachable" is a host that ssh cannot log in to.
_SSH = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
if [ "$2" = unreachable ]; then echo "ssh: connect to host $2 port 22: Connection refused" >&2; exit 255; fi
export HOME="{homes}/$2"
mkdir -p "$HOME"
echo "Welcome to $2, says its .bashrc"
exec sh -c "$3"
"""  # noqa: E501

Entry = Mapping[str, object]


@final
class FreePorts:
    """Ports that nobody has, below those that the system gives; none is given twice."""

    def __init__(self) -> None:
        self._next = 20_000 + os.getpid() % 1000 * 10

    def take(self, count: int) -> int:
        """The first of `count` consecutive ones."""
        while not all(map(_is_free, range(self._next, self._next + count))):
            self._next += 1
        self._next += count
        return self._next - count


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Hosts that this machine plays, in `folder`; their homes are in `homes`."""

    folder: Path
    homes: Path
    ports: FreePorts

    def entry(self, name: str, **more: object) -> Entry:
        """A table of a hosts file, of a host at a free port of loopback."""
        common = {"ssh": name, "address": "127.0.0.1", "python": sys.executable}
        return {**common, "base_port": self.ports.take(8), "inherit": True, **more}

    def write(self, *entries: Entry, **top: object) -> Path:
        """Write a hosts file."""
        path = self.folder / "hosts.toml"
        path.write_text(tomli_w.dumps({**top, "hosts": list(entries)}), encoding="utf-8")
        return path

    def cluster(self, *entries: Entry, **top: object) -> Cluster:
        """Write a hosts file and read it."""
        return hosts.read(self.write(*entries, **top))

    def left(self, name: str) -> list[Path]:
        """Files of runs that are left on a host."""
        return list((self.homes / name / ".cache" / "p2p-dml" / "runs").glob("*"))

    def processes(self, name: str = "") -> set[int]:
        """Ids of the living processes on a host, or on all: those that have their home there."""
        mark = f"HOME={self.homes}/{name}".encode()
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile, or another user's
                environment = (entry / "environ").read_bytes().split(b"\0")
                if any(each.startswith(mark) for each in environment):
                    found.add(int(entry.name))
        return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def hosts_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Hosts in the test's own folder."""
    homes, tools = tmp_path / "homes", tmp_path / "tools"
    tools.mkdir()
    script = tools / "ssh"
    script.write_text(_SSH.format(homes=homes), encoding="ascii")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    yield Hosts(folder=tmp_path, homes=homes, ports=FreePorts())


@pytest.fixture
def stage(hosts_here: Hosts) -> Iterator[Play]:
    """Set the stage for a script; nothing is left on any host afterwards."""
    yield lambda script, *rumours: Stage(hosts_here, script, rumours)
    assert not [*hosts_here.left("alpha"), *hosts_here.left("beta")]
