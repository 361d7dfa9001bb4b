"""Every example of docs/data.md works as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from p2p_dml import data, tables
from p2p_dml.learners import Training
from p2p_dml.models import MODELS, build_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def example_tables(name: str) -> list[dict[str, object]]:
    return [t[name] for block in blocks("toml") if name in (t := tomllib.loads(block))]


@pytest.mark.parametrize("table", example_tables("partition"), ids=lambda table: table["name"])
def test_partitions(table: dict[str, object]) -> None:
    x = np.zeros((2000, 1), np.float32)
    y = np.arange(2000) % 10
    dataset = data.Dataset(name="toy", train_x=x, train_y=y, test_x=x, test_y=y, num_classes=10)
    assert len(data.partition(table, dataset, 8, 0)) == 8


def test_training_shows_every_setting() -> None:
    (table,) = example_tables("train")
    training = tables.build(Training, table, "train")
    assert training.num_steps(1000) == 8
    assert set(table) | {"epochs"} == set(Training.__dataclass_fields__)


def test_own_data_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python")
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    own_data, own_model = example_tables("data")[-1], example_tables("model")[-1]
    dataset = data.load(own_data)
    module = build_model(own_model, dataset.shape, dataset.num_classes, seed=0)
    assert dataset.num_samples == 400
    assert sum(p.numel() for p in module.parameters()) == 3 * 32 + 33 * 2


def test_every_name_has_a_line() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    assert named - {"name"} == set(data.DATASETS) | set(data.PARTITIONS) | set(MODELS)
