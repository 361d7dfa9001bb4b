"""The sweeps of examples/hyperprism can be run, as far as their data are on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from p2p_dml import sweep
from p2p_dml.config import RunConfig
from p2p_dml.data.fetch import available
from p2p_dml.strategies import STRATEGIES

FOLDER = Path(__file__).parents[1] / "examples" / "hyperprism"
FILES = sorted(FOLDER.glob("*.toml"))
SWEEPS = [path for path in FILES if path.name != "base.toml"]


def test_the_tables_of_the_paper_are_here() -> None:
    names = {path.stem for path in SWEEPS}
    assert names >= {"table2", "table3", "table4", "degree", "time"}


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
