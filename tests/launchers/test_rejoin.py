"""Peers that are lost and come back, and peers that join a run which goes on."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch

from p2p_dml.checkpoint import checkpoint_file, load
from p2p_dml.events import event_file, read_events

if TYPE_CHECKING:
    from tests.launchers.conftest import Ended, Shell

pytestmark = pytest.mark.slow

VICTIM, FATAL_ROUND, ROUNDS = 2, 5, 150

LOOPS = '''
import time
from pathlib import Path
from torch import nn

def network():
    return nn.Linear(2, 1)

def slow(model, round, peer, starts=2):
    """Until peer 2 is there again nobody else goes far."""
    if peer != 2 and round == 8:
        while Path("out/events/peer-002.jsonl").read_text().count('"started"') < starts:
            time.sleep(0.01)
    time.sleep(0.02)
    return 0.5

def slow_when_resumed(model, round, peer):
    return slow(model, round, peer, starts=3)

def steady(model, round):
    time.sleep(0.02)
    return 0.5
'''


def tables(train: str, **more: object) -> dict[str, object]:
    """Four peers, all hearing all, whose rounds take 20 ms."""
    return {
        "peers": 4,
        "rounds": ROUNDS,
        "strategy": "dpsgd",
        "links": "complete",
        "model": "loops:network",
        "train": f"loops:{train}",
        **more,
    }


def write(shell: Shell, run: dict[str, object]) -> str:
    (shell.folder / "loops.py").write_text(LOOPS, encoding="utf-8")
    return shell.write("run.toml", run)


def events(shell: Shell, peer: int, *names: str) -> list[dict[str, Any]]:
    file = event_file(shell.folder / "out", peer)
    lines = read_events(file) if file.exists() else iter(())
    return [line for line in lines if line["event"] in names]


def kill(round_: int) -> dict[str, object]:
    return {"peers": [VICTIM], "round": round_, "kind": "kill"}


def lose_one(shell: Shell, **more: object) -> Ended:
    """Run with peer 2 killed in round 5, and started again once."""
    file = write(shell, tables("slow", faults=[kill(FATAL_ROUND)], restarts=1, **more))
    return shell.run("run", file, "--out", "out", "--quiet")


@pytest.mark.parametrize(
    ("more", "source"),
    [
        ({}, "neighbour"),
        ({"checkpoint_every": 1}, "checkpoint"),
        ({"strategy": "sgp", "mixing": "push_uniform"}, "neighbour"),
        ({"transport": {"scheme": "tcp"}}, "neighbour"),
        ({"transport": {"encryption": "curve"}}, "neighbour"),
        ({"overlap": True}, "neighbour"),
        ({"overlap": True, "checkpoint_every": 1}, "checkpoint"),
    ],
    ids=[
        "neighbour's model",
        "own checkpoint",
        "push-sum",
        "at another port",
        "encrypted",
        "overlapped",
        "overlapped, own checkpoint",
    ],
)
def test_a_lost_peer_comes_back(shell: Shell, more: dict[str, object], source: str) -> None:
    ended = lose_one(shell, **more)
    assert (ended.code, ended.messages) == (0, [])
    (entry,) = events(shell, VICTIM, "rejoined")
    assert entry["source"] == source
    gaps = [(FATAL_ROUND, entry["round"] - 1)]  # and where the others did not wait at once
    gaps += [(event["first"], event["last"]) for event in events(shell, VICTIM, "skipped")]
    left_out = {round_ for first, last in gaps for round_ in range(first, last + 1)}
    own = [event["round"] for event in events(shell, VICTIM, "round_done")]
    assert own == [round_ for round_ in range(1, ROUNDS + 1) if round_ not in left_out]
    if source == "checkpoint":
        assert entry["model_round"] == FATAL_ROUND - 1
    else:
        assert FATAL_ROUND <= entry["model_round"] < entry["round"]
    for peer in {0, 1, 3}:
        states = [e["state"] for e in events(shell, peer, "neighbour_changed")]
        assert states[:2] == ["dead", "alive"]
        missing = {e["round"]: e["missing"] for e in events(shell, peer, "round_done")}
        assert all(each in ([], [VICTIM]) for each in missing.values())
        assert missing[FATAL_ROUND + ("overlap" in more)] == [VICTIM]
        assert missing[ROUNDS] == []


def test_who_is_lost_after_the_run_was_made_longer_goes_on_from_before(shell: Shell) -> None:
    """The longer run has another digest, and no checkpoint of its own yet."""
    last = FATAL_ROUND - 1
    run = tables("slow_when_resumed", faults=[kill(FATAL_ROUND)], restarts=1, checkpoint_every=last)
    file = write(shell, run | {"rounds": last})
    assert shell.run("run", file, "--out", "out", "--quiet").code == 0
    longer = shell.run("run", "--resume", "out", "--set", f"rounds={ROUNDS}", "--quiet")
    assert longer.code == 0
    (entry,) = events(shell, VICTIM, "rejoined")
    assert (entry["source"], entry["model_round"]) == ("checkpoint", last)


def test_asynchronous_it_goes_on_where_it_was(shell: Shell) -> None:
    assert lose_one(shell, pace="asynchronous", checkpoint_every=1).code == 0
    (entry,) = events(shell, VICTIM, "rejoined")
    assert (entry["source"], entry["round"]) == ("checkpoint", FATAL_ROUND)
    own = [event["round"] for event in events(shell, VICTIM, "round_done")]
    assert own == [*range(1, ROUNDS + 1)]


def test_as_often_as_the_run_file_says_and_no_more(shell: Shell) -> None:
    faults = [kill(FATAL_ROUND), kill(FATAL_ROUND + 20)]
    file = write(shell, tables("slow", faults=faults, restarts=1))
    ended = shell.run("run", file, "--out", "out", "--quiet")
    assert ended.code == 1
    assert ended.messages == ["error: peer 2 was ended by signal 9 (Killed)"]
    assert len(events(shell, VICTIM, "started")) == 2


@pytest.mark.parametrize("strategy", ["mcepl", "fedpm"])
def test_who_comes_back_masks_the_weights_that_all_began_with(shell: Shell, strategy: str) -> None:
    """And not those that the mask of a neighbour has left."""
    run = {
        "peers": 4,
        "rounds": 40,
        "links": "complete",
        "strategy": {"name": strategy, "lr": 1.0},
        "stragglers": {"round_s": 0.1},
        "faults": [kill(FATAL_ROUND)],
        "restarts": 1,
        "evaluate_every": 0,
    }
    assert shell.run("run", shell.write("run.toml", run), "--out", "out", "--quiet").code == 0
    (entry,) = events(shell, VICTIM, "rejoined")
    assert (entry["source"], entry["model_round"]) == ("beginning", 0)
    assert entry["round"] > FATAL_ROUND
    saved = [load(shell.folder / "out" / checkpoint_file(peer, 40)).tensors for peer in range(4)]
    weights = [{n: x for n, x in each.items() if "strategy/weights" in n} for each in saved]
    assert weights[0]
    for each in weights[1:]:
        assert all(torch.equal(each[name], x) for name, x in weights[0].items())


SCARCE = """
import os, sys

