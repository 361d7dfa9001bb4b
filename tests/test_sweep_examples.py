"""The sweeps among the examples can be run, as far as their data are on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from p2p_dml import sweep
from p2p_dml.config import RunConfig
from p2p_dml.data.fetch import available
from p2p_dml.strategies import STRATEGIES

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDER = EXAMPLES / "hyperprism"
FILES = [
    *FOLDER.glob("*.toml"),
    *EXAMPLES.glob("asynchronous/*.toml"),
    *EXAMPLES.glob("mcepl/*.toml"),
]
SWEEPS = sorted(path for path in FILES if path.name not in ("base.toml", "mnist.toml"))


def test_the_tables_of_the_paper_are_here() -> None:
    names = {path.stem for path in SWEEPS}
    assert names >= {
        "table2",
        "table3",
        "table4",
        "degree",
        "near_zero",
        "cnn",
        "variants",
        "time",
        "wall_time",
    }


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_has_three_seeds_and_known_strategies(file: Path) -> None:
    plan = sweep.read(file)
    assert {case.seed for case in plan.cases} == {0, 1, 2}
    assert {case.config.strategy["name"] for case in plan.cases} <= set(STRATEGIES)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_its_cases_can_be_built(file: Path) -> None:
    plan = sweep.read(file)
    here = {row.name for row in available() if row.place}
    cases = [case for case in plan.cases if case.seed == 0 and case.config.data["name"] in here]
    if not cases:
        pytest.skip("none of its data sets is on this machine")
    sweep.check(replace(plan, cases=tuple(cases)))


@pytest.mark.parametrize(
    ("file", "value_of", "values"),
    [
        ("table2", lambda run: run.partition["alpha"], {0.1, 1.0, 10.0}),
        ("table3", lambda run: run.links["density"], {0.2, 0.5, 0.8}),
        ("table4", lambda run: run.peers, {20, 50, 100}),
    ],
    ids=["table2", "table3", "table4"],
)
def test_a_table_varies_what_the_paper_varies(
    file: str, value_of: Callable[[RunConfig], object], values: set[object]
) -> None:
    runs = [case.config for case in sweep.read(FOLDER / f"{file}.toml").cases]
    assert len(runs) == 3 * 2 * 5 * 3
    assert {run.strategy["name"] for run in runs} == {
        "swarm", "dpsgd", "mudag", "adom", "hyperprism",
    }  # fmt: skip
    tasks = {(run.model["name"], run.data["name"]) for run in runs}
    assert tasks == {("softmax", "mnist"), ("lenet", "cifar10")}
    # SwarmSGD has pairs of its own at every density.
    assert {value_of(run) for run in runs if run.strategy["name"] != "swarm"} == values


def test_mcepl_is_compared_in_the_setting_of_the_paper() -> None:
    runs = [case.config for case in sweep.read(EXAMPLES / "mcepl" / "compare.toml").cases]
    assert {run.strategy["name"] for run in runs} == {
        "mcepl", "supermask", "fedpm", "dispfl", "magnitude", "dpsgd", "local",
    }  # fmt: skip
    assert {run.partition["classes"] for run in runs} == {3, 4, 5}
    assert {(run.peers, run.rounds, run.evaluate_on) for run in runs} == {(20, 400, "own")}


@pytest.mark.parametrize("table", ["table2", "table3", "table4"])
@pytest.mark.parametrize("task", ["softmax on MNIST", "CNN on CIFAR-10"])
def test_one_task_can_be_run_alone(table: str, task: str) -> None:
    plan = sweep.read(FOLDER / f"{table}.toml", only=[f"task={task}"])
    assert len(plan.chosen) == len(plan.cases) // 2
    assert {case.labels["task"] for case in plan.chosen} == {task}


def test_cifar_can_be_run_at_twenty_peers() -> None:
    only = ["task=CNN on CIFAR-10"]
    small = sweep.read(FOLDER / "table2.toml", ["peers=20"], only)
    grid = sweep.read(FOLDER / "table4.toml", only=[*only, "peers=20"])
    for plan, num_cells in ((small, 3), (grid, 1)):
        assert len(plan.chosen) == num_cells * 5 * 3
        assert {case.config.peers for case in plan.chosen} == {20}


def test_near_zero_is_measured_as_in_the_paper() -> None:
    plan = sweep.read(FOLDER / "near_zero.toml")
    assert plan.measures.small == 0.01
    assert {case.config.rounds for case in plan.cases} == {80}
    assert {case.config.strategy["degree"] for case in plan.cases} == {1.0, 9.0, 15.0, "learned"}


def test_the_fleet_is_the_same_at_both_paces() -> None:
    runs = [case.config for case in sweep.read(EXAMPLES / "asynchronous" / "wall_time.toml").cases]
    assert {run.pace["name"] for run in runs} == {"synchronous", "asynchronous"}
    assert {(run.stragglers, run.duration_s) for run in runs} == {
        (runs[0].stragglers, runs[0].duration_s)
    }
    assert runs[0].stragglers.is_emulated
