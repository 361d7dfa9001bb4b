"""The live view on a console of known size, with a clock that the test moves."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from p2p_dml.events import (
    Checkpointed,
    Evaluated,
    Event,
    EventLog,
    Finished,
    Joined,
    NeighbourChanged,
    Rejected,
    Resumed,
    RoundDone,
    Started,
    event_file,
)
from p2p_dml.report.live import LiveView


class Stage:
    """A growing run folder, a clock, and what the view has written."""

    def __init__(
        self,
        run: Path,
        peers: int,
        rounds: int,
        terminal: bool,
        height: int,
        duration_s: float | None = None,
        started: float = 0.0,
    ) -> None:
        self.now = started
        self._written = io.StringIO()
        console = Console(
            file=self._written, width=100, height=height, force_terminal=terminal, color_system=None
        )
        self._logs = [
            EventLog(event_file(run, peer), peer, lambda: self.now) for peer in range(peers)
        ]
        self.view = LiveView(
            run, peers, rounds, console, started, now=lambda: self.now, duration_s=duration_s
        )

    def happens(self, peer: int, *events: Event) -> None:
        for event in events:
            self._logs[peer].write(event)

    def written(self) -> str:
        """What was written since the last call."""
        text = self._written.getvalue()
        self._written.seek(0)
        self._written.truncate()
        return text

    def close(self) -> None:
        self.view.close()
        for log in self._logs:
            log.close()


@pytest.fixture
def stages(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(
        peers: int = 2,
        rounds: int = 20,
        terminal: bool = False,
        height: int = 30,
        duration_s: float | None = None,
    ) -> Stage:
        made.append(Stage(tmp_path / "digits", peers, rounds, terminal, height, duration_s))
        return made[-1]

    yield make
    for stage in made:
        stage.close()


def done(before: int) -> RoundDone:
    return RoundDone(round=before + 1, loss=0.25, bytes_out=1000, bytes_in=1000, neighbours=1)


def test_plain_lines_come_at_tenths_and_not_within_two_seconds(
    stages: Callable[..., Stage],
) -> None:
    stage = stages()
    lines = []
    for round in range(20):
        stage.now = round + 1.0
        for peer in range(2):
            stage.happens(peer, done(round))
        stage.view.update()
        lines += stage.written().splitlines()
    stage.close()
    assert lines[0] == "0:02  round 2/20  loss 0.250  accuracy –  sent 4.00 kB  2/2 peers alive"
    assert len(lines) == 10
    assert lines[-1].startswith("0:20  round 20/20")
    assert stage.written() == ""


def test_a_resumed_run_is_shown_from_where_it_goes_on(tmp_path: Path) -> None:
    started = Started(1, 0, "", 1, 1, [])
    for peer in range(2):
        log = EventLog(event_file(tmp_path / "digits", peer), peer, lambda: 10.0)
        before: list[Event] = [started, *map(done, range(5)), Checkpointed(5, "x"), done(5)]
        for event in (*before, Finished(6, 1)):
            log.write(event)
        log.close()
    view = Stage(tmp_path / "digits", 2, 9, terminal=False, height=30, started=100.0)
    for peer in range(2):
        view.happens(peer, started, Resumed(5), Joined(0.0))
    view.now = 102.0
    for peer in range(2):
        view.happens(peer, done(5), done(6))
    view.view.update()
    # Two of the four rounds that were left took 2 s; each peer has sent seven times 1 kB.
    assert view.written() == (
        "0:02  round 7/9  loss 0.250  accuracy –  sent 14.0 kB  2/2 peers alive\n"
    )
    view.close()


def test_quick_rounds_do_not_flood_but_the_last_line_always_comes(
    stages: Callable[..., Stage],
) -> None:
    stage = stages(rounds=10)
    lines = []
    for round in range(10):
        stage.now = 0.3 * (round + 1)
        stage.happens(0, done(round))
        stage.happens(1, done(round))
        stage.view.update()
        lines += stage.written().splitlines()
    stage.close()
    assert [line.split()[2] for line in lines] == ["7/10", "10/10"]


def test_a_run_of_given_duration_goes_by_its_time(stages: Callable[..., Stage]) -> None:
    """Ten seconds of a thousand rounds: peer 0 does one a second, peer 1 one in four."""
    stage, lines = stages(rounds=1000, duration_s=10.0), []
    for peer in range(2):
        stage.happens(peer, Joined(after_s=0.0))
    for second in range(1, 11):
        stage.now = float(second)
        stage.happens(0, done(second - 1))
        if second % 4 == 0:
            stage.happens(1, done(second // 4 - 1))
        stage.view.update()
        lines += stage.written().splitlines()
    stage.close()
    assert [line.split()[0] for line in lines] == ["0:02", "0:04", "0:06", "0:08", "0:10"]
    assert lines[-1].startswith("0:10  round 6/1000")


@pytest.mark.parametrize(("duration_s", "left"), [(None, "0:16"), (10.0, "0:06")])
def test_the_time_left_is_that_of_what_ends_first(
    stages: Callable[..., Stage], duration_s: float | None, left: str
) -> None:
    stage = stages(terminal=True, duration_s=duration_s)
    stage.happens(0, Joined(after_s=0.0))
    stage.happens(1, Joined(after_s=0.0))
    stage.now = 4.0
    for peer in range(2):
        stage.happens(peer, done(3))
    stage.view.update()
    assert f"about {left} left" in stage.written()


def test_long_rounds_get_a_line_each_minute(stages: Callable[..., Stage]) -> None:
    stage = stages()
    for second in range(150):
        stage.now = float(second)
        stage.view.update()
    stage.close()
    assert stage.written().count("round 0/20") == 2


def test_plain_notices_come_at_once_and_are_not_markup(stages: Callable[..., Stage]) -> None:
    stage = stages()
    stage.now = 1.0
    stage.happens(0, NeighbourChanged(neighbour=1, state="dead", round=0, why="[red]closed[/red]"))
    stage.happens(0, Rejected(sender=1, round=0, why="bad shape"))
    stage.view.update()
    stage.close()
    assert stage.written().splitlines() == [
        "0:01  peer 0 says that peer 1 is dead: [red]closed[/red]",
        "0:01  peer 0 rejected a message of peer 1: bad shape",
    ]


def test_terminal_shows_a_line_per_peer(stages: Callable[..., Stage]) -> None:
    stage = stages(terminal=True)
    stage.happens(0, Joined(after_s=0.0))
    stage.now = 1.0
    stage.happens(0, done(0))
    stage.now = 2.0
    stage.happens(0, done(1), Evaluated(1, 0.875, 0.5, 0.1, ""))
    stage.written()
    stage.view.update()
    screen = stage.written()
    first = next(line for line in screen.splitlines() if line.strip().startswith("0 "))
    for part in ("running", "2/20", "0.250", "87.5 %", "2.00 kB", "1/1", "1.0"):
        assert part in first
    assert "starting" in screen
    assert "digits  0:02 elapsed" in screen


def test_time_left_is_by_the_mean_pace(stages: Callable[..., Stage]) -> None:
    stage = stages(peers=1, rounds=10, terminal=True)
    stage.now = 5.0
    stage.happens(0, Joined(after_s=5.0))
    stage.now = 9.0
    stage.happens(0, *map(done, range(4)))
    stage.written()
    stage.view.update()
    assert "about 0:06 left" in stage.written()  # 4 rounds took 4 s, 6 remain


def test_a_small_screen_shows_the_lines_of_interest(stages: Callable[..., Stage]) -> None:
    stage = stages(peers=40, terminal=True, height=12)
    for peer in range(40):
        stage.happens(peer, *map(done, range(1 if peer == 33 else 5)))
    stage.now = 1.0
    stage.happens(0, NeighbourChanged(neighbour=17, state="dead", round=4, why="closed"))
    stage.written()
    stage.view.update()
    shown = [line.strip() for line in stage.written().splitlines() if line.strip()]
    numbers = {line.split()[0] for line in shown}
    assert {"17", "33", "all"} <= numbers
    assert any("more" in line for line in shown)
    assert len(shown) <= 12


def test_close_leaves_the_notices_and_can_be_repeated(stages: Callable[..., Stage]) -> None:
    stage = stages(terminal=True)
    stage.happens(0, Finished(round=3, exit_code=1, error="NaN loss"))
    stage.close()
    lines = stage.written().splitlines()
    assert "peer 0 failed in round 3: NaN loss (exit 1)" in lines[-1]
    stage.view.close()
    assert "NaN loss" not in stage.written()
