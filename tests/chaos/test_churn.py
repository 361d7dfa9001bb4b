"""Continuous churn: about every second a peer leaves an elastic run, or one joins it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import pytest

from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import joining

if TYPE_CHECKING:
    from tests.chaos.conftest import Aftermath, Chaos

MOST, FIRST = 8, 5
STAYING = (0, 1)
CHANGES, EVERY, QUIET = 20, 10, 40  # rounds, of 0.1 s
ROUNDS = EVERY * CHANGES + QUIET
COMING_IN = 15
"""Rounds until others are connected again to who came in: they try once a second."""
DIAMETER: Mapping[str, int] = {"complete": 1, "ring": MOST // 2}

Change = tuple[Literal["join", "leave"], int]
Line = dict[str, Any]


def planned(seed: int) -> list[Change]:
    """Who leaves and who joins, one after another; who joins gets the lowest id that is free."""
    found: list[Change] = []
    here = set(range(FIRST))
    for word in np.random.Philox(key=[seed, MOST]).random_raw(CHANGES).tolist():
        may_leave = sorted(here - {*STAYING})
        if len(here) == MOST or (word % 2 and len(may_leave) > 1):
            found.append(("leave", may_leave[(word >> 1) % len(may_leave)]))
            here.discard(found[-1][1])
        else:
            found.append(("join", min(set(range(MOST)) - here)))
            here.add(found[-1][1])
    return found


def stays(lines: Sequence[Line]) -> list[list[Line]]:
    """A peer's log, cut at each beginning of a process."""
    begins = [i for i, line in enumerate(lines) if line["event"] == "started"]
    return [list(lines[i:j]) for i, j in zip(begins, [*begins[1:], None], strict=True)]


def named(lines: Sequence[Line], name: str) -> list[Line]:
    return [line for line in lines if line["event"] == name]


@final
class Churn:
    """Makes the changes of a plan in a run, each when peer 0 is so far and its peer can be hit.

    Nobody leaves before its first round, and nobody joins before those who leave have gone: the id
    it gets is the planned one.
    """

    def __init__(self, plan: Sequence[Change], helper: ThreadPoolExecutor) -> None:
        self._due = list(enumerate(plan, 1))
        self._helper = helper
        self._leaving: list[int] = []  # processes
        self._joining: Future[int] | None = None
        self._folder = Path()
        self.joined: list[int] = []

    def watch(self, folder: Path, started: float) -> Callable[[], None]:
        """What the launcher calls meanwhile."""
        self._folder = folder
        return self.turn

    def turn(self) -> None:
        """Make the change that is due, if it can be made by now."""
        if self._joining is not None and self._joining.done():
            self.joined.append(self._joining.result())
            self._joining = None
        if not self._due:
            return
        turn, (what, peer) = self._due[0]
        here = self._stay(0)
        is_time = bool(here) and len(named(here, "round_done")) >= EVERY * turn
        if is_time and (self._let_go(peer) if what == "leave" else self._let_in()):
            self._due.pop(0)

    def _stay(self, peer: int) -> list[Line]:
        file = event_file(self._folder, peer)
        found = stays(list(read_events(file))) if file.exists() else []
        return found[-1] if found else []

    def _let_go(self, peer: int) -> bool:
        here = self._stay(peer)
        is_in = bool(named(here, "round_done")) and not named(here, "finished")
        if self._joining is not None or not is_in:
            return False
        self._leaving.append(here[0]["pid"])
        os.kill(self._leaving[-1], SIGTERM)
        return True

    def _let_in(self) -> bool:
        self._leaving = [pid for pid in self._leaving if Path(f"/proc/{pid}").exists()]
        if self._joining is not None or self._leaving:
            return False
        self._joining = self._helper.submit(joining.ask, self._folder)
        return True


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("links", DIAMETER)
def test_peers_that_come_and_go_all_the_time(chaos: Chaos, links: str) -> None:
    """Rounds go on, and a message of whom that left is missed for no longer than news takes."""
    plan = planned(seed=5)
    with ThreadPoolExecutor(1) as helper:
        churn = Churn(plan, helper)
        after = chaos.watched(
            churn.watch,
            peers=MOST,
            initial_peers=FIRST,
            elastic=True,
            rounds=ROUNDS,
            links=links,
            stragglers={"round_s": 0.1},
        )
    assert churn.joined == [peer for what, peer in plan if what == "join"]
    lives = {peer: stays(after.log(peer)) for peer in range(MOST)}
    here = expect_planned_endings(after, plan, lives)
    for peer in STAYING:
        assert [e["round"] for e in named(lives[peer][0], "round_done")] == [*range(1, ROUNDS + 1)]
    for peer in here:
        last = [(e["neighbours"], e["missing"]) for e in named(lives[peer][-1], "round_done")][-5:]
        assert last == [(min(len(here) - 1, 2 if links == "ring" else MOST), [])] * 5
    expect_missing_to_be_away(after, lives, 2 + 2 * DIAMETER[links])


def expect_planned_endings(
    after: Aftermath, plan: Sequence[Change], lives: Mapping[int, list[list[Line]]]
) -> set[int]:
    """Nobody ended but as planned; returns who is there in the end."""
    leaving = [peer for what, peer in plan if what == "leave"]
    here = {*range(FIRST)}
    for what, peer in plan:
        (here.add if what == "join" else here.discard)(peer)
    for peer, each in lives.items():
        ends = [line["exit_code"] for life in each for line in named(life, "finished")]
        assert ends == [5] * leaving.count(peer) + [0] * (peer in here)
    assert {p for p, code in after.outcome.exit_codes.items() if code == 0} == here
    return here


def expect_missing_to_be_away(
    after: Aftermath, lives: Mapping[int, list[list[Line]]], bound: int
) -> None:
    """Whoever was missing in a round had left at most `bound` before, or one of the two came in.

    In no case anybody was waited for in vain.
    """
    for peer, each in lives.items():
        assert [after.told(peer, state) for state in ("slow", "stuck")] == [[], []]
        for life in each:
            first = max((entry["round"] for entry in named(life, "rejoined")), default=-ROUNDS)
            for line in named(life, "round_done"):
                for other in line["missing"]:
                    is_new = line["round"] < first + COMING_IN
                    is_away = any(
                        is_gone(its, line, bound) or is_coming(its, line) for its in lives[other]
                    )
                    assert is_new or is_away, (peer, line)


def is_gone(life: Sequence[Line], line: Line, bound: int) -> bool:
    """Whether a round was one of the next ones after the life of a peer that left."""
    return any(0 < line["round"] - end["round"] <= bound for end in named(life, "finished"))


def is_coming(life: Sequence[Line], line: Line) -> bool:
    """Whether a round was over before a peer, started already, was connected to all again."""
    entries = named(life, "rejoined")
    is_early = any(line["round"] < entry["round"] + COMING_IN for entry in entries)
    return is_early and bool(life[0]["t"] < line["t"])
