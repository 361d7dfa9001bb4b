"""Summary and curve against figures worked out by hand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p2p_dml.events import Evaluated, Finished, Joined, RoundDone
from p2p_dml.report.load import load
from p2p_dml.report.summary import curve_csv, measure_curve, summarise, summary_json


def test_curve_of_a_whole_run(write_run: Callable[..., Path]) -> None:
    curve = measure_curve(load(write_run()))
    np.testing.assert_array_equal(curve.round, [1, 3])
    np.testing.assert_allclose(curve.accuracy_mean, [0.5, 0.5])  # .4 .5 .6 | .8 .6 .1
    np.testing.assert_allclose(curve.accuracy_std, [math.sqrt(0.02 / 3), math.sqrt(0.26 / 3)])
    np.testing.assert_allclose(curve.accuracy_min, [0.4, 0.1])
    np.testing.assert_allclose(curve.accuracy_max, [0.6, 0.8])
    np.testing.assert_allclose(curve.loss_mean, 0.5)
    np.testing.assert_allclose(curve.train_loss_mean, 1.0)
    # Models at 0 3 6, then at 1 5 7: mean squared deviations 18/3 and 56/9.
    np.testing.assert_allclose(curve.consensus_distance, [math.sqrt(6), math.sqrt(56 / 9)])
    np.testing.assert_array_equal(curve.bytes_out, [1200, 2400])
    np.testing.assert_allclose(curve.seconds, [21, 41])
    np.testing.assert_array_equal(curve.peers, [3, 3])


def test_summary_of_a_whole_run(write_run: Callable[..., Path]) -> None:
    run = load(write_run())
    summary = json.loads(summary_json(summarise(run, measure_curve(run))))
    accuracy = summary.pop("accuracy")
    assert accuracy == pytest.approx(
        {"mean": 0.5, "std": math.sqrt(0.26 / 3), "min": 0.1, "max": 0.8}
    )
    # .8 .6 .1: the lowest, the middle and the highest are quantiles 0, 1/2 and 1
    assert summary.pop("accuracy_quantiles") == pytest.approx(
        {"p10": 0.2, "p25": 0.35, "p50": 0.6, "p75": 0.7, "p90": 0.76}
    )
    assert summary.pop("consensus_distance") == pytest.approx(math.sqrt(56 / 9))
    assert summary.pop("seconds") == pytest.approx(
        {"train": 4.0, "send": 0.4, "wait": 2.0, "mix": 0.8, "evaluate": 0.0}
    )
    assert summary.pop("best_accuracy") == pytest.approx(0.5)
    assert (summary.pop("best_round"), summary.pop("best_s")) in ((1, 21), (3, 41))  # a tie
    assert summary.pop("wait_share") == pytest.approx(
        {"mean": 0.5 / 1.8, "std": 0.0, "min": 0.5 / 1.8, "max": 0.5 / 1.8}
    )
    assert summary == {
        "strategy": "dpsgd",
        "mode": "run",
        "pace": "synchronous",
        "stragglers": [],
        "clock": "wall",
        "evaluate_on": "all",
        "worst_peer": 2,
        "age_mean": None,
        "version": "0.0",
        "digest": "d1",
        "peers": 3,
        "rounds": 4,
        "seed": 7,
        "params": 10,
        "wall_s": 47.0,
        "startup_s": 4.0,
        "loss_mean": 0.5,
        "train_loss_mean": 1.0,
        "bytes_out_total": 2400,
        "bytes_in_total": 600,
        "pss_mb_median": 31.0,
        "pss_mb_max": 32.0,
        "rss_mb_median": 100.0,
        "rounds_done": {"min": 4, "max": 4},
        "missing_messages": 2,
        "late_messages": 2,
        "rejected": 0,
        "isolated_rounds": 0,
        "peers_finished": 3,
        "peers_stopped": 0,
        "peers_lost": 0,
        "lost": [],
        "exit_code": 0,
    }


def test_a_killed_peer_is_named_and_left_out_of_the_final_figures(
    write_run: Callable[..., Path],
) -> None:
    run = load(write_run(killed=True))
    curve = measure_curve(run)
    summary = json.loads(summary_json(summarise(run, curve)))
    assert summary["accuracy"] == pytest.approx({"mean": 0.7, "std": 0.1, "min": 0.6, "max": 0.8})
    assert summary["worst_peer"] == 1
    assert summary["accuracy_quantiles"]["p10"] == pytest.approx(0.62)
    assert (summary["best_accuracy"], summary["best_round"]) == (pytest.approx(0.7), 3)
    assert summary["consensus_distance"] == pytest.approx(2.0)  # models at 1 and 5
    assert summary["lost"] == [{"peer": 2, "last_round": 1, "exit_code": None, "error": None}]
    assert (summary["peers_finished"], summary["peers_lost"]) == (2, 1)
    assert summary["rounds_done"] == {"min": 2, "max": 4}
    assert (summary["rejected"], summary["isolated_rounds"], summary["exit_code"]) == (1, 1, 1)
    assert summary["bytes_out_total"] == 400 + 800 + 600
    assert summary["seconds"]["train"] == pytest.approx(10 / 3)
    np.testing.assert_array_equal(curve.peers, [3, 2])
    np.testing.assert_array_equal(curve.bytes_out, [1200, 1800])


def test_a_run_without_evaluations(write_run: Callable[..., Path]) -> None:
    run = load(write_run(evaluate=False))
    curve = measure_curve(run)
    summary = json.loads(summary_json(summarise(run, curve)))
    for absent in (
        "accuracy",
        "accuracy_quantiles",
        "worst_peer",
        "best_accuracy",
        "best_round",
        "loss_mean",
        "consensus_distance",
    ):
        assert summary[absent] is None
    assert summary["train_loss_mean"] == 1.0
    assert curve_csv(curve).count("\n") == 1


def test_an_empty_run(tmp_path: Path, write_meta: Callable[..., Path]) -> None:
    run = load(write_meta(tmp_path))
    summary = json.loads(summary_json(summarise(run, measure_curve(run))))
    assert (summary["wall_s"], summary["startup_s"], summary["pss_mb_median"]) == (None,) * 3
    assert summary["rounds_done"] == {"min": 0, "max": 0}
    assert (summary["peers_lost"], summary["bytes_out_total"]) == (3, 0)


def test_unknown_figures_are_null_and_empty_cells(
    tmp_path: Path, write_meta: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_meta(tmp_path, peers=1)
    append(
        folder,
        0,
        (1, Joined(after_s=1.0)),
        (2, RoundDone(round=0, loss=None, bytes_out=0, bytes_in=0, neighbours=0)),
        (3, Evaluated(round=0, accuracy=None, loss=None, seconds=0.1, sketch="")),
        (4, Finished(round=0, exit_code=0)),
    )
    run = load(folder)
    curve = measure_curve(run)
    (row,) = csv.DictReader(curve_csv(curve).splitlines())
    assert (row["round"], row["accuracy_mean"], row["consensus_distance"]) == ("0", "", "")
    assert (row["bytes_out"], row["seconds"], row["peers"]) == ("0", "3", "1")
    assert json.loads(summary_json(summarise(run, curve)))["train_loss_mean"] is None


def test_a_damaged_sketch_is_left_out_of_the_distance(
    write_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_run()
    damaged = Evaluated(round=3, accuracy=0.8, loss=0.5, seconds=0.1, sketch="no sketch")
    append(folder, 0, (59, damaged))
    distance = measure_curve(load(folder)).consensus_distance
    np.testing.assert_allclose(distance, [math.sqrt(6), 1.0])  # at 5 and 7, in round 3


def test_curve_csv_begins_with_the_promised_columns(write_run: Callable[..., Path]) -> None:
    head, first, _ = curve_csv(measure_curve(load(write_run()))).splitlines()
    assert head.startswith(
        "round,accuracy_mean,accuracy_std,loss_mean,consensus_distance,bytes_out,seconds,"
    )
    assert first.startswith("1,0.5,0.081649658,0.5,2.4494897,1200,21,")


def test_the_best_round_is_one_that_all_remaining_peers_evaluated(
    write_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_run()
    fastest = Evaluated(round=5, accuracy=1.0, loss=0.1, seconds=0.1, sketch="")
    append(folder, 0, (60, fastest), (61, Finished(round=5, exit_code=5)))
    run = load(folder)
    summary = summarise(run, measure_curve(run))
    assert summary.best_round in (1, 3)
    assert (summary.peers_stopped, summary.exit_code) == (1, 5)


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ((0, 0, 0), 0),
        ((0, 5, 0), 5),
        ((4, 5, 0), 4),
        ((4, 3, 2), 2),
        ((1, 2, 0), 1),
        ((0, 99, 0), 1),
    ],
)
def test_the_exit_code_is_the_worst_peers(
    tmp_path: Path,
    write_meta: Callable[..., Path],
    append: Callable[..., None],
    codes: tuple[int, ...],
    worst: int,
) -> None:
    folder = write_meta(tmp_path)
    for peer, code in enumerate(codes):
        append(folder, peer, (1, Finished(round=0, exit_code=code, error="why" if code else None)))
    run = load(folder)
    assert summarise(run, measure_curve(run)).exit_code == worst
