"""Peers started one by one, at fixed addresses: lost, started again by hand, joining, leaving."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, final

import pytest

from p2p_dml.events import event_file, read_events

if TYPE_CHECKING:
    from tests.launchers.conftest import Shell

pytestmark = pytest.mark.slow

LOOPS = """
import time
from torch import nn

def network():
    return nn.Linear(2, 1)

def steady(model, round):
    time.sleep(0.05)
    return 0.5
"""
ENDLESS: Mapping[str, object] = {
    "rounds": 10**6,
    "strategy": "dpsgd",
    "links": "complete",
    "model": "loops:network",
    "train": "loops:steady",
}


def _addresses(count: int) -> list[str]:
    """Free ones, of ports that the system has given and taken back."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in probes]


@final
class Cluster:
    """Peers of one run file, each a process and a folder of its own; nobody has launched them."""

    def __init__(self, shell: Shell, peers: int, **more: object) -> None:
        self._shell = shell
        self._processes: dict[int, subprocess.Popen[str]] = {}
        (shell.folder / "loops.py").write_text(LOOPS, encoding="utf-8")
        transport = {"addresses": _addresses(peers), "startup_s": 60.0}
        shell.write("run.toml", {**ENDLESS, "peers": peers, "transport": transport, **more})

    def start(self, *peers: int) -> None:
        """Start these, as a person would type it."""
        for me in peers:
            words = ("peer", "run.toml", "--me", str(me), "--out", f"out{me}")
            self._processes[me] = self._shell.start(*words)

    def kill(self, peer: int) -> None:
        """End a peer at once; returns when it is gone."""
        self._processes[peer].kill()
        self._processes.pop(peer).wait()

    def stop(self, *peers: int) -> list[int]:
        """Tell these to leave; their exit codes."""
        for peer in peers:
            self._processes[peer].send_signal(signal.SIGTERM)
        return [self._shell.end(self._processes.pop(peer)).code for peer in peers]

    def events(self, peer: int, name: str) -> list[dict[str, Any]]:
        file = event_file(self._shell.folder / f"out{peer}", peer)
        lines = read_events(file) if file.exists() else ()
        return [line for line in lines if line["event"] == name]

    def missing(self, peer: int) -> list[list[int]]:
        return [event["missing"] for event in self.events(peer, "round_done")]

    def wait_for_rounds(self, count: int, *peers: int) -> None:
        """Until each of these has done so many rounds more."""
        until = {peer: len(self.missing(peer)) + count for peer in peers}
        self._shell.wait_until(
            lambda: all(len(self.missing(peer)) >= until[peer] for peer in peers),
            f"{count} more rounds of peers {peers}",
        )

    def wait_until_all_hear_all(self, *peers: int, neighbours: int) -> None:
        """Until each of these has had three rounds in which nobody of so many was missing."""

        def is_so(peer: int) -> bool:
            last = self.events(peer, "round_done")[-3:]
            return [(e["neighbours"], e["missing"]) for e in last] == [(neighbours, [])] * 3

        self._shell.wait_until(lambda: all(map(is_so, peers)), "all hear all")


@pytest.mark.parametrize(
    ("more", "source"),
    [({"checkpoint_every": 1}, "checkpoint"), ({}, "neighbour")],
    ids=["own checkpoint", "neighbour's model"],
)
def test_who_was_killed_is_started_again_by_hand(
    shell: Shell, more: dict[str, object], source: str
) -> None:
    cluster = Cluster(shell, 3, **more)
    cluster.start(0, 1, 2)
    cluster.wait_for_rounds(3, 0, 1, 2)
    cluster.kill(2)
    saved = [event["round"] for event in cluster.events(2, "checkpointed")]
    cluster.wait_for_rounds(3, 0, 1)
    cluster.start(2)
    shell.wait_until(lambda: cluster.events(2, "rejoined"), "it is back")
    cluster.wait_until_all_hear_all(0, 1, 2, neighbours=2)
    for peer in (0, 1):
        states = [event["state"] for event in cluster.events(peer, "neighbour_changed")]
        assert states == ["dead", "alive"]
        assert all(missing in ([], [2]) for missing in cluster.missing(peer))
    assert cluster.stop(0, 1, 2) == [5, 5, 5]
    (entry,) = cluster.events(2, "rejoined")
    assert entry["source"] == source
    if source == "checkpoint":
        assert entry["model_round"] == saved[-1] < entry["round"]
    else:
        assert entry["neighbour"] in (0, 1)
        assert max(saved, default=0) < entry["model_round"] < entry["round"]


def test_one_joins_an_elastic_run_from_elsewhere_and_leaves(shell: Shell) -> None:
    """Peer 4 of at most five comes, before peer 3 ever did; all agree on its first round."""
    cluster = Cluster(shell, 5, elastic=True, initial_peers=3)
    cluster.start(0, 1, 2)
    cluster.wait_for_rounds(3, 0, 1, 2)
    cluster.start(4)
    shell.wait_until(lambda: cluster.events(4, "rejoined"), "it takes part")
    cluster.wait_until_all_hear_all(0, 1, 2, 4, neighbours=3)
    assert cluster.stop(4) == [5]
    cluster.wait_until_all_hear_all(0, 1, 2, neighbours=2)
    (entry,) = cluster.events(4, "rejoined")
    (left,) = cluster.events(4, "finished")
    assert (entry["source"], entry["neighbour"] in (0, 1, 2)) == ("neighbour", True)
    for peer in (0, 1, 2):
        sizes = {e["round"]: e["neighbours"] for e in cluster.events(peer, "round_done")}
        assert [sizes[entry["round"] + ahead] for ahead in (-1, 0)] == [2, 3]
        lonely = {e["round"]: e["missing"] for e in cluster.events(peer, "round_done")}
        assert all(r > left["round"] and who == [4] for r, who in lonely.items() if who)
    assert cluster.stop(0, 1, 2) == [5, 5, 5]
