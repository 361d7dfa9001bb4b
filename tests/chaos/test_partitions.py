"""Packets that vanish between hosts, one way or both, without a word; and come through again.

Three network namespaces on a bridge, a peer in each; iptables drops packets between two of them,
so that connections stay half open: no reset ever tells.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import tomli_w

from p2p_dml.events import event_file, read_events

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

PEERS = 3
DEADLINE_S = 150.0
TABLES: Mapping[str, object] = {
    "peers": PEERS,
    "rounds": 10**6,
    "links": "complete",
    "strategy": "dpsgd",
    "evaluate_every": 0,
    "stragglers": {"round_s": 0.1},
}


def _find(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _do(*words: str) -> None:
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, f"{' '.join(words)}: {ended.stderr}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Island:
    """A namespace with its address, where one peer lives."""

    name: str
    address: str

    def hear_nothing_from(self, other: Island) -> None:
        """Drop every packet that comes from another island."""
        _do("ip", "netns", "exec", self.name, "iptables", "-I", "INPUT", "-s", other.address,
            "-j", "DROP")  # fmt: skip

    def heal(self) -> None:
        """Let everything through again."""
        _do("ip", "netns", "exec", self.name, "iptables", "-F")


@pytest.fixture
def islands() -> Iterator[list[Island]]:
    """One for each peer, on a bridge in a namespace of its own; gone at the end."""
    if os.getuid() or None in map(_find, ("ip", "iptables")):
        pytest.skip("needs root, ip and iptables, for network namespaces")
    token = secrets.token_hex(3)
    switch, net = f"p2p{token}s", secrets.randbelow(200) + 20
    found = [Island(name=f"p2p{token}{i}", address=f"10.214.{net}.{i + 1}") for i in range(PEERS)]
    with ExitStack() as stack:
        for name in (switch, *(island.name for island in found)):
            _do("ip", "netns", "add", name)
            stack.callback(_do, "ip", "netns", "del", name)
            _do("ip", "-n", name, "link", "set", "lo", "up")
        _do("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _do("ip", "-n", switch, "link", "set", "bridge", "up")
        for i, island in enumerate(found):
            ends = ["veth", "peer", "name", "eth0", "netns", island.name]
            _do("ip", "-n", switch, "link", "add", f"to{i}", "type", *ends)
            _do("ip", "-n", switch, "link", "set", f"to{i}", "master", "bridge", "up")
            _do("ip", "-n", island.name, "addr", "add", f"{island.address}/24", "dev", "eth0")
            _do("ip", "-n", island.name, "link", "set", "eth0", "up")
        yield found


@final
class Voyage:
    """A run with a peer on each island."""

    def __init__(self, folder: Path, islands: list[Island]) -> None:
        self._folder = folder
        addresses = [f"tcp://{island.address}:5800" for island in islands]
        transport: dict[str, object] = {
            "addresses": addresses,
            "encryption": "none",
            "heartbeat_s": 1.0,
        }
        transport["startup_s"] = DEADLINE_S
        text = tomli_w.dumps({**TABLES, "transport": transport})
        (folder / "run.toml").write_text(text, encoding="utf-8")
        self._peers = [self._start(me, island) for me, island in enumerate(islands)]

    def _start(self, me: int, island: Island) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-m", "p2p_dml", "peer", "run.toml", "--me", str(me)]
        return subprocess.Popen(
            ["ip", "netns", "exec", island.name, *program, "--out", f"out{me}"],
            cwd=self._folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def events(self, peer: int, name: str) -> list[dict[str, Any]]:
        file = event_file(self._folder / f"out{peer}", peer)
        lines = read_events(file) if file.exists() else ()
        return [line for line in lines if line["event"] == name]

    def missing(self, peer: int) -> list[list[int]]:
        return [event["missing"] for event in self.events(peer, "round_done")]

    def told(self, peer: int, state: str) -> list[int]:
        lines = self.events(peer, "neighbour_changed")
        return [event["neighbour"] for event in lines if event["state"] == state]

    def wait_until(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, f"never happened: {what}"
            assert all(peer.poll() is None for peer in self._peers), "a peer has ended"
            time.sleep(0.05)

    def stop(self) -> list[int]:
        """Tell all peers to stop; their exit codes."""
        for peer in self._peers:
            peer.send_signal(signal.SIGTERM)
        return [peer.wait(DEADLINE_S) for peer in self._peers]

    def close(self) -> None:
        for peer in self._peers:
            peer.kill()
            peer.wait()


@pytest.fixture
def voyage(tmp_path: Path, islands: list[Island]) -> Iterator[Voyage]:
    """A run under way: every peer has heard every other in three rounds."""
    each = Voyage(tmp_path, islands)
    try:
        each.wait_until(lambda: min(len(each.missing(p)) for p in range(PEERS)) >= 3, "it begins")
        yield each
    finally:
        each.close()


@pytest.mark.parametrize("is_both_ways", [False, True])
def test_a_link_that_drops_everything_and_heals(
    voyage: Voyage, islands: list[Island], is_both_ways: bool
) -> None:
    """Peers 0 and 2 lose each other and peer 1 nobody; healed, all hear all again."""
    islands[0].hear_nothing_from(islands[2])
    if is_both_ways:
        islands[2].hear_nothing_from(islands[0])
    voyage.wait_until(lambda: voyage.told(0, "dead") and voyage.told(2, "dead"), "it is noticed")
    rounds = len(voyage.missing(1))
    voyage.wait_until(lambda: len(voyage.missing(1)) >= rounds + 5, "rounds go on meanwhile")
    for island in islands:
        island.heal()
    voyage.wait_until(
        lambda: all(voyage.missing(peer)[-3:] == [[]] * 3 for peer in range(PEERS)),
        "all hear all again",
    )
    assert (voyage.told(0, "dead"), voyage.told(2, "dead")) == ([2], [0])
    assert (voyage.told(0, "alive"), voyage.told(2, "alive")) == ([2], [0])
    assert [missing for missing in voyage.missing(1) if missing] == []
    assert voyage.stop() == [5, 5, 5]


def test_a_host_that_nothing_reaches_any_more(voyage: Voyage, islands: list[Island]) -> None:
    """Half-open connections: the others finish without it, and it ends when alone for long."""
    for other in (0, 1):
        islands[other].hear_nothing_from(islands[2])
        islands[2].hear_nothing_from(islands[other])
    voyage.wait_until(lambda: voyage.told(0, "dead") and voyage.told(1, "dead"), "it is noticed")
    voyage.wait_until(lambda: len(voyage.told(2, "dead")) == 2, "it notices too")
    voyage.wait_until(lambda: voyage.events(2, "isolated"), "it says that it is alone")
    rounds = len(voyage.missing(0))
    voyage.wait_until(lambda: len(voyage.missing(0)) >= rounds + 3, "the others go on")
    assert all(missing == [2] for missing in voyage.missing(0)[-3:])
    assert (voyage.told(0, "dead"), voyage.told(1, "dead")) == ([2], [2])
