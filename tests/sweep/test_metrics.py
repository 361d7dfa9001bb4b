"""Figures of a case, by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from p2p_dml.sweep._metrics import Figures, Record, figures, in_words, read_record, unit
from p2p_dml.sweep._values import Measures

WriteRun = Callable[[Path, Sequence[float]], None]
CURVE = [0.125, 0.5, 0.75, 0.625, 0.75]


@pytest.fixture
def record(tmp_path: Path, write_run: WriteRun) -> Record:
    write_run(tmp_path / "run", CURVE)
    return read_record(tmp_path / "run")


def test_figures_by_hand(record: Record) -> None:
    measures = Measures(threshold=0.8, targets=(0.5, 0.7, 0.9))
    assert figures(record, record, measures) == {
        "best_accuracy": 0.75,
        "best_round": 2,
        "final_accuracy": 0.75,
        "mean_accuracy": pytest.approx((0.5 + 0.75 + 0.625 + 0.75) / 4),
        "rounds_to_converge": 2,  # the first to reach 0.8 * 0.75 = 0.6
        "bytes_to_converge": 200,
        "seconds_per_round": 2.0,
        "wall_s": 9.0,
        "bytes_total": 400,
        "rounds_to_50": 1,
        "bytes_to_50": 100,
        "rounds_to_70": 2,
        "bytes_to_70": 200,
        "rounds_to_90": None,
        "bytes_to_90": None,
    }


def test_every_figure_has_a_name_and_every_name_a_figure(record: Record) -> None:
    measures = Measures(targets=(0.6, 0.125))
    assert tuple(figures(record, record, measures)) == measures.names
    assert "rounds_to_12.5" in measures.names


@pytest.mark.parametrize(
    ("window", "mean"),
    [((0, 1), 0.3125), ((2, 3), 0.6875), ((4, 9), 0.75), ((5, 9), None), (None, 0.65625)],
)
def test_mean_accuracy_is_over_the_window(
    record: Record, window: tuple[int, int] | None, mean: float | None
) -> None:
    found = figures(record, record, Measures(window=window))
    assert found["mean_accuracy"] == mean


@pytest.mark.parametrize(
    ("other", "threshold", "rounds"),
    [([0.0, 0.5], 1.0, 1), ([0.0, 1.0], 1.0, None), ([0.0, 1.0], 0.75, 2), ([0.125, 0.0], 1.0, 0)],
    ids=["worse", "better", "share of better", "at once"],
)
def test_convergence_is_measured_by_the_reference(
    record: Record, tmp_path: Path, write_run: WriteRun,
    other: list[float], threshold: float, rounds: int | None,
) -> None:  # fmt: skip
    write_run(tmp_path / "other", other)
    found = figures(record, read_record(tmp_path / "other"), Measures(threshold=threshold))
    assert found["rounds_to_converge"] == rounds


def test_without_reference_there_is_no_convergence(record: Record) -> None:
    found = figures(record, None, Measures())
    assert found["rounds_to_converge"] is None
    assert found["bytes_to_converge"] is None
    assert found["best_accuracy"] == 0.75


def test_unknown_figures_stay_unknown(tmp_path: Path, write_run: WriteRun) -> None:
    """A training function of the user's may have no accuracy; a run no evaluation."""
    write_run(tmp_path / "run", [0.5])
    head = (tmp_path / "run" / "curve.csv").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "run" / "curve.csv").write_text(f"{head}\n0,,,,,0,1,,,,3\n", encoding="utf-8")
    summary = {"rounds": 1, "accuracy": None, "wall_s": None, "startup_s": None}
    text = json.dumps({**summary, "bytes_out_total": 0})
    (tmp_path / "run" / "summary.json").write_text(text, encoding="utf-8")
    empty = read_record(tmp_path / "run")
    found: Figures = figures(empty, empty, Measures(targets=(0.5,)))
    assert {name for name, value in found.items() if value is not None} == {"bytes_total"}


@pytest.mark.parametrize(
    ("metric", "value", "text", "of"),
    [
        ("best_accuracy", 0.8936, "89.4", "%"),
        ("rounds_to_80", 12.25, "12.2", ""),
        ("bytes_to_80", 1_234_567.0, "1.23 MB", ""),
        ("seconds_per_round", 0.12345, "0.123", "s"),
        ("wall_s", 12.0, "12.0", "s"),
    ],
)
def test_numbers_in_words(metric: str, value: float, text: str, of: str) -> None:
    assert in_words(metric, value) == text
    assert unit(metric) == of
