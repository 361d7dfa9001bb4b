"""Accuracy over time against figures worked out by hand, of peers that differ in pace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p2p_dml import report
from p2p_dml.events import Evaluated, Finished, RoundDone
from p2p_dml.report._timeline import measure_timeline
from p2p_dml.report.load import load
from p2p_dml.report.summary import curve_csv


def evaluated(round: int, accuracy: float) -> Evaluated:
    return Evaluated(round=round, accuracy=accuracy, loss=0.5, seconds=0.1, sketch="")


def done(round: int, wait_s: float, age: float | None) -> RoundDone:
    seconds = {"train": 4.0 - wait_s, "wait": wait_s}
    return RoundDone(
        round=round, loss=1.0, bytes_out=0, bytes_in=0, neighbours=1, age=age, seconds=seconds
    )


@pytest.fixture
def uneven(
    tmp_path: Path, write_meta: Callable[..., Path], append: Callable[..., None]
) -> Callable[[bool], Path]:
    """Peer 0 does three rounds of 4 s while peer 1, the straggler, does one; it may be lost."""

    def write(lost: bool) -> Path:
        folder = write_meta(
            tmp_path / "run", peers=2, pace="asynchronous", stragglers=[1], clock="virtual"
        )
        first = [(0.0, evaluated(0, 0.1))]
        rounds = [
            (4.0 * r, event)
            for r in (1, 2, 3)
            for event in (done(r, 1.0, r - 1.0), evaluated(r, 0.2 * r))
        ]
        append(folder, 0, *first, *rounds, (13.0, Finished(round=3, exit_code=0)))
        slow = [(1.0, evaluated(0, 0.3)), (10.0, done(1, 0.0, None)), (10.0, evaluated(1, 0.9))]
        append(folder, 1, *slow, *([] if lost else [(14.0, Finished(round=1, exit_code=0))]))
        return folder

    return write


def test_each_peer_counts_with_its_last_evaluation(uneven: Callable[[bool], Path]) -> None:
    timeline = measure_timeline(load(uneven(False)))
    np.testing.assert_allclose(timeline.seconds, [1, 4, 8, 10, 12])
    np.testing.assert_allclose(timeline.accuracy_mean, [0.2, 0.25, 0.35, 0.65, 0.75])
    np.testing.assert_allclose(timeline.accuracy_min, [0.1, 0.2, 0.3, 0.4, 0.6])
    np.testing.assert_allclose(timeline.accuracy_max, [0.3, 0.3, 0.4, 0.9, 0.9])
    np.testing.assert_allclose(timeline.accuracy_std, [0.1, 0.05, 0.05, 0.25, 0.15])
    np.testing.assert_allclose(timeline.rounds_mean, [0, 0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(timeline.peers, 2)


def test_a_lost_peer_counts_until_it_was_lost(uneven: Callable[[bool], Path]) -> None:
    timeline = measure_timeline(load(uneven(True)))
    np.testing.assert_allclose(timeline.accuracy_mean, [0.2, 0.25, 0.35, 0.65, 0.6])
    np.testing.assert_array_equal(timeline.peers, [2, 2, 2, 2, 1])


def test_a_run_without_evaluations_has_no_timeline(write_run: Callable[..., Path]) -> None:
    timeline = measure_timeline(load(write_run(evaluate=False)))
    assert timeline.seconds.size == 0
    assert curve_csv(timeline) == (
        "seconds,accuracy_mean,accuracy_std,accuracy_min,accuracy_max,rounds_mean,peers\n"
    )


def test_long_runs_are_thinned(
    tmp_path: Path, write_meta: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_meta(tmp_path, peers=1)
    append(folder, 0, *[(float(t), evaluated(t, 0.5)) for t in range(1, 3001)])
    seconds = measure_timeline(load(folder)).seconds
    assert (len(seconds), seconds[0], seconds[-1]) == (1000, 1, 3000)
    assert np.diff(seconds).max() <= 4


def test_the_summary_of_an_asynchronous_run(uneven: Callable[[bool], Path]) -> None:
    folder = uneven(False)
    report.write(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["pace"], summary["stragglers"]) == ("asynchronous", [1])
    assert summary["age_mean"] == pytest.approx(1.0)  # 0 1 2
    assert summary["wait_share"] == pytest.approx(
        {"mean": 0.125, "std": 0.125, "min": 0.0, "max": 0.25}
    )
    # Round 3 is one that the slow peer never saw: the best is an instant, not a round.
    assert summary["best_round"] is None
    assert (summary["best_accuracy"], summary["best_s"]) == pytest.approx((0.75, 12.0))
    page = (folder / "report.html").read_text()
    for said in (
        "asynchronous",
        "1 straggler, models mixed 1.00 rounds old",
        "best 75.0 % after 12.0 s",
        "by virtual clocks",
        "waiting 25.0 % at most",
        "slow on purpose, as [stragglers] says: peers 1",
    ):
        assert said in page
