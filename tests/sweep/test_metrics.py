"""Figures of a case, by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from p2p_dml.sweep._metrics import Figures, Record, figures, in_words, read_record, unit
from p2p_dml.sweep._values import Measures

WriteRun = Callable[[Path, Sequence[float]], None]
CURVE = [0.125, 0.5, 0.75, 0.625, 0.75]


def _change(run: Path, **fields: object) -> None:
    """Change fields of a summary.json."""
    path = run / "summary.json"
    summary: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**summary, **fields}), encoding="utf-8")


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
        "worst_accuracy": 0.25,
        "p10_accuracy": 0.375,
        "rounds_to_converge": 2,  # the first to reach 0.8 * 0.75 = 0.6
        "bytes_to_converge": 200,
        "seconds_per_round": 2.0,
        "wall_s": 9.0,
        "bytes_total": 400,
        "rounds_to_50": 1,
        "bytes_to_50": 100,
        "seconds_to_50": 2.0,  # at 3 s, of which 1 s is start-up
        "rounds_to_70": 2,
        "bytes_to_70": 200,
        "seconds_to_70": 4.0,
        "rounds_to_90": None,
        "bytes_to_90": None,
        "seconds_to_90": None,
    }


def test_every_figure_has_a_name_and_every_name_a_figure(record: Record) -> None:
    measures = Measures(targets=(0.6, 0.125), small=0.01, reported=("bytes/coded",))
    assert tuple(figures(record, record, measures)) == measures.names
    assert {"rounds_to_12.5", "seconds_to_60", "small_share"} < set(measures.names)
    assert "small_share" not in Measures().names


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
    ("window", "name", "mean", "last"),
    [
        (None, "bytes/coded", (8.0 + 2.0) / 2, 2.0),
        ((2, 4), "bytes/coded", 2.0, 2.0),
        (None, "share/empty", 0.5, 0.5),
        ((4, 4), "share/empty", None, 0.5),
        (None, "of another strategy", None, None),
    ],
)
def test_what_strategies_report(
    tmp_path: Path, write_run: WriteRun, window: tuple[int, int] | None, name: str,
    mean: float | None, last: float | None,
) -> None:  # fmt: skip
    write_run(tmp_path / "run", CURVE)
    rows = "round,bytes/coded,share/empty\n1,8.0,\n2,,\n3,2.0,0.5\n4,,\n"
    (tmp_path / "run" / "reported.csv").write_text(rows, encoding="utf-8")
    record = read_record(tmp_path / "run")
    found = figures(record, None, Measures(window=window, reported=(name,)))
    assert found[name] == mean
    assert found[f"final {name}"] == last


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
    head = (tmp_path / "run" / "timeline.csv").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "run" / "timeline.csv").write_text(f"{head}\n", encoding="utf-8")
    _change(tmp_path / "run", accuracy=None, accuracy_quantiles=None, wall_s=None, startup_s=None)
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
        ("seconds_to_80", 18.7, "18.7", "s"),
        ("wall_s", 12.0, "12.0", "s"),
        ("small_share", 0.0121, "1.21", "%"),
        ("final share/empty", 0.0121, "1.2", "%"),
        ("bytes/coded", 1234.5, "1.23 kB", ""),
    ],
)
def test_numbers_in_words(metric: str, value: float, text: str, of: str) -> None:
    assert in_words(metric, value) == text
    assert unit(metric) == of


# ---- time ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "seconds"), [(4, 2.0), (2, 4.0), (0, None)], ids=["all", "half", "none"]
)
def test_time_per_round_is_over_the_rounds_that_were_done(
    tmp_path: Path, write_run: WriteRun, done: int, seconds: float | None
) -> None:
    """`duration_s` ends a run before its configured number of rounds: 8 s here, after 1 s."""
    write_run(tmp_path / "run", CURVE)
    _change(tmp_path / "run", rounds=1000, rounds_done={"min": 0, "max": done})
    record = read_record(tmp_path / "run")
    assert figures(record, None, Measures())["seconds_per_round"] == seconds


def test_rounds_that_few_peers_did_do_not_count(tmp_path: Path, write_run: WriteRun) -> None:
    """When the time is over some peers have done a round more than others."""
    write_run(tmp_path / "run", [0.25, 0.5])
    with (tmp_path / "run" / "curve.csv").open("a", encoding="utf-8") as curve:
        curve.write("2,1.0,0,1.5,,150,4,1,1,,1\n")  # of three peers one
    record = read_record(tmp_path / "run")
    found = figures(record, record, Measures(targets=(0.75,), window=(1, 2)))
    assert (found["best_accuracy"], found["best_round"]) == (0.5, 1)
    assert (found["mean_accuracy"], found["rounds_to_75"]) == (0.5, None)


TIMELINE = """\
seconds,accuracy_mean,accuracy_std,accuracy_min,accuracy_max,rounds_mean,peers
3,0.25,0,0,1,0.0,4
4,0.5,0,0,1,1.75,4
6,0.75,0,0,1,3.5,4
9,0.625,0,0,1,5.25,4
"""


@pytest.fixture
def free(tmp_path: Path, write_run: WriteRun) -> Record:
    """An asynchronous run. By rounds it looks as good as its fastest peer was late in the run."""
    write_run(tmp_path / "free", [0.25, 0.9, 0.95, 1.0])
    (tmp_path / "free" / "timeline.csv").write_text(TIMELINE, encoding="utf-8")
    _change(tmp_path / "free", pace="asynchronous", rounds=1000, startup_s=2.5)
    return read_record(tmp_path / "free")


def test_an_asynchronous_run_is_measured_at_instants(free: Record) -> None:
    found = figures(free, free, Measures(threshold=0.6, targets=(0.5, 0.7, 0.9)))
    at = {name: value for name, value in found.items() if "to_" in name or "best" in name}
    assert at == {
        "best_accuracy": 0.75,
        "best_round": 3.5,  # the mean number of rounds done by then
        "rounds_to_converge": 1.75,
        "bytes_to_converge": None,
        "rounds_to_50": 1.75,
        "bytes_to_50": None,
        "seconds_to_50": 1.5,
        "rounds_to_70": 3.5,
        "bytes_to_70": None,
        "seconds_to_70": 3.5,
        "rounds_to_90": None,
        "bytes_to_90": None,
        "seconds_to_90": None,
    }


@pytest.mark.parametrize(
    ("window", "mean"), [(None, 0.625), ((0, 2), 0.375), ((3, 4), 0.75), ((6, 9), None)]
)
def test_mean_accuracy_of_an_asynchronous_run_is_over_instants(
    free: Record, window: tuple[int, int] | None, mean: float | None
) -> None:
    assert figures(free, None, Measures(window=window))["mean_accuracy"] == mean
