"""Peers in a virtual environment of a host's Python, made there first: `p2p-dml launch`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from p2p_dml.launchers.ssh.channel import Request, Switchboard, Talk, all_of
from p2p_dml.launchers.ssh.hosts import Cluster, Host
from p2p_dml.launchers.ssh.quarters import Fitness, Grounds, Program, Say, Site
from p2p_dml.launchers.ssh.wheel import Wheel

_NEW_MB, _OLD_MB = 3_000, 300
"""Room for an environment with torch and its run, and for a run alone."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """On a host: a Python, and the folder where it finds the package."""

    python: str
    path: str


@final
class Environments:
    """Quarters that are environments: one supervisor on each host forks all of its peers."""

    command = "p2p-dml launch"

    def __init__(self, cluster: Cluster, wheel: Wheel) -> None:
        self._wheel = wheel
        self._wheels = sorted(cluster.wheels.glob("*.whl")) if cluster.wheels else []
        self._installed: dict[Host, Installed] = {}
        self._sites = {
            host: Site(
                host=host, name=f"host-{host.index}", peers=host.peers, label="its supervisor"
            )
            for host in cluster.hosts
        }

    # ---- what is there ------------------------------------------------------------------------

    def examine(self, host: Host, said: Mapping[str, Any]) -> Talk[Fitness]:
        """See whether the package is there, or could be."""
        found = yield Request(
            head={"ask": "package", "folder": host.entry.folder, **self._wanted(host)}
        )
        problems, is_new = [], not found["has_env"]
        if is_new and not found["can_install"]:
            problems.append(
                f"{host.entry.python} there cannot make virtual environments; install "
                "python3-venv, or set `python` to another"
            )
        least = _NEW_MB if is_new and not host.entry.inherit else _OLD_MB
        if said["disk_mb"] < least:
            problems.append(
                f"{said['disk_mb']} MB free in {said['folder']}, {least} MB are needed; free some "
                "or set `folder` to another disk"
            )
        return Fitness(said=found, problems=problems)

    def _wanted(self, host: Host) -> Mapping[str, Any]:
        return {
            "package": self._wheel.digest,
            "needs": self._wheel.needs,
            "inherit": host.entry.inherit,
        }

    # ---- what is brought ----------------------------------------------------------------------

    def prepare(self, board: Switchboard, grounds: Mapping[Host, Grounds], say: Say) -> None:
        """Install the package, and what it needs, where it is not yet."""
        begin, made = time.monotonic(), list[Host]()

        def begun(host: Host) -> None:
            made.append(host)
            say(f"{host.name}: installing what the package needs, which takes minutes, but once")

        self._installed = all_of(board, {host: self._install(host, begun) for host in grounds})
        seconds = f"; what it needs on {len(made)} hosts, in {time.monotonic() - begin:.0f} s"
        say(f"installed: {self._wheel.name} ({self._wheel.digest}){seconds if made else ''}")

    def _install(self, host: Host, begun: Callable[[Host], None]) -> Talk[Installed]:
        """See whether the package is there; else bring it, and the wheels that there are."""
        own = f"packages/{self._wheel.digest}.whl"
        sources: dict[str, Path | bytes] = {own: self._wheel.content}
        sources |= {f"wheels/{path.name}": path for path in self._wheels}
        sizes = [(name, _size(source)) for name, source in sources.items()]
        head = {
            **self._wanted(host),
            "requirements": self._wheel.requirements,
            "wheel": sizes[0],
            "wheels": sizes[1:],
        }
        said = yield Request(head={"ask": "prepare", **head})
        if "missing" in said:
            if not said["has_env"]:
                begun(host)
            missing = [(sources[name], "folder", name, 0o644) for name in said["missing"]]
            said = yield Request(head={"ask": "install", **head}, files=missing)
        return Installed(python=said["python"], path=said["path"])

    # ---- what is started ----------------------------------------------------------------------

    def sites(self, host: Host) -> Sequence[Site]:
        """One, with all peers of the host."""
        return [self._sites[host]]

    def program(self, site: Site, grounds: Grounds) -> Program:
        """The supervisor in the environment."""
        there = self._installed[site.host]
        env = {"PYTHONPATH": there.path}
        if site.host.entry.data:
            env["P2P_DML_DATA"] = site.host.entry.data
        return Program(
            command=[there.python, "-m", "p2p_dml.launchers.supervisor"],
            env=env,
            home=f"{grounds.home}/{site.name}",
            run=f"{grounds.out}/{site.name}",
        )

    def lookout(self, host: Host, grounds: Grounds) -> None:
        """None: the supervisor is a child of the host's agent, who sees its end."""

    def hear(self, host: Host, said: Mapping[str, Any]) -> Iterable[tuple[Site, Mapping[str, Any]]]:
        """Nothing is said by nobody."""
        return ()


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size
