"""Ranks of torchrun that die, hang or do not fit: the others say who and where, and save."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from p2p_dml.events import event_file, read_events

if TYPE_CHECKING:
    from tests.launchers.conftest import Shell

PEERS = 4
FAULTY = """
import os, signal, threading
from torch import nn

PHASE, _, NUMBER = os.environ["FAULT"].partition(":")

def fault(phase, peer, round):
    if (phase, peer, round) == (PHASE, 2, 3):
        os.kill(os.getpid(), int(NUMBER))

def network():
    fault("start", int(os.environ["RANK"]), 3)
    return nn.Linear(2, 1)

def train(model, round, peer):
    fault("train", peer, round)
    if (PHASE, peer, round) == ("raise", 2, 3):
        raise ValueError("no such luck")
    if (PHASE, peer, round) == ("train", 0, 3) and "SLOW" in os.environ:
        threading.Event().wait()
    return 0.5

evaluations = -1

def evaluate(model, peer):
    global evaluations
    evaluations += 1
    fault("evaluate", peer, evaluations)
    return {"accuracy": 0.5}
"""


def _torchrun(*options: str) -> Sequence[str]:
    return ("-m", "torch.distributed.run", *options, "-m", "p2p_dml")


RANKS = _torchrun("--nproc-per-node", str(PEERS))


def _run_file(shell: Shell, name: str = "run.toml", **changes: object) -> str:
    (shell.folder / "faulty.py").write_text(FAULTY, encoding="utf-8")
    tables = {
        "peers": PEERS,
        "rounds": 6,
        "strategy": "dpsgd",
        "links": "ring",
        "model": "faulty:network",
        "train": {"function": "faulty:train", "evaluate": "faulty:evaluate"},
        "transport": {"straggler_s": 4.0, "backend": "gloo"},
    }
    return shell.write(name, tables | changes)


def _events(shell: Shell, peer: int, name: str) -> list[dict[str, Any]]:
    lines = read_events(event_file(shell.folder / "out", peer))
    return [event for event in lines if event["event"] == name]


def _expect_survivors(shell: Shell, code: int, *words: str) -> None:
    """Peers 0, 1 and 3 ended with `code`, said `words`, and saved their last complete round."""
    for peer in (0, 1, 3):
        (finished,) = _events(shell, peer, "finished")
        assert finished["exit_code"] == code
        assert all(word in finished["error"] for word in words), finished["error"]
        saved = _events(shell, peer, "checkpointed")[-1]
        assert saved["round"] == finished["round"] - 1 >= 2
        assert (shell.folder / "out" / saved["file"]).exists()


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("train", "peer 2 was lost in round 3: the connection to peer 2 broke"),
        pytest.param(
            "evaluate",
            "peer 2 was lost in round 4: the connection to peer 2 broke",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_survivors_of_a_killed_rank_name_it_and_save(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, phase: str, words: str
) -> None:
    monkeypatch.setenv("FAULT", f"{phase}:{signal.SIGKILL:d}")
    ended = shell.run(_run_file(shell), "--out", "out", program=RANKS)
    assert ended.code == 1
    assert ended.err.count("exitcode  : 6") == 3
    _expect_survivors(shell, 6, words)
    (message,) = ended.messages
    assert words in message
    assert "report: out/report.html" in ended.out
    assert not shell.processes()


@pytest.mark.slow
def test_a_survivor_that_trains_for_long_saves_the_round_before(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is late for the others, but it is not who is named."""
    monkeypatch.setenv("FAULT", f"train:{signal.SIGKILL:d}")
    monkeypatch.setenv("SLOW", "yes")
    ended = shell.run(_run_file(shell), "--out", "out", program=RANKS)
    assert ended.err.count("exitcode  : 6") == 3
    _expect_survivors(shell, 6, "peer 2 was lost in round 3")
    assert not shell.processes()


