"""From a sweep file to cases: what each one is, and every way to get it wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from p2p_dml import sweep
from p2p_dml.errors import ConfigError
from p2p_dml.sweep import Plan

PlanOf = Callable[[Mapping[str, object]], Plan]
GRID: Mapping[str, object] = {"partition.alpha": [0.5, 1.0], "strategy": ["dpsgd", "local"]}
DIRICHLET = {"name": "dirichlet", "alpha": 0.1}
BASE: Mapping[str, object] = {
    "peers": 3,
    "rounds": 4,
    "strategy": "dpsgd",
    "links": "complete",
    "partition": DIRICHLET,
    "train": {"lr": 0.5, "steps": 2},
}


def test_the_grid_is_multiplied_out_seed_by_seed(plan_of: PlanOf) -> None:
    plan = plan_of({"base": BASE, "grid": GRID, "seeds": [7, 3]})
    assert [case.title for case in plan.cases] == [
        f"partition.alpha = {alpha}, strategy = {strategy}, seed = {seed}"
        for seed in (7, 3)
        for alpha in (0.5, 1.0)
        for strategy in ("dpsgd", "local")
    ]
    last = plan.cases[-1].config
    assert (last.partition, last.strategy, last.seed) == (
        {"name": "dirichlet", "alpha": 1.0},
        {"name": "local"},
        3,
    )
    assert plan.axes == {"partition.alpha": ("0.5", "1.0"), "strategy": ("dpsgd", "local")}


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"peers": [5]}, {"peers": 5}),
        ({"train": {"lr": [0.25]}}, {"train": {"lr": 0.25, "steps": 2}}),
        ({"links": ["ring"]}, {"links": {"kind": "ring"}}),
        (
            {"strategy": ["hyperprism"], "strategy.degree": [3.0]},
            {"strategy": {"name": "hyperprism", "degree": 3.0}},
        ),
        (
            {"strategy": [{"name": "hyperprism", "degree": 5.0}], "strategy.degree": [3.0]},
            {"strategy": {"name": "hyperprism", "degree": 3.0}},
        ),
        ({"peers": [{"label": "five", "value": 5}]}, {"peers": 5}),
        (
            {"task": [{"label": "a", "set": {"peers": 5, "train": {"lr": 0.25}}}]},
            {"peers": 5, "train": {"lr": 0.25, "steps": 2}},
        ),
        (
            {"task": [{"label": "a", "set": {"partition": {"name": "iid"}}}]},
            {"partition": {"name": "iid"}},
        ),
        ({"task": [{"label": "a", "set": {"train.lr": 0.1}}], "train.lr": [9.0]},
         {"train": {"lr": 9.0, "steps": 2}}),
    ],
    ids=[
        "key", "unquoted key", "short form", "below a short form", "below a table", "named value",
        "several keys", "a choice is replaced", "later axes win",
    ],
)  # fmt: skip
def test_what_a_value_sets(
    plan_of: PlanOf, grid: Mapping[str, object], expected: Mapping[str, Any]
) -> None:
    (case,) = plan_of({"base": BASE, "grid": grid}).cases
    assert {key: getattr(case.config, key) for key in expected} == expected


def test_a_value_is_the_same_in_every_case(plan_of: PlanOf) -> None:
    """Setting a key below a table of the grid must not leak into the next case."""
    tables = {
        "grid": {"strategy": [{"name": "hyperprism", "degree": 2.0}]},
        "cases": [{"strategy": [{"label": "x", "name": "hyperprism"}], "strategy.degree": 7.0}],
        "adjust": [{"when": {"strategy.degree": ""}, "set": {"strategy.p_max": 9.0}}],
    }
    first, second = plan_of(tables).cases
    assert first.config.strategy == {"name": "hyperprism", "degree": 2.0, "p_max": 9.0}
    assert second.config.strategy == {"name": "hyperprism", "degree": 7.0}


def test_labels(plan_of: PlanOf) -> None:
    values = [{"name": "dpsgd"}, {"label": "mine", "name": "local"}, "allreduce"]
    flags = {"checkpoint_every": [1, 2], "strategy": values}
    plan = plan_of({"grid": flags})
    assert plan.axes["strategy"] == ("dpsgd", "mine", "allreduce")
    assert plan.axes["checkpoint_every"] == ("1", "2")


def test_excluded_and_added_cases(plan_of: PlanOf) -> None:
    plan = plan_of(
        {
            "base": BASE,
            "grid": GRID,
            "exclude": [{"strategy": "local", "partition.alpha": [1.0]}],
            "cases": [{"strategy": ["allreduce", "hyperprism"]}, {"peers": 9}],
        }
    )
    assert [tuple(case.labels.values()) for case in plan.cases] == [
        ("0.5", "dpsgd", ""),
        ("0.5", "local", ""),
        ("1.0", "dpsgd", ""),
        ("", "allreduce", ""),
        ("", "hyperprism", ""),
        ("", "", "9"),
    ]
    assert plan.cases[3].title == "strategy = allreduce, seed = 0"
    assert plan.cases[3].config.partition == DIRICHLET
    assert plan.cases[5].config.peers == 9


def test_adjustments(plan_of: PlanOf) -> None:
    adjust = [
        {"set": {"evaluate_every": 2}},
        {"when": {"strategy": ["local"], "partition.alpha": 0.5}, "set": {"train": {"lr": 9.0}}},
    ]
    plan = plan_of({"base": BASE, "grid": GRID, "adjust": adjust})
    rates = [case.config.train["lr"] for case in plan.cases]
    assert rates == [0.5, 9.0, 0.5, 0.5]
    assert {case.config.evaluate_every for case in plan.cases} == {2}


def test_base_is_a_file_with_its_own_paths(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "run.toml").write_text(tomli_w.dumps(BASE), encoding="utf-8")
    file = tmp_path / "study.toml"
    file.write_text(tomli_w.dumps({"base": "below/run.toml", "grid": GRID}), encoding="utf-8")
    plan = sweep.read(file, ["rounds=2", "train.lr=0.125"])
    config = plan.cases[0].config
    assert config.folder == tmp_path / "below"
    assert (config.rounds, config.train) == (2, {"lr": 0.125, "steps": 2})
    assert (plan.name, config.name) == ("study", f"study: {plan.cases[0].title}")


# ---- choosing cases --------------------------------------------------------------------------


@pytest.fixture
def sweep_file(plan_of: PlanOf, tmp_path: Path) -> Path:
    plan_of({"base": BASE, "grid": GRID, "seeds": [7, 3]})
    return tmp_path / "sweep.toml"


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ([], range(8)),
        (["strategy=local"], [1, 3, 5, 7]),
        (["strategy=local", "partition.alpha=0.5"], [1, 5]),
        (["strategy=local", "strategy=dpsgd", "seed=3"], [4, 5, 6, 7]),
        (["partition.alpha = 1.0", "seed=7"], [2, 3]),
    ],
    ids=str,
)
def test_only_some_cases_are_chosen(
    sweep_file: Path, only: list[str], chosen: Sequence[int]
) -> None:
    plan = sweep.read(sweep_file, only=only)
    assert plan.chosen == tuple(plan.cases[place] for place in chosen)
    assert len(plan.cases) == 8
    listed = sweep.listing(plan, sweep_file.parent / "out").splitlines()
    assert [line.split()[0] for line in listed[:-1]] == [case.digest for case in plan.chosen]


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ("strategy", ["--only strategy", "axis=label"]),
        ("stratgy=local", ["--only.stratgy", "'strategy'"]),
        ("strategy=loca", ["--only.strategy", "'local'"]),
        ("seed=1", ["--only.seed", "valid: 3, 7"]),
    ],
)
def test_a_choice_that_cannot_be_made_is_named(
    sweep_file: Path, only: str, says: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep.read(sweep_file, only=[only])
    assert all(text in str(caught.value) for text in says), str(caught.value)


def test_a_choice_of_nothing_is_refused(plan_of: PlanOf, tmp_path: Path) -> None:
    plan_of(
        {"base": BASE, "grid": GRID, "exclude": [{"strategy": "local", "partition.alpha": 1.0}]}
    )
    with pytest.raises(ConfigError, match="no case of the grid has all of these"):
        sweep.read(tmp_path / "sweep.toml", only=["strategy=local", "partition.alpha=1.0"])


def test_cases_that_are_not_chosen_need_not_run_here(plan_of: PlanOf, tmp_path: Path) -> None:
    """Such as those of a data set that is not on this machine."""
    plan_of({"grid": {"data": ["digits", "digts"]}})
    sweep.check(sweep.read(tmp_path / "sweep.toml", only=["data=digits"]))


# ---- digests ---------------------------------------------------------------------------------


def _digests(plan: Plan) -> list[str]:
    return [case.digest for case in plan.cases]


def test_equal_runs_have_equal_digests(plan_of: PlanOf) -> None:
    axes = {"strategy": ["dpsgd", {"label": "same", "set": {"strategy": {"name": "dpsgd"}}}]}
    one, other = _digests(plan_of({"grid": axes}))
    assert one == other
    assert one == _digests(plan_of({"grid": axes, "name": "renamed", "metrics": {}}))[0]


@pytest.mark.parametrize(
    "change",
    [{"seeds": [1]}, {"mode": "run"}, {"adjust": [{"set": {"evaluate_every": 2}}]},
     {"adjust": [{"set": {"peers": 4}}]}, {"adjust": [{"set": {"links": "ring"}}]},
     {"adjust": [{"set": {"threads": 2}}]}],
    ids=str,
)  # fmt: skip
def test_what_changes_the_result_changes_the_digest(
    plan_of: PlanOf, change: Mapping[str, object]
) -> None:
    grid = {"strategy": ["dpsgd"]}
    assert _digests(plan_of({"grid": grid})) != _digests(plan_of({"grid": grid, **change}))


@pytest.mark.parametrize(
    ("mode", "change", "is_same"),
    [
        ("simulate", {"threads": 1}, True),  # the default
        ("simulate", {"transport": {"scheme": "tcp"}}, True),  # which a simulation does not use
        ("run", {"transport": {"scheme": "tcp"}}, False),
    ],
)
def test_what_changes_no_result_changes_no_digest(
    plan_of: PlanOf, mode: str, change: Mapping[str, object], is_same: bool
) -> None:
    file = {"grid": {"strategy": ["dpsgd"]}, "mode": mode}
    same = _digests(plan_of(file)) == _digests(plan_of({**file, "adjust": [{"set": change}]}))
    assert same is is_same


def test_the_digest_does_not_know_where_files_are(tmp_path: Path) -> None:
    found = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        file = tmp_path / place / "sweep.toml"
        file.write_text(tomli_w.dumps({"base": BASE, "grid": GRID}), encoding="utf-8")
        found.append(_digests(sweep.read(file)))
    assert found[0] == found[1]


# ---- tables ----------------------------------------------------------------------------------


def test_the_table_by_default_and_by_choice(plan_of: PlanOf) -> None:
    (layout,) = plan_of({"base": BASE, "grid": GRID}).layouts
    assert (layout.rows, layout.columns) == (("partition.alpha",), ("strategy",))
    assert layout.metrics == ("best_accuracy",)
    tables = [{"rows": ["strategy"], "metric": ["wall_s", "rounds_to_80"]}, {"metric": "wall_s"}]
    first, second = plan_of(
        {"base": BASE, "grid": GRID, "table": tables, "metrics": {"targets": [0.8]}}
    ).layouts
    assert (first.rows, first.columns) == (("strategy",), ())
    assert first.metrics == ("wall_s", "rounds_to_80")
    assert (second.rows, second.columns) == (("partition.alpha",), ("strategy",))


# ---- mistakes --------------------------------------------------------------------------------

STRATEGY = {"strategy": ["dpsgd", "local"]}


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"gird": STRATEGY}, ["sweep.gird", "unknown key", "'grid'"]),
        ({}, ["grid", "nothing to run"]),
        ({"grid": STRATEGY, "seeds": []}, ["seeds", "different numbers"]),
        ({"grid": STRATEGY, "seeds": [1, 1]}, ["seeds", "[1, 1]"]),
        ({"grid": STRATEGY, "seeds": [-1]}, ["seed", "greater than or equal to 0"]),
        ({"grid": STRATEGY, "jobs": 0}, ["jobs", "at least 1"]),
        ({"grid": STRATEGY, "mode": "walk"}, ["sweep.mode", "'simulate' or 'run'", "'walk'"]),
        ({"grid": {"stratgy": ["dpsgd"]}}, ["stratgy: unknown key", "'strategy'"]),
        ({"grid": {"peers": [0, 2]}}, ["case peers = 0, seed = 0", "greater than or equal to 1"]),
        ({"grid": {"peers": 3}}, ["grid.peers", "expected a list", "3"]),
        ({"grid": {"peers": []}}, ["grid.peers", "expected a list"]),
        ({"grid": {"seed": [1, 2]}}, ["grid.seed", "seeds = [0, 1, 2]"]),
        ({"grid": {"peers": [3, 3]}}, ["grid.peers", "'3'", "label"]),
        ({"grid": {"train": [{"lr": 1.0}]}}, ["grid.train[0]", "label"]),
        ({"grid": {"task": [{"label": "a", "set": 3}]}}, ["grid.task[0].set", "table of keys"]),
        ({"grid": STRATEGY, "exclude": [{"stratgy": "local"}]}, ["exclude[0].stratgy", "'strateg"]),
        ({"grid": STRATEGY, "exclude": [{"strategy": "loca"}]}, ["exclude[0]", "'local'"]),
        ({"grid": STRATEGY, "exclude": [{"strategy": ["local", "dpsgd"]}]}, ["leaves no case"]),
        ({"grid": STRATEGY, "cases": [{"strategy": "local"}]}, ["strategy = local", "already"]),
        ({"grid": STRATEGY, "adjust": [{"wen": {}}]}, ["adjust[0].wen", "'when'"]),
        ({"grid": STRATEGY, "adjust": [{"when": {}}]}, ["adjust[0].set", "missing"]),
        ({"grid": STRATEGY, "adjust": [{"when": {"strategy": 1}, "set": {}}]}, ["when.strategy"]),
        ({"grid": STRATEGY, "metrics": {"treshold": 1}}, ["metrics.treshold", "'threshold'"]),
        ({"grid": STRATEGY, "metrics": {"threshold": 0.0}}, ["metrics", "threshold", "above 0"]),
        ({"grid": STRATEGY, "metrics": {"targets": [60]}}, ["metrics", "targets", "shares"]),
        ({"grid": STRATEGY, "metrics": {"small": 0.0}}, ["metrics", "small", "above 0"]),
        ({"grid": STRATEGY, "table": {"metric": "small_share"}}, ["table.metric", "small_share"]),
        ({"grid": STRATEGY, "metrics": {"window": [5, 2]}}, ["metrics", "window", "[5, 2]"]),
        ({"grid": STRATEGY, "metrics": {"reference": {"strategy": "dpsg"}}}, ["'dpsgd'"]),
        (
            {"grid": STRATEGY, "metrics": {"reference": {"strategy": ["local", "dpsgd"]}}},
            ["metrics.reference.strategy", "expected one value"],
        ),
        ({"grid": STRATEGY, "table": {"rows": ["stratgy"]}}, ["table", "'stratgy'", "'strategy'"]),
        (
            {"grid": STRATEGY, "table": {"rows": ["strategy"], "columns": ["strategy"]}},
            ["table", "twice"],
        ),
        (
            {"grid": STRATEGY, "table": [{"metric": "best_acuracy"}]},
            ["table[0].metric", "'best_accuracy'"],
        ),
        ({"grid": STRATEGY, "base": "gone.toml"}, ["gone.toml", "cannot read"]),
    ],
    ids=lambda value: None if isinstance(value, dict) else "-".join(value)[:40],
)
def test_every_mistake_is_named(
    plan_of: PlanOf, tables: Mapping[str, object], says: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(tables)
    assert all(text in str(caught.value) for text in says), str(caught.value)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"strategy": ["dpsgd", "dpsg"]}, ["case strategy = dpsg, seed = 0", "'dpsgd'"]),
        ({"partition.alpah": [0.1]}, ["case partition.alpah = 0.1", "partition.alpah"]),
        ({"train.momentun": [0.1]}, ["train.momentun", "'momentum'"]),
        ({"data": ["digts"]}, ["case data = digts", "'digits'"]),
        (
            {"peers": [4], "links": ["complete", "star"], "strategy": ["allreduce"]},
            ["links = star"],
        ),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_found_before_anything_runs(
    plan_of: PlanOf, grid: Mapping[str, object], says: list[str]
) -> None:
    plan = plan_of({"grid": grid})
    with pytest.raises(ConfigError) as caught:
        sweep.check(plan)
    assert all(text in str(caught.value) for text in says), str(caught.value)


def test_good_cases_pass(plan_of: PlanOf) -> None:
    sweep.check(plan_of({"base": BASE, "grid": GRID, "seeds": [0, 1]}))


@pytest.mark.parametrize("name", ["", "../x", "x" * 300, "a\0b"])
def test_a_name_that_cannot_be_a_folder_is_refused(plan_of: PlanOf, name: str) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.toml: sweep: name: expected 1 to 200 bytes"):
        plan_of({"grid": {"peers": [2]}, "name": name})


def test_names_that_come_from_files_and_labels_are_made_good(tmp_path: Path) -> None:
    file = tmp_path / ".hidden.toml"
    base = {"peers": 2, "rounds": 1, "strategy": "dpsgd", "links": "ring"}
    grid = {"strategy": [{"label": "a/b" * 100, "name": "dpsgd"}]}
    file.write_text(tomli_w.dumps({"base": base, "grid": grid}), encoding="utf-8")
    plan = sweep.read(file)
    assert plan.name == "_.hidden"
    assert plan.cases[0].config.name.startswith("_.hidden: strategy = a_ba_b")
