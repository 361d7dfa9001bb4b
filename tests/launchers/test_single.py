"""What a nursery reads for all of its children, and what each of them takes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p_dml import config
from p2p_dml.assemble import load_data
from p2p_dml.launchers import folder
from p2p_dml.launchers.assignment import Assignment
from p2p_dml.launchers.scratch import lay_out, with_shards
from p2p_dml.launchers.single import prepare

RUN: Mapping[str, Any] = {
    "peers": 4,
    "rounds": 2,
    "strategy": "dpsgd",
    "links": {"kind": "k_regular", "degree": 2},
}
OWN = {
    "model": {"name": "p2p_dml.learners.still:vector", "size": 3},
    "train": {"function": "p2p_dml.learners.still:rest"},
}


def task_of(path: Path, changes: Mapping[str, Any]) -> Assignment:
    """A run folder and what its launcher lays out, as an assignment."""
    run = config.parse({**RUN, **changes}, Path())
    (path / "run").mkdir()
    config.dump(run, path / "run" / folder.SETTINGS)
    if not changes:
        lay_out(*load_data(run), path)
    return Assignment(str(path / "run"), str(path), ".", me=-1)


def test_run_file_data_and_shards_are_read_once_for_all(tmp_path: Path) -> None:
    parts = prepare(task_of(tmp_path, {}), [0, 2])
    assert parts is not None and parts.dataset is not None
    assert list(parts.shards) == [0, 2]
    own = with_shards(parts, tmp_path, [2])
    assert list(own.shards) == [2]
    assert own.shards[2] is parts.shards[2]
    assert own.schedule(0) is parts.schedule(0)


def test_who_is_added_later_reads_a_shard_of_its_own(tmp_path: Path) -> None:
    parts = prepare(task_of(tmp_path, {}), [0])
    assert parts is not None
    late = with_shards(parts, tmp_path, [3])
    assert np.array_equal(late.shards[3], np.load(tmp_path / "shard-3.npy"))


def test_a_training_without_data_has_no_shards(tmp_path: Path) -> None:
    parts = prepare(task_of(tmp_path, OWN), range(4))
    assert parts is not None
    assert (parts.dataset, parts.shards) == (None, {})


@pytest.mark.parametrize(
    "changes",
    [
        {**OWN, "train": {"function": "my_module:train"}},  # it may compute when it is imported
        {"links": {"kind": "edges", "file": "gone.csv"}},
    ],
    ids=["a module of the user's", "a file that is gone"],
)
def test_what_cannot_be_prepared_is_left_to_the_peers(
    tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    assert prepare(task_of(tmp_path, changes), range(4)) is None
