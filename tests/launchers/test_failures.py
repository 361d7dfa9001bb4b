"""Real faults on real processes: killed peers, signals, a killed launcher. Nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from p2p_dml.events import event_file, read_events

if TYPE_CHECKING:
    from tests.launchers.conftest import Shell

PEERS = 4
LOOPS = """
import os, signal, threading
from torch import nn

def network():
    return nn.Linear(2, 1)

def idle(model, round):
    return 0.5

def fatal(model, round, peer):
    if (peer, round) == (2, 3):
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.5

def endless(model, round):
    if round == 2:
        threading.Event().wait()
    return 0.5
"""


def _run_file(shell: Shell, train: str, rounds: int) -> str:
    """A run of four peers, all hearing all, with a training function of `LOOPS`."""
    (shell.folder / "loops.py").write_text(LOOPS, encoding="utf-8")
    tables = {
        "peers": PEERS,
        "rounds": rounds,
        "strategy": "dpsgd",
        "links": "complete",
        "model": "loops:network",
        "train": f"loops:{train}",
    }
    return shell.write("run.toml", tables)


def _events(shell: Shell, peer: int, name: str) -> list[dict[str, Any]]:
    file = event_file(shell.folder / "out", peer)
    if not file.exists():
        return []
    return [event for event in read_events(file) if event["event"] == name]


def _begin(shell: Shell, train: str) -> subprocess.Popen[str]:
    """Start a run too long to end by itself and wait until every peer is through round 1."""
    process = shell.start("run", _run_file(shell, train, 10**6), "--out", "out")
    shell.wait_until(
        lambda: all(_events(shell, peer, "round_done") for peer in range(PEERS)),
        "every peer is through round 1",
    )
    return process


def _expect_nothing_left(shell: Shell) -> None:
    """Every peer that ever started is gone, and all else; what was killed takes a while to go."""
    pids = {event["pid"] for peer in range(PEERS) for event in _events(shell, peer, "started")}
    shell.wait_until(lambda: not shell.processes() | {p for p in pids if _lives(p)}, "all are gone")


def _lives(pid: int) -> bool:
    """Whether a process runs: it is there and no zombie that its new parent has yet to bury."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
            != "Z"
        )
    except OSError:
        return False


def _logs(shell: Shell) -> str:
    return "".join(path.read_text() for path in (shell.folder / "out" / "logs").iterdir())


def _summary(shell: Shell) -> dict[str, Any]:
    text = (shell.folder / "out" / "summary.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_others_carry_on_when_a_peer_is_killed(shell: Shell) -> None:
    ended = shell.run("run", _run_file(shell, "fatal", 8), "--out", "out")
    assert ended.code == 1
    assert "Traceback" not in ended.out + ended.err + _logs(shell)
    summary = _summary(shell)
    assert summary["exit_code"] == 1
    assert summary["peers_finished"] == 3
    assert summary["lost"] == [{"peer": 2, "last_round": 2, "exit_code": None, "error": None}]
    assert "peer 2" in (shell.folder / "out" / "report.html").read_text(encoding="utf-8")
    for peer in (0, 1, 3):
        assert _events(shell, peer, "finished")[0]["exit_code"] == 0
        dead = [e for e in _events(shell, peer, "neighbour_changed") if e["state"] == "dead"]
        assert [e["neighbour"] for e in dead] == [2]
        rounds = {e["round"]: e for e in _events(shell, peer, "round_done")}
        assert list(rounds) == list(range(1, 9))
        assert rounds[1]["missing"] == []
        # What peer 2 sent in round 2 may have died with it; from round 3 on it sent nothing.
        for event in (rounds[r] for r in range(3, 9)):
            assert event["missing"] == [2]
            assert event["lost_weight"] == pytest.approx(1 / PEERS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_a_checkpoint(shell: Shell, number: signal.Signals) -> None:
    process = _begin(shell, "idle")
    process.send_signal(number)
    ended = shell.end(process)
    assert ended.code == 5
    _expect_nothing_left(shell)
    assert "Traceback" not in ended.out + ended.err + _logs(shell)
    assert (shell.folder / "out" / "report.html").exists()
    assert _summary(shell)["peers_stopped"] == PEERS
    assert len({_events(shell, peer, "finished")[-1]["round"] for peer in range(PEERS)}) == 1
    for peer in range(PEERS):
        finished = _events(shell, peer, "finished")[-1]
        saved = _events(shell, peer, "checkpointed")[-1]
        assert (finished["exit_code"], finished["error"]) == (5, None)
        assert saved["round"] == finished["round"] >= 1
        assert (shell.folder / "out" / saved["file"]).exists()


def test_a_second_signal_kills(shell: Shell) -> None:
    process = _begin(shell, "endless")
    words = _scratch(shell) / "last-round"
    free = words.read_bytes()[:8]
    process.send_signal(signal.SIGINT)
    shell.wait_until(lambda: words.read_bytes()[:8] != free, "the first signal is taken")
    process.send_signal(signal.SIGINT)
    ended = shell.end(process)
    assert ended.code == 1
    _expect_nothing_left(shell)
    assert _summary(shell)["peers_lost"] == PEERS
    assert "Traceback" not in ended.out + ended.err + _logs(shell)


def _scratch(shell: Shell) -> Path:
    """The launcher's folder, where the peers' sockets are."""
    (endpoint,) = (event["endpoint"] for event in _events(shell, 0, "started"))
    return Path(endpoint.removeprefix("ipc://")).parent


@pytest.mark.parametrize("command", ["run", "simulate"])
def test_a_signal_at_start_up_ends_everything(shell: Shell, command: str) -> None:
    process = shell.start(command, _run_file(shell, "idle", 10**6), "--out", "out")
    shell.wait_until(lambda: (shell.folder / "out" / "run.json").exists(), "the run has begun")
    process.send_signal(signal.SIGINT)
    ended = shell.end(process)
    assert ended.code == 5
    _expect_nothing_left(shell)
    assert "Traceback" not in ended.out + ended.err + _logs(shell)


@pytest.mark.parametrize("train", ["idle", "endless"])
def test_no_peer_outlives_its_launcher(shell: Shell, train: str) -> None:
    process = _begin(shell, train)
    scratch = _scratch(shell)
    assert scratch.is_dir()
    process.kill()
    shell.end(process)
    _expect_nothing_left(shell)
    assert not scratch.exists()


def test_a_killed_nursery_is_a_failed_run(shell: Shell) -> None:
    process = _begin(shell, "idle")
    parents = {_parent_of(event["pid"]) for event in _events(shell, 0, "started")}
    os.kill(parents.pop(), signal.SIGKILL)
    ended = shell.end(process)
    assert ended.code == 1
    _expect_nothing_left(shell)
    assert _summary(shell)["peers_lost"] == PEERS
    assert len(ended.messages) == 1
    assert "Traceback" not in ended.out + ended.err + _logs(shell)


def _parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(x.split()[1] for x in status.splitlines() if x.startswith("PPid:")))
