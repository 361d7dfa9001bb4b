"""Reports of resumed runs: what was done again counts once, and time in which nobody trained not.

Two peers do rounds 1 and 2 with a checkpoint of round 1, are cut off in round 3, and go on after
round 1 an hour later. All times are in seconds since the start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p2p_dml.events import (
    Checkpointed,
    Evaluated,
    Event,
    Finished,
    Isolated,
    Joined,
    Memory,
    Resumed,
    RoundDone,
    Started,
)
from p2p_dml.report._notices import notices
from p2p_dml.report._timeline import measure_timeline
from p2p_dml.report.load import load
from p2p_dml.report.summary import measure_curve, summarise

STARTED = 1_700_000_000.0
HOUR = 3600.0
START = Started(pid=1, incarnation=0, endpoint="", parameters=1, samples=9, class_counts=[9])


def done(round: int) -> RoundDone:
    seconds = {"train": 1.0}
    return RoundDone(
        round=round, loss=0.5, bytes_out=10**round, bytes_in=1, neighbours=1, seconds=seconds
    )


def evaluated(round: int, accuracy: float) -> Evaluated:
    return Evaluated(round=round, accuracy=accuracy, loss=0.5, seconds=0.1, sketch="")


def begun(*after: Event) -> list[tuple[float, Event]]:
    """A start at 1 s that has joined at 2 s, with `after` in between."""
    return [(1.0, START), *((1.5, event) for event in after), (2.0, Joined(after_s=1.0))]


FIRST = [
    *begun(),
    (2.0, evaluated(0, 0.1)),
    (3.0, evaluated(1, 0.2)),
    (3.0, done(1)),
    (3.0, Checkpointed(1, "x")),
    (4.0, Isolated(2, 0)),
    (4.0, evaluated(2, 0.9)),
    (4.0, done(2)),
    (4.0, Memory(2, 1.0, 1.0)),
]
SECOND = [
    *begun(Resumed(1)),
    (2.0, evaluated(1, 0.2)),
    (3.0, done(2)),
    (4.0, evaluated(3, 0.4)),
    (4.0, done(3)),
    (4.5, Finished(3, 0)),
]


@pytest.fixture
def resumed(
    tmp_path: Path, write_meta: Callable[..., Path], append: Callable[..., None]
) -> Callable[..., Path]:
    """A folder of the run above; `again`: later sessions, each an hour after the one before."""

    def write(*again: list[tuple[float, Event]]) -> Path:
        times = [HOUR * (i + 1) for i in range(len(again))]
        entries = [{"at": STARTED + at, "round": 1, "command": "x"} for at in times]
        folder = write_meta(tmp_path / "run", peers=2, rounds=3, resumed=entries)
        for peer in range(2):
            append(folder, peer, *FIRST)
            for at, lines in zip(times, again, strict=True):
                append(folder, peer, *((at + t, event) for t, event in lines))
        return folder

    return write


def test_rounds_and_what_they_cost_count_once(resumed: Callable[..., Path]) -> None:
    for record in load(resumed(SECOND)).peers:
        assert record.rounds.round.tolist() == [1, 2, 3]
        assert record.rounds.bytes_out.sum() == 1110
        assert record.evaluations.round.tolist() == [0, 1, 3]
        assert record.evaluations.accuracy.tolist() == [0.1, 0.2, 0.4]
        assert [line["event"] for line in record.happenings] == ["resumed"]
        assert record.pss_mb.size == 0
        assert (record.fate, record.incarnations) == ("finished", 1)


def test_time_in_which_nobody_trained_is_left_out(resumed: Callable[..., Path]) -> None:
    """The last line is of second 4; who goes on has joined at second 3602, which is 4 again."""
    run = load(resumed(SECOND))
    (record, _) = run.peers
    np.testing.assert_allclose(record.rounds.t - STARTED, [3.0, 5.0, 6.0])
    np.testing.assert_allclose(record.evaluations.t - STARTED, [2.0, 4.0, 6.0])
    summary = summarise(run, measure_curve(run))
    assert (summary.startup_s, summary.wall_s) == pytest.approx((2.0, 6.5))
    assert summary.seconds["train"] == 3.0
    assert summary.bytes_out_total == 2220
    np.testing.assert_allclose(measure_timeline(run).seconds, [2.0, 4.0, 6.0])


def test_a_run_can_be_cut_off_and_resumed_again(resumed: Callable[..., Path]) -> None:
    """The second time in round 2, the third time before anyone had joined."""
    run = load(resumed(begun(Resumed(1)), [(1.0, START), (1.5, Resumed(1))], SECOND))
    (record, _) = run.peers
    assert record.rounds.round.tolist() == [1, 2, 3]
    np.testing.assert_allclose(record.rounds.t - STARTED, [3.0, 5.0, 6.0])
    summary = summarise(run, measure_curve(run))
    assert summary.wall_s == pytest.approx(6.5)
    assert notices(run, summary) == ["resumed after round 1"] * 3


def test_each_peer_may_go_on_after_a_round_of_its_own(
    resumed: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = resumed([])
    for peer, round in ((0, 1), (1, 2)):
        append(folder, peer, *((HOUR + t, event) for t, event in begun(Resumed(round))))
    run = load(folder)
    assert [record.rounds.round.tolist() for record in run.peers] == [[1], [1, 2]]
    said = notices(run, summarise(run, measure_curve(run)))
    assert said[0] == "resumed after rounds 1 to 2, each peer its own"


def test_a_peer_that_came_back_twice_within_a_session_is_still_told(
    resumed: Callable[..., Path],
) -> None:
    run = load(resumed([*begun(Resumed(1)), (3.0, START), *SECOND[3:]]))
    assert [record.incarnations for record in run.peers] == [2, 2]
    said = notices(run, summarise(run, measure_curve(run)))
    assert said[1:] == ["peer 0 was started 2 times", "peer 1 was started 2 times"]
