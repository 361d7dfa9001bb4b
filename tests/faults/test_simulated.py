"""Peers of the simulator that drop out: what is sent, heard and kept, by hand on one number."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file, load, saved_rounds
from p2p_dml.errors import ConfigError
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import simulated
from p2p_dml.launchers.outcome import Outcome

PEERS, ROUNDS, VICTIM = 4, 5, 2
MODULE = """
import torch
from torch import nn

def network():
    return nn.Linear(1, 1)

def train(model, round, peer):
    with torch.no_grad():
        model.weight += peer + 1
    return 0.0
"""
BASE: Mapping[str, object] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "dtype": "float64",
    "links": "complete",
    "strategy": "dpsgd",
    "model": "one_number:network",
    "train": "one_number:train",
    "checkpoint_every": 1,
}

Run = Callable[..., Outcome]


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


@pytest.fixture
def simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Simulates peers that each add one more than their id to their one weight in a round."""
    (tmp_path / "one_number.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(name: str, *faults: Mapping[str, object], **tables: object) -> Outcome:
        given = config.parse({**BASE, **tables, "faults": list(faults)}, tmp_path)
        return simulated.simulate(given, tmp_path / name, _ignore)

    return run


def kill(phase: str, round_: int = 3, *peers: int) -> dict[str, object]:
    return {"peers": list(peers) or [VICTIM], "round": round_, "phase": phase, "kind": "kill"}


def weight(outcome: Outcome, peer: int, round_: int) -> float:
    tensors = load(outcome.folder / checkpoint_file(peer, round_)).tensors
    return float(tensors["model/weight"].item())


def events(outcome: Outcome, peer: int, name: str) -> list[dict[str, Any]]:
    return [e for e in read_events(event_file(outcome.folder, peer)) if e["event"] == name]


def missing(outcome: Outcome, peer: int) -> list[list[int]]:
    return [event["missing"] for event in events(outcome, peer, "round_done")]


@pytest.mark.parametrize(
    ("phase", "last_round", "in_round_3"),
    [
        ("train", 2, {0: [2], 1: [2], 3: [2]}),
        ("send", 2, {0: [], 1: [], 3: [2]}),  # to the first half of the receivers
        ("mix", 2, {0: [], 1: [], 3: []}),
        ("checkpoint", 3, {0: [], 1: [], 3: []}),
    ],
)
def test_how_far_the_killed_gets(
    simulate: Run, phase: str, last_round: int, in_round_3: dict[int, list[int]]
) -> None:
    outcome = simulate("out", kill(phase))
    assert outcome.exit_codes == {0: 0, 1: 0, 2: -signal.SIGKILL, 3: 0}
    assert len(missing(outcome, VICTIM)) == last_round
    assert events(outcome, VICTIM, "finished") == []
    for peer, heard in in_round_3.items():
        assert missing(outcome, peer) == [[], [], heard, [2], [2]]
        assert [e["exit_code"] for e in events(outcome, peer, "finished")] == [0]
    (injected,) = events(outcome, VICTIM, "injected")
    assert (injected["round"], injected["phase"], injected["kind"]) == (3, phase, "kill")


def test_who_is_killed_at_a_checkpoint_leaves_half_a_file_and_its_older_ones(simulate: Run) -> None:
    outcome = simulate("out", kill("checkpoint"))
    assert saved_rounds(outcome.folder, VICTIM) == [2, 1]
    half = (outcome.folder / checkpoint_file(VICTIM, 3)).with_suffix(".part")
    whole = outcome.folder / checkpoint_file(0, 3)
    assert half.stat().st_size == whole.stat().st_size // 2


def test_the_weight_of_who_is_gone_returns_to_self(simulate: Run) -> None:
    """Peer 3 without peer 0: half of its own model, and a quarter each of peers 1 and 2."""
    outcome = simulate("out", kill("train", 2, 0))
    before = sum(weight(outcome, peer, 1) for peer in range(PEERS)) / PEERS
    trained = [before + peer + 1 for peer in range(PEERS)]
    expected = (trained[1] + trained[2] + 2 * trained[3]) / 4
    assert weight(outcome, 3, 2) == pytest.approx(expected, abs=1e-12)


def test_all_but_one_can_go(simulate: Run) -> None:
    outcome = simulate("out", kill("train", 2, 0, 1), kill("mix", 3, 3), min_neighbours=0)
    assert missing(outcome, VICTIM) == [[], [0, 1], [0, 1], [0, 1, 3], [0, 1, 3]]
    assert outcome.exit_codes[VICTIM] == 0


def test_what_is_no_number_is_refused_by_all(simulate: Run) -> None:
    fault = {"peers": [VICTIM], "round": 3, "phase": "send", "kind": "nan"}
    outcome = simulate("out", fault)
    assert set(outcome.exit_codes.values()) == {0}
    for peer in (0, 1, 3):
        assert missing(outcome, peer) == [[], [], [2], [], []]
        (refused,) = events(outcome, peer, "rejected")
        assert (refused["sender"], refused["round"]) == (VICTIM, 3)
    assert all(torch.tensor(weight(outcome, p, ROUNDS)).isfinite() for p in range(PEERS))


def test_at_their_own_pace_the_last_model_of_the_killed_grows_old(simulate: Run) -> None:
    """Each use of a model is told with its age: no older than `max_age`, then it is missing."""
    pace = {"pace": {"name": "asynchronous", "max_age": 1}, "stragglers": {"round_s": 1.0}}
    outcome = simulate("out", kill("train"), **pace)
    assert missing(outcome, 0) == [[], [], [], [2], [2]]


@pytest.mark.parametrize(
    ("kind", "phase"),
    [("stop", "train"), ("hang", "mix"), ("nan", "train"), ("full_disk", "checkpoint")],
)
def test_what_needs_a_process_is_refused(simulate: Run, kind: str, phase: str) -> None:
    fault = {"peers": [1], "round": 1, "phase": phase, "kind": kind}
    with pytest.raises(ConfigError, match=rf"faults\[0\].kind: '{kind}'.*p2p-dml run"):
        simulate("out", fault)


def test_a_batch_of_all_peers_loses_one_too(tmp_path: Path) -> None:
    tables = {
        "peers": PEERS,
        "rounds": ROUNDS,
        "links": "complete",
        "strategy": "dpsgd",
        "evaluate_every": 0,
        "checkpoint_every": 1,
        "faults": [kill("train")],
    }
    run = config.parse(tables, tmp_path)
    outcomes = [
        simulated.simulate(run, tmp_path / name, _ignore, batched=batched)
        for name, batched in (("alone", False), ("batch", True))
    ]
    for peer in (0, 1, 3):
        ours, theirs = (load(o.folder / checkpoint_file(peer, ROUNDS)).tensors for o in outcomes)
        for name, x in ours.items():
            torch.testing.assert_close(x, theirs[name])
    assert [saved_rounds(outcome.folder, VICTIM) for outcome in outcomes] == [[2, 1], [2, 1]]
