"""What is shown while a sweep goes on; the clock is ours."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import pytest
from rich.console import Console

from p2p_dml.sweep import Plan
from p2p_dml.sweep._values import Fate
from p2p_dml.sweep.view import View

PlanOf = Callable[[Mapping[str, object]], Plan]


@final
@dataclass(slots=True)
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def plan(plan_of: PlanOf) -> Plan:
    return plan_of({"grid": {"peers": [2, 3, 4, 5, 6]}})


def _console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, height=20)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_time_left_by_hand(plan: Plan) -> None:
    clock = Clock()
    view = View(5, 2, _console(terminal=False), clock, quiet=False)
    assert view.seconds_left is None
    first, second, third, fourth, _ = plan.cases
    view.started(first)
    view.started(second)
    clock.seconds += 10
    view.ended(first, "done", "", 10.0)
    view.started(third)
    # Four of 10 s, one of them over, on two places.
    assert view.seconds_left == pytest.approx((40 - 10) / 2)
    clock.seconds += 4
    assert view.seconds_left == pytest.approx((40 - 10 - 4) / 2)
    view.ended(second, "done", "", 14.0)
    assert view.seconds_left == pytest.approx((3 * 12 - 4) / 2)
    view.started(fourth)
    clock.seconds += 100  # longer than expected: never less than nothing is left
    view.ended(third, "done", "", 12.0)
    view.ended(fourth, "done", "", 12.0)
    assert view.seconds_left == pytest.approx(12)


def test_plain_lines(plan: Plan) -> None:
    clock, console = Clock(), _console(terminal=False)
    view = View(3, 1, console, clock, quiet=False)
    ends: list[tuple[Fate, str]] = [("done", ""), ("failed", "no [room]"), ("stopped", "")]
    for case, (fate, why) in zip(plan.cases, ends, strict=False):
        view.started(case)
        clock.seconds += 30
        view.update()
        view.ended(case, fate, why, 30.0)
    view.close()
    assert _text(console).splitlines() == [
        "0:30  1/3  peers = 2, seed = 0  done after 0:30, about 1:00 left",
        "1:00  2/3  peers = 3, seed = 0  failed after 0:30: no [room], about 0:30 left",
        "1:30  3/3  peers = 4, seed = 0  stopped after 0:30",
    ]


def test_a_terminal_shows_the_running_cases(plan: Plan) -> None:
    clock, console = Clock(), _console(terminal=True)
    view = View(5, 2, console, clock, quiet=False)
    view.started(plan.cases[0])
    view.started(plan.cases[1])
    clock.seconds += 65
    view.ended(plan.cases[0], "failed", "lost", 65.0)
    view.update()
    shown = _text(console)
    assert "1/5 cases, 1 failed  1:05 elapsed" in shown
    assert "peers = 3, seed = 0" in shown
    view.close()
    view.close()
    assert "\x1b[?25h" in _text(console)  # the cursor is back


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_is_quiet(plan: Plan, terminal: bool) -> None:
    console = _console(terminal=terminal)
    view = View(5, 1, console, Clock(), quiet=True)
    view.started(plan.cases[0])
    view.update()
    view.ended(plan.cases[0], "failed", "lost", 1.0)
    view.close()
    assert _text(console) == ""
