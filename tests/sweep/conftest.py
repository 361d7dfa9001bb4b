"""Sweep files as tables, and run folders as a finished case leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import tomli_w

from p2p_dml import sweep
from p2p_dml.sweep import Plan
from p2p_dml.sweep._folder import mark_finished, prepare, run_folder
from p2p_dml.sweep._values import Case

BASE: Mapping[str, object] = {"peers": 3, "rounds": 4, "strategy": "dpsgd", "links": "complete"}
COLUMNS = (
    "round,accuracy_mean,accuracy_std,loss_mean,consensus_distance,bytes_out,seconds,"
    "accuracy_min,accuracy_max,train_loss_mean,peers"
)
TIMELINE_COLUMNS = "seconds,accuracy_mean,accuracy_std,accuracy_min,accuracy_max,rounds_mean,peers"

PlanOf = Callable[[Mapping[str, object]], Plan]
Finish = Callable[[Path, Case, Sequence[float]], None]


@pytest.fixture
def plan_of(tmp_path: Path) -> PlanOf:
    """Write a sweep file with a small base, unless it has its own, and read it."""

    def read(tables: Mapping[str, object]) -> Plan:
        file = tmp_path / "sweep.toml"
        file.write_text(tomli_w.dumps({"base": BASE, **tables}), encoding="utf-8")
        return sweep.read(file)

    return read


def curve_text(accuracies: Sequence[float]) -> str:
    """A `curve.csv` with an evaluation after each round, 100 bytes and 2 s each."""
    rows = [f"{r},{a},0.5,1.5,,{100 * r},{2 * r},0,1,,3" for r, a in enumerate(accuracies)]
    return "\n".join([COLUMNS, *rows]) + "\n"


def timeline_text(accuracies: Sequence[float]) -> str:
    """The `timeline.csv` that goes with it: all had joined after 1 s."""
    rows = [f"{2 * r + 1},{a},0.5,0,1,{r},3" for r, a in enumerate(accuracies)]
    return "\n".join([TIMELINE_COLUMNS, *rows]) + "\n"


def summary_of(accuracies: Sequence[float]) -> dict[str, object]:
    """The part of a `summary.json` that goes with the curve."""
    rounds = len(accuracies) - 1
    return {
        "pace": "synchronous",
        "rounds": rounds,
        "rounds_done": {"min": rounds, "max": rounds},
        "accuracy": {"mean": accuracies[-1], "min": 0.25},
        "accuracy_quantiles": {"p10": 0.375},
        "evaluate_on": "all",
        "wall_s": 2.0 * rounds + 1,
        "startup_s": 1.0,
        "bytes_out_total": 100 * rounds,
    }


@pytest.fixture
def write_run() -> Callable[[Path, Sequence[float]], None]:
    """Make a run folder whose mean accuracy was as given, after rounds 0, 1, …"""

    def write(run: Path, accuracies: Sequence[float]) -> None:
        run.mkdir(parents=True)
        (run / "curve.csv").write_text(curve_text(accuracies), encoding="utf-8")
        (run / "reported.csv").write_text("round\n1\n", encoding="utf-8")
        (run / "timeline.csv").write_text(timeline_text(accuracies), encoding="utf-8")
        (run / "summary.json").write_text(json.dumps(summary_of(accuracies)), encoding="utf-8")

    return write


@pytest.fixture
def finish(write_run: Callable[[Path, Sequence[float]], None]) -> Finish:
    """Make the folder of a finished case."""

    def act(out: Path, case: Case, accuracies: Sequence[float]) -> None:
        path = prepare(out, case)
        write_run(run_folder(out, case), accuracies)
        mark_finished(path, case, 1.0)

    return act