fork, num = os.fork, [0]

def counted():
    num[0] += 1
    if num[0] > 4:
        raise BlockingIOError(11, os.strerror(11))
    return fork()

if any("nursery" in word for word in sys.orig_argv):
    os.fork = counted
"""


def test_who_cannot_be_started_again_ends_alone(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the nursery no fork succeeds after the first four."""
    (shell.folder / "sitecustomize.py").write_text(SCARCE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(shell.folder))
    file = write(shell, tables("steady", faults=[kill(FATAL_ROUND)], restarts=1))
    ended = shell.run("run", file, "--out", "out", "--quiet")
    assert ended.code == 1
    why = "error: peer 2: cannot be started: Resource temporarily unavailable; free memory or "
    assert ended.messages == [f"{why}raise the limit on processes"]
    for peer in (0, 1, 3):
        (last,) = events(shell, peer, "finished")
        assert (last["exit_code"], last["round"]) == (0, ROUNDS)


def test_the_report_says_who_came_back_and_how(shell: Shell) -> None:
    lose_one(shell, checkpoint_every=1)
    page = (shell.folder / "out" / "report.html").read_text(encoding="utf-8")
    (entry,) = events(shell, VICTIM, "rejoined")
    assert f"peer 2 came into the run in round {entry['round']}, with its own model of" in page


