"""Faults done to processes that only wait, and to a door that anybody may knock at."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import final

import pytest

from p2p_dml.events import event_file
from p2p_dml.launchers.soak.inject import Injector
from p2p_dml.launchers.soak.plan import Fault
from p2p_dml.launchers.soak.watch import Watch

PEERS = 3


@final
class Stage:
    """Peers that are processes which read and do nothing; time is what a test says it is."""

    def __init__(self, folder: Path, stack: ExitStack, endpoint: str) -> None:
        self.said: list[str] = []
        self.broken: list[str] = []
        self.watch = Watch(folder, PEERS, 1000.0, lambda *words: self.broken.append(words[1]))
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._folder = folder
        self._stack = stack
        self._endpoint = endpoint
        (folder / "events").mkdir()
        for peer in range(PEERS):
            self.start(peer, at=0.0)

    def start(self, peer: int, at: float) -> None:
        """A process for a peer, which does a round at once."""
        process = subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE)
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        self.processes[peer] = process
        line = {"event": "started", "pid": process.pid, "endpoint": self._endpoint}
        self._write(peer, line)
        self.round(peer, 1, at)

    def round(self, peer: int, number: int, at: float) -> None:
        self._write(peer, {"event": "round_done", "t": at, "round": number, "missing": []})
        self.watch.read(at)

    def _write(self, peer: int, line: object) -> None:
        with event_file(self._folder, peer).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def injector(self, *faults: Fault) -> Injector:
        """Its plan begins at 100."""
        found = Injector(faults, self.watch, 100.0, self.said.append)
        self._stack.callback(found.close)
        return found

    def state(self, peer: int) -> str:
        """As the kernel calls it: S sleeping, T stopped."""
        text = Path(f"/proc/{self.processes[peer].pid}/stat").read_text(encoding="utf-8")
        return text.rpartition(")")[2].split()[0]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        found.settimeout(20.0)
        yield found


@pytest.fixture
def stage(tmp_path: Path, listener: socket.socket) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path, stack, f"tcp://127.0.0.1:{listener.getsockname()[1]}")


def test_a_killed_peer_recovers_with_the_first_round_of_the_next_process(stage: Stage) -> None:
    injector = stage.injector(Fault(at_s=5.0, kind="half", peers=(1, 2)))
    injector.turn(104.9)
    assert not injector.injections
    injector.turn(105.0)
    assert [stage.processes[peer].wait(20) for peer in (1, 2)] == [-signal.SIGKILL] * 2
    assert stage.processes[0].poll() is None
    assert stage.said == ["     5 s  half peers 1, 2"]
    stage.start(1, at=107.0)
    injector.turn(107.5)
    assert injector.injections[0].recovered_s == {1: 2.0}
    assert injector.late(115.0, 10.0) == []
    assert injector.late(115.1, 10.0) == [(injector.injections[0], 2)]
    assert injector.late(116.0, 10.0) == []
    assert not stage.broken


def test_a_halted_peer_goes_on_when_its_time_is_over(stage: Stage) -> None:
    injector = stage.injector(Fault(at_s=0.0, kind="stop", peers=(1,), for_s=2.0))
    injector.turn(100.0)
    while stage.state(1) != "T":  # the test's time limit ends this
        pass
    injector.turn(101.9)
    assert stage.state(1) == "T"
    injector.turn(102.25)
    while stage.state(1) == "T":
        pass
    stage.round(1, 2, 103.0)
    injector.turn(103.0)
    assert injector.injections[0].recovered_s == {1: 0.75}


def test_nobody_stays_halted_when_it_is_closed(stage: Stage) -> None:
    injector = stage.injector(Fault(at_s=0.0, kind="stop", peers=(1,), for_s=2.0))
    injector.turn(100.0)
    while stage.state(1) != "T":
        pass
    injector.close()
    while stage.state(1) == "T":
        pass


def test_who_is_down_or_under_another_fault_is_passed_over(stage: Stage) -> None:
    injector = stage.injector(
        Fault(at_s=0.0, kind="kill", peers=(1,)),
        Fault(at_s=0.0, kind="stop", peers=(2,), for_s=9.0),
        Fault(at_s=1.0, kind="half", peers=(0, 1, 2)),
    )
    injector.turn(100.0)
    stage.processes[1].wait(20)
    injector.turn(101.0)
    last = injector.injections[-1]
    assert (last.peers, last.passed_over) == ([0], [1, 2])


@pytest.mark.parametrize(("kind", "says"), [("garbage", b"not ZMTP"), ("flood", b"\xff\0")])
def test_strangers_come_to_the_door_and_go(
    stage: Stage, listener: socket.socket, kind: str, says: bytes
) -> None:
    faults = {
        "garbage": Fault(at_s=0.0, kind="garbage", peers=(1,), for_s=0.5),
        "flood": Fault(at_s=0.0, kind="flood", peers=(1,), for_s=0.5),
    }
    injector = stage.injector(faults[kind])
    injector.turn(100.0)
    line, (host, _) = listener.accept()
    with line:
        line.settimeout(20.0)
        assert says in line.recv(64)
    assert host == "127.0.0.2"
    assert stage.watch.views[1].excused_until == 0.0  # it must go on meanwhile
