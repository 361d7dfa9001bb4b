"""What a sweep writes, from run folders made by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from p2p_dml.sweep import Plan
from p2p_dml.sweep._metrics import read_record
from p2p_dml.sweep._values import Case
from p2p_dml.sweep.results import _over_seeds, _timeline_over_seeds, write

PlanOf = Callable[[Mapping[str, object]], Plan]
Finish = Callable[[Path, Case, Sequence[float]], None]
PNG = b"\x89PNG\r\n\x1a\n"

CURVES = {
    ("dpsgd", 0): [0.1, 0.5, 0.8],
    ("dpsgd", 1): [0.2, 0.6, 0.6],
    ("local", 0): [0.1, 0.3, 0.4],
    ("local", 1): [0.2, 0.6, 0.5],
}
TABLES: Mapping[str, object] = {
    "grid": {"strategy": ["dpsgd", "local"]},
    "seeds": [0, 1],
    "metrics": {"threshold": 0.75, "reference": {"strategy": "dpsgd"}, "targets": [0.5]},
    "table": {"metric": ["best_accuracy", "rounds_to_converge"]},
}


@pytest.fixture
def plan(plan_of: PlanOf) -> Plan:
    return plan_of(TABLES)


@pytest.fixture
def out(plan: Plan, tmp_path: Path, finish: Finish) -> Path:
    """The folder of a sweep whose last case has no result."""
    for case in plan.cases[:-1]:
        finish(tmp_path / "out", case, CURVES[case.labels["strategy"], case.seed])
    return tmp_path / "out"


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_a_row_per_case_and_seed(plan: Plan, out: Path) -> None:
    write(plan, out, {plan.cases[-1].digest: "lost"})
    rows = _rows(out)
    assert [(row["strategy"], row["seed"], row["state"]) for row in rows] == [
        ("dpsgd", "0", "done"),
        ("local", "0", "done"),
        ("dpsgd", "1", "done"),
        ("local", "1", "failed"),
    ]
    # Converged: 0.75 of what D-PSGD had at best with the same seed, 0.6 and 0.45.
    assert [row["rounds_to_converge"] for row in rows] == ["2", "", "1", ""]
    assert [row["best_accuracy"] for row in rows] == ["0.8", "0.4", "0.6", ""]
    assert [row["rounds_to_50"] for row in rows] == ["1", "", "1", ""]
    assert [row["bytes_to_50"] for row in rows] == ["100", "", "100", ""]
    assert [row["case"] for row in rows] == [case.digest for case in plan.cases]


def test_an_open_case_is_not_a_failed_one(plan: Plan, out: Path) -> None:
    write(plan, out, {})
    assert _rows(out)[-1]["state"] == "open"


def test_the_tables_say_what_they_mean(plan: Plan, out: Path) -> None:
    text = write(plan, out, {plan.cases[-1].digest: "peer 0 is lost"})
    assert (out / "tables.md").read_text(encoding="utf-8") == text
    assert "3 of 4 cases finished." in text
    assert "over the seeds 0, 1" in text
    assert "75 % of the best of the case with strategy = dpsgd" in text
    assert "| dpsgd | 70.0 ± 14.1 | 1.5 ± 0.7 |" in text
    assert "| local | 40.0 | – |" in text
    assert "- strategy = local, seed = 1: peer 0 is lost" in text


def test_its_own_best_is_the_reference_by_default(
    plan_of: PlanOf, tmp_path: Path, finish: Finish
) -> None:
    plan = plan_of({"grid": {"strategy": ["local"]}, "table": {"metric": "rounds_to_converge"}})
    finish(tmp_path / "out", plan.cases[0], [0.0, 0.4, 0.398, 0.3])
    text = write(plan, tmp_path / "out", {})
    assert "99 % of its own best" in text
    assert "| local | 1.0 |" in text


def test_a_picture_for_each_group_of_cells(plan_of: PlanOf, tmp_path: Path, finish: Finish) -> None:
    grid = {"train.lr": [0.5, 0.25], "strategy": ["dpsgd", "local"]}
    plan = plan_of({"grid": grid, "table": {"rows": ["strategy"], "columns": ["train.lr"]}})
    for case in plan.cases[:2]:
        finish(tmp_path / "out", case, [0.1, 0.5])
    write(plan, tmp_path / "out", {})
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out" / "plots").iterdir()}
    assert set(pictures) == {
        f"01-0.5-accuracy-over-{what}.png" for what in ("rounds", "bytes", "seconds")
    }
    assert all(content.startswith(PNG) for content in pictures.values())


def test_nothing_finished_is_said(plan: Plan, tmp_path: Path) -> None:
    text = write(plan, tmp_path / "out", {})
    assert "0 of 4 cases finished." in text
    assert "No case of this table is finished." in text
    assert not (tmp_path / "out" / "plots").exists()


def test_mean_and_spread_over_seeds(
    tmp_path: Path, write_run: Callable[[Path, Sequence[float]], None]
) -> None:
    """By hand, over the rounds that both evaluated; the deviation is the sample's."""
    write_run(tmp_path / "a", [0.25, 0.5, 1.0])
    write_run(tmp_path / "b", [0.75, 0.5])
    one, other = (read_record(tmp_path / name).curve for name in "ab")
    both = _over_seeds([one, other])
    assert both.round.tolist() == [0, 1]
    assert both.accuracy_mean.tolist() == [0.5, 0.5]
    assert both.accuracy_std.tolist() == pytest.approx([0.5**0.5 / 2, 0])
    assert both.accuracy_min.tolist() == [0.25, 0.5]
    assert both.accuracy_max.tolist() == [0.75, 0.5]
    assert both.bytes_out.tolist() == [0, 100]
    assert both.seconds.tolist() == [0, 2]
    alone = _over_seeds([one])
    assert np.array_equal(alone.accuracy_mean, one.accuracy_mean)
    assert not alone.accuracy_std.any()


def test_time_over_seeds_holds_what_was_last_known(
    tmp_path: Path, write_run: Callable[[Path, Sequence[float]], None]
) -> None:
    """By hand: one seed is evaluated at 1, 3 and 5 s, the other at 2 s and 4 s."""
    write_run(tmp_path / "a", [0.25, 0.5, 1.0])
    write_run(tmp_path / "b", [0.75, 0.25])
    one, other = (read_record(tmp_path / name).timeline for name in "ab")
    both = _timeline_over_seeds([one, replace(other, seconds=np.array([2.0, 4.0]))])
    assert both.seconds.tolist() == [2, 3, 4, 5]
    assert both.accuracy_mean.tolist() == [0.5, 0.625, 0.375, 0.625]
    assert both.accuracy_min.tolist() == [0.25, 0.5, 0.25, 0.25]
    assert both.rounds_mean.tolist() == [0, 0.5, 1, 1.5]
    assert both.peers.tolist() == [3, 3, 3, 3]
    alone = _timeline_over_seeds([one])
    assert np.array_equal(alone.accuracy_mean, one.accuracy_mean)
    assert not alone.accuracy_std.any()