# ---- elastic runs -----------------------------------------------------------------------------


def test_peers_join_and_leave_while_the_run_goes_on(shell: Shell) -> None:
    file = write(shell, tables("steady", rounds=10**6, elastic=True, initial_peers=3))
    process = shell.start("run", file, "--out", "out", "--quiet")
    shell.wait_until(lambda: events(shell, 0, "round_done"), "the run goes on")
    joining = shell.run("join", "out")
    assert (joining.code, joining.out) == (0, "peer 3 joins out\n")
    shell.wait_until(lambda: events(shell, 3, "round_done"), "peer 3 takes part")
    too_many = shell.run("join", "out")
    assert too_many.code == 2
    assert "nobody can join: all 4 peers are running" in too_many.messages[0]
    os.kill(events(shell, 1, "started")[0]["pid"], signal.SIGTERM)
    shell.wait_until(lambda: events(shell, 1, "finished"), "peer 1 leaves")
    (left,) = events(shell, 1, "finished")
    known = left["round"] + 20
    shell.wait_until(lambda: events(shell, 0, "round_done")[-1]["round"] > known, "all know of it")
    process.send_signal(signal.SIGINT)
    assert shell.end(process).code == 5

    (entry,) = events(shell, 3, "rejoined")
    assert entry["source"] == "neighbour"
    first = entry["round"]
    assert entry["model_round"] == first - 2  # it was let in when all knew of it, and no sooner
    for peer in (0, 2, 3):
        rounds = {event["round"]: event for event in events(shell, peer, "round_done")}
        # All knew of the newcomer from the same round on, and nobody missed it then.
        assert [rounds[r]["neighbours"] for r in (first, first + 1)] == [3, 3]
        assert all(r > left["round"] for r, event in rounds.items() if event["missing"])
        # Nobody expects the one that left any more, a few rounds after it went.
        assert rounds[known]["neighbours"] == 2
        if peer != 3:
            assert rounds[first - 1]["neighbours"] == 2


def test_who_never_joined_is_not_lost(shell: Shell) -> None:
    file = write(shell, tables("steady", rounds=5, elastic=True, initial_peers=3))
    ended = shell.run("run", file, "--out", "out", "--quiet")
    assert ended.code == 0
    assert "3 of 3" in ended.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"initial_peers": 3}, "initial_peers: needs elastic = true"),
        ({"elastic": True, "initial_peers": 5}, "initial_peers: expected at most peers = 4"),
        ({"elastic": True, "links": {"kind": "k_regular", "degree": 3}}, "must do for each"),
    ],
)
def test_what_cannot_be_elastic(shell: Shell, more: dict[str, object], message: str) -> None:
    ended = shell.run("run", write(shell, tables("steady", **more)), "--out", "out")
    assert ended.code == 2
    assert message in ended.messages[0]


def test_nobody_joins_a_run_with_fixed_peers(shell: Shell) -> None:
    file = write(shell, tables("steady", rounds=2))
    assert shell.run("run", file, "--out", "out", "--quiet").code == 0
    ended = shell.run("join", "out")
    assert ended.code == 2
    assert "its peers are fixed; set elastic = true" in ended.messages[0]
