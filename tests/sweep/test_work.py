"""What the process of a case says of itself."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from p2p_dml import config
from p2p_dml.config import RunConfig
from p2p_dml.launchers import simulated
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.sweep._values import Order
from p2p_dml.sweep._work import work

TABLES = {"peers": 2, "rounds": 2, "strategy": "local", "links": "complete"}


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Order:
    """A case that is ready to be worked on; what that does to the process is undone."""
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "before")
    config.dump(config.parse(TABLES, tmp_path), tmp_path / "case.toml")
    return Order(path=str(tmp_path), folder=str(tmp_path), mode="simulate", with_report=False)


def test_a_case_says_what_would_run_it_again(order: Order, tmp_path: Path) -> None:
    assert work(order) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    file, run = tmp_path / "case.toml", tmp_path / "run"
    assert facts["command"] == f"p2p-dml simulate {file} --out {run}"


def test_a_case_is_computed_on_the_device_of_its_order(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[object] = []

    def simulate(settings: RunConfig, *_: object, device: str, **__: object) -> Outcome:
        devices.append(device)
        return Outcome(tmp_path, {0: 5})

    monkeypatch.setattr(simulated, "simulate", simulate)
    for device in ("cpu", "cuda:1"):
        assert work(replace(order, device=device)) == 5
    assert devices == ["cpu", "cuda:1"]
    assert sys.argv[-2:] == ["--device", "cuda:1"]


def test_a_mistake_is_its_last_words(
    order: Order, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (tmp_path / "case.toml").read_text(encoding="utf-8")
    (tmp_path / "case.toml").write_text(text.replace('"local"', '"locl"'), encoding="utf-8")
    assert work(order) == 2
    assert "error: strategy.name: unknown name 'locl'" in capsys.readouterr().out