@pytest.mark.slow
def test_a_rank_killed_in_its_last_evaluation_leaves_the_others_done(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", f"evaluate:{signal.SIGKILL:d}")
    ended = shell.run(_run_file(shell, rounds=3), "--out", "out", program=RANKS)
    assert ended.code == 1
    (message,) = ended.messages
    assert message.startswith("error: peer 2 was lost in round 3")
    for peer in (0, 1, 3):
        assert [event["exit_code"] for event in _events(shell, peer, "finished")] == [0]
        assert [event["round"] for event in _events(shell, peer, "checkpointed")] == [3]


@pytest.mark.slow
def test_survivors_of_a_failed_rank_pass_on_what_it_said(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "raise:0")
    ended = shell.run(_run_file(shell), "--out", "out", program=RANKS)
    assert ended.err.count("exitcode  : 6") == 3
    _expect_survivors(shell, 6, "peer 2 failed in round 3", "ValueError: no such luck")
    (message,) = ended.messages
    assert message.startswith("error: peer 2, round 3: the train function raised ValueError")
    assert _events(shell, 2, "finished")[0]["exit_code"] == 1


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_when_time_is_over(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", f"train:{signal.SIGSTOP:d}")
    process = shell.start(_run_file(shell), "--out", "out", program=RANKS)
    logs = [event_file(shell.folder / "out", peer) for peer in (0, 1, 3)]
    shell.wait_until(
        lambda: all(log.exists() and "finished" in log.read_text() for log in logs),
        "the others have given up",
    )
    (pid,) = (event["pid"] for event in _events(shell, 2, "started"))
    os.kill(pid, signal.SIGCONT)  # else torchrun waits 30 s before it kills
    ended = shell.end(process)
    assert ended.code == 1
    _expect_survivors(shell, 6, "peer 2 was lost in round 3", "no answer of peer 2 in time")
    assert not shell.processes()


@pytest.mark.slow
def test_a_rank_killed_before_the_first_round_is_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", f"start:{signal.SIGKILL:d}")
    ended = shell.run(_run_file(shell), "--out", "out", program=RANKS)
    assert ended.err.count("exitcode  : 3") == 3
    (message,) = ended.messages
    assert "peer 2 was lost before the first round" in message
    assert not (shell.folder / "out").exists()
    assert not shell.processes()


@pytest.mark.slow
def test_a_signal_ends_all_ranks_after_a_checkpoint(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "none")
    file = _run_file(shell, rounds=10**6)
    process = shell.start(file, "--out", "out", "--quiet", program=RANKS)
    log = event_file(shell.folder / "out", 3)
    shell.wait_until(lambda: log.exists() and _events(shell, 3, "round_done"), "a round is over")
    process.send_signal(signal.SIGTERM)
    shell.end(process)
    rounds = set()
    for peer in range(PEERS):
        finished, saved = _events(shell, peer, "finished")[-1], _events(shell, peer, "checkpointed")
        assert (finished["exit_code"], finished["error"]) == (5, None)
        assert [event["round"] for event in saved] == [finished["round"]]
        rounds.add(finished["round"])
    assert max(rounds) - min(rounds) <= PEERS // 2  # a peer may be as far ahead as it is away
    assert not shell.processes()


@pytest.mark.slow
def test_no_rank_outlives_torchrun(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "none")
    file = _run_file(shell, rounds=10**6)
    process = shell.start(file, "--out", "out", "--quiet", program=RANKS)
    log = event_file(shell.folder / "out", 3)
    shell.wait_until(lambda: log.exists() and _events(shell, 3, "round_done"), "a round is over")
    process.kill()
    process.wait()
    shell.wait_until(lambda: not shell.processes(), "all ranks are gone")
    for peer in range(PEERS):
        assert _events(shell, peer, "checkpointed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "transport", "words"),
    [
        (1, "auto", "error: peers [1] are of another run than peer 0"),
        (0, "zeromq", "error: peer 0 would use torch.distributed (gloo) and peer 1 ZeroMQ"),
    ],
)
def test_hosts_that_do_not_fit_refuse_each_other(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, seed: int, transport: str, words: str
) -> None:
    """Two hosts, as far as torchrun can tell; the second differs."""
    monkeypatch.setenv("FAULT", "none")
    first = [_run_file(shell, "0.toml", peers=2), "--out", "out"]
    second = [_run_file(shell, "1.toml", peers=2, seed=seed), "--out", "out"]
    for process in shell.start_hosts(first, [*second, "--transport", transport]):
        ended = shell.end(process)
        assert ended.code == 1
        assert "exitcode  : 3" in ended.err
        (message,) = ended.messages
        assert message.startswith(words)
    assert not (shell.folder / "out").exists()


@pytest.mark.slow
def test_two_hosts_over_zeromq(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "none")
    command = [_run_file(shell, peers=2), "--out", "out", "--transport", "zeromq"]
    assert [shell.end(process).code for process in shell.start_hosts(command, command)] == [0, 0]
    for peer in (0, 1):
        assert [event["exit_code"] for event in _events(shell, peer, "finished")] == [0]
        assert all(not event["missing"] for event in _events(shell, peer, "round_done"))


@pytest.mark.slow
def test_a_rank_killed_over_zeromq_stops_the_others_after_a_checkpoint(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would carry on, but torchrun ends them."""
    monkeypatch.setenv("FAULT", f"train:{signal.SIGKILL:d}")
    file = _run_file(shell, rounds=10**6)
    ended = shell.run(file, "--out", "out", "--quiet", "--transport", "zeromq", program=RANKS)
    assert ended.err.count("exitcode  : 5") == 3
    assert "report: out/report.html" in ended.out
    for peer in (0, 1, 3):
        (finished,) = _events(shell, peer, "finished")
        assert (finished["exit_code"], finished["error"]) == (5, None)
        assert _events(shell, peer, "checkpointed")[-1]["round"] == finished["round"]
    assert not shell.processes()


@pytest.mark.slow
def test_as_many_ranks_as_peers(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "none")
    ended = shell.run(_run_file(shell), "--out", "out", program=_torchrun("--nproc-per-node", "2"))
    assert "exitcode  : 2" in ended.err
    (message,) = ended.messages
    assert "set peers=2, or start 4 ranks" in message
    assert not (shell.folder / "out").exists()
