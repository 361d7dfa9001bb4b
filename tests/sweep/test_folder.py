"""The folder of a sweep is taken up again, and never that of something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from p2p_dml import config
from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.sweep import Plan, listing
from p2p_dml.sweep._folder import case_folder, is_finished, mark_finished, opened, prepare

PlanOf = Callable[[Mapping[str, object]], Plan]


def test_it_is_made_and_taken_up_again(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    for text in ("x = 1\n", "x = 2\n"):
        with opened(out, text):
            assert (out / "sweep.toml").read_text(encoding="utf-8") == text


def test_two_sweeps_cannot_be_at_work_in_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with opened(out, ""), pytest.raises(ConfigError, match="another sweep"), opened(out, ""):
        pass
    with opened(out, ""):
        pass


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_is_left_alone(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    mine = out if kind == "file" else out / "mine.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="not the folder of a sweep"), opened(out, ""):
        pass
    assert mine.read_text(encoding="utf-8") == "mine"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError), opened(tmp_path / "file" / "out", ""):
        pass


def test_a_case_is_a_run_file_that_runs_from_anywhere(plan_of: PlanOf, tmp_path: Path) -> None:
    (case,) = plan_of({"grid": {"peers": [7]}}).cases
    path = prepare(tmp_path / "out", case)
    assert path == case_folder(tmp_path / "out", case)
    assert config.load(path / "case.toml").canonical() == case.config.canonical()


def test_the_listing_tells_what_is_finished(plan_of: PlanOf, tmp_path: Path) -> None:
    plan, out = plan_of({"grid": {"peers": [7, 8]}}), tmp_path / "out"
    path = prepare(out, plan.cases[1])
    assert not is_finished(out, plan.cases[1])
    mark_finished(path, plan.cases[1], 1.0)
    first, second, total = listing(plan, out).splitlines()
    assert first == f"{plan.cases[0].digest}  to do     peers = 7, seed = 0"
    assert second == f"{plan.cases[1].digest}  finished  peers = 8, seed = 0"
    assert total == "2 cases, 1 finished"
