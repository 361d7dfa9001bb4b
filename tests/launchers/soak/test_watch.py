"""Events of peers held against the invariants, from lines as peers write them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import final

import pytest

from p2p_dml.events import event_file
from p2p_dml.launchers.soak.watch import Watch

BOUND_S = 10.0


@final
class Stage:
    """A run folder of two peers, and what a watch says of it."""

    def __init__(self, folder: Path) -> None:
        self.found: list[tuple[str, str]] = []
        self.watch = Watch(folder, 2, BOUND_S, lambda *words: self.found.append(words))
        self._folder = folder
        (folder / "events").mkdir()

    def write(self, text: str, peer: int = 0) -> None:
        with event_file(self._folder, peer).open("a", encoding="utf-8") as file:
            file.write(text)

    def start(self) -> None:
        line = {"event": "started", "t": 0.0, "peer": 0, "pid": os.getpid(), "endpoint": "tcp://x"}
        self.write(json.dumps(line) + "\n")

    def rounds(self, *rounds: int, at: float, missing: tuple[int, ...] = ()) -> None:
        """One each second, the first `at`."""
        for i, round_ in enumerate(rounds):
            line = {"event": "round_done", "t": at + i, "round": round_, "missing": missing}
            self.write(json.dumps(line) + "\n")

    @property
    def invariants(self) -> list[str]:
        return [name for name, _ in self.found]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_peer_that_goes_on_breaks_nothing(stage: Stage) -> None:
    stage.start()
    stage.rounds(1, 2, 4, at=1.0)
    stage.watch.read(4.0)
    view = stage.watch.views[0]
    assert (view.round, view.worst_gap_s, view.starts, view.done) == (4, 1.0, 1, [1.0, 2.0, 3.0])
    assert view.life is not None and view.life.pid == os.getpid()
    stage.watch.read(3.0 + BOUND_S)
    assert not stage.found


def test_half_a_line_is_waited_for(stage: Stage) -> None:
    stage.start()
    stage.write('{"event": "round_done", "t": 1.0, "round"')
    stage.watch.read(1.0)
    assert stage.watch.views[0].done_at is None
    stage.write(': 1, "missing": []}\n')
    stage.watch.read(1.0)
    assert stage.watch.views[0].done_at == 1.0
    assert not stage.found


def test_no_progress_is_said_once_unless_a_fault_is_the_reason(stage: Stage) -> None:
    stage.start()
    stage.rounds(1, at=0.0)
    stage.watch.read(0.0)
    stage.watch.excuse(0, killed=False)
    stage.watch.read(50.0)
    stage.watch.release(0, 50.0)
    stage.watch.read(50.0)
    assert not stage.found
    stage.rounds(2, at=51.0)
    stage.watch.read(52.0)
    assert stage.watch.views[0].worst_gap_s == 0.0
    for now in (62.0, 63.0):
        stage.watch.read(now)
    assert stage.invariants == ["no unfaulted peer is without progress"]
    assert stage.found[0][1] == "peer 0: no round for 10 s after round 2"


@pytest.mark.parametrize(
    ("killed", "broken"),
    [(True, []), (False, ["event files parse", "no peer ends but by a fault"])],
)
def test_who_was_killed_may_tear_a_line_and_begin_again(
    stage: Stage, killed: bool, broken: list[str]
) -> None:
    stage.start()
    stage.rounds(7, at=0.0)
    stage.watch.read(0.0)
    if killed:
        stage.watch.excuse(0, killed=True)
    stage.write('{"event": "rou\n')
    stage.start()
    stage.rounds(5, 6, at=30.0)
    stage.watch.read(31.0)
    assert stage.invariants == broken
    assert stage.watch.views[0].starts == 2


def test_to_begin_again_twice_needs_two_faults(stage: Stage) -> None:
    stage.start()
    stage.rounds(7, at=0.0)
    stage.watch.read(0.0)
    stage.watch.excuse(0, killed=True)
    stage.start()
    stage.start()
    stage.watch.read(0.0)
    assert stage.found == [("no peer ends but by a fault", "peer 0 was started again")]


@pytest.mark.parametrize("after", [5, 4])
def test_rounds_only_go_up(stage: Stage, after: int) -> None:
    stage.start()
    stage.rounds(5, after, at=0.0)
    stage.watch.read(1.0)
    assert stage.found == [("rounds only go up", f"peer 0: round {after} after 5")]


def test_an_error_of_a_peer_is_told(stage: Stage) -> None:
    stage.write('{"event": "finished", "round": 3, "exit_code": 1, "error": "no disk"}\n')
    stage.watch.read(0.0)
    assert stage.found == [("no peer ends but by a fault", "peer 0: no disk")]


def test_accuracy_is_the_mean_once_all_have_one(stage: Stage) -> None:
    for peer, accuracies in ((0, (0.5, 0.75)), (1, (0.25,))):
        for accuracy in accuracies:
            stage.write(json.dumps({"event": "evaluated", "accuracy": accuracy}) + "\n", peer)
            stage.watch.read(0.0)
    assert stage.watch.accuracy == stage.watch.best_accuracy == 0.5
    stage.write('{"event": "evaluated", "accuracy": 0.05}\n')
    stage.watch.read(0.0)
    assert stage.watch.accuracy == pytest.approx(0.15)
    assert stage.watch.best_accuracy == 0.5


def test_who_was_not_heard_is_kept(stage: Stage) -> None:
    stage.start()
    stage.rounds(1, at=0.0)
    stage.rounds(2, at=1.0, missing=(3, 5))
    stage.watch.read(1.0)
    (lonely,) = stage.watch.views[0].lonely
    assert (lonely.at, lonely.round, lonely.missing) == (1.0, 2, (3, 5))
