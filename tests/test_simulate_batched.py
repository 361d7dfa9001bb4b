"""A simulation as one batch against one after another: same models to rounding, same run folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from typer.testing import CliRunner

from p2p_dml import cli, config
from p2p_dml.checkpoint import checkpoint_file
from p2p_dml.checkpoint import load as load_checkpoint
from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import resuming, simulated
from p2p_dml.report.load import load as load_run
from p2p_dml.types import Tensors

PEERS, ROUNDS = 5, 4
BASE: Mapping[str, Any] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "dtype": "float64",
    "strategy": "dpsgd",
    "links": {"kind": "erdos_renyi", "density": 0.7},
    "partition": {"name": "dirichlet", "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"lr": 0.1, "momentum": 0.9, "epochs": 1, "batch_size": 64},
    "evaluate_every": 2,
    "checkpoint_every": 3,
}
CASES: Mapping[str, Mapping[str, Any]] = {
    "local": {"strategy": "local"},
    "dpsgd": {},
    "overlapped": {"overlap": True},
    "own classes": {"evaluate_on": "own", "model": {"name": "mlp", "init": "kaiming"}},
    "adam": {"train": {"optimiser": "adam", "lr": 0.01, "steps": 3}},
    "allreduce": {"strategy": "allreduce", "links": "complete"},
    "p=9": {"strategy": {"name": "hyperprism", "degree": 9.0}},
    "learned p": {"strategy": {"name": "hyperprism", "degree": "learned"}},
    "mixes first": {"strategy": "orders:MixFirst"},
    "mixes in the middle": {"strategy": "orders:TrainTwice"},
    "nobody to hear": {
        "strategy": "orders:MixFirst",
        "links": {"kind": "erdos_renyi", "density": 0.0},
    },
}
ORDERS = """
from dataclasses import dataclass

from p2p_dml.kernels.means import mix_mean
from p2p_dml.types import Payload


@dataclass(frozen=True)
class MixFirst:
    needs = frozenset()
    exchanges = 1

    def init(self, learner, seed):
        return None

    def round(self, state, learner, links):
        inbox = yield links.now.broadcast(Payload(learner.params))
        mix_mean(learner.params, inbox)
        learner.train()

    def report(self, state):
        return {}


@dataclass(frozen=True)
class TrainTwice(MixFirst):
    exchanges = 2

    def round(self, state, learner, links):
        learner.train()
        for _ in range(2):
            inbox = yield links.now.broadcast(Payload(learner.params))
            mix_mean(learner.params, inbox)
        learner.train()
"""
"""Strategies in orders of training and mixing that no built-in one has."""


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


def _both(tables: Mapping[str, Any], parent: Path) -> tuple[Path, Path]:
    """Folders of the same run: as one batch, and one after another."""
    (parent / "orders.py").write_text(ORDERS, encoding="utf-8")
    run = config.parse({**BASE, **tables}, parent)
    for batched in (True, False):
        outcome = simulated.simulate(run, parent / str(batched), _ignore, batched=batched)
        assert outcome.exit_code == 0
    return parent / "True", parent / "False"


def _saved(folder: Path, peer: int, round_: int) -> Tensors:
    return dict(sorted(load_checkpoint(folder / checkpoint_file(peer, round_)).tensors.items()))


def _events(folder: Path, peer: int) -> list[dict[str, Any]]:
    """Events without what no two runs share: times, and projections that rounding changes."""
    drop = {"t", "seconds", "sketch", "after_s", "pid"}
    lines = read_events(event_file(folder, peer))
    return [{key: value for key, value in line.items() if key not in drop} for line in lines]


def _assert_near(got: object, expected: object, tolerance: float) -> None:
    """Equal, but for floats; in tables and lists too."""
    if isinstance(expected, dict):
        assert isinstance(got, dict) and list(got) == list(expected)
        for key, value in expected.items():
            _assert_near(got[key], value, tolerance)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=tolerance, abs=tolerance)
    else:
        assert got == expected


@pytest.mark.parametrize("tables", CASES.values(), ids=CASES)
def test_models_and_events_are_the_same_to_rounding(
    tables: Mapping[str, Any], tmp_path: Path
) -> None:
    batch, single = _both(tables, tmp_path)
    for peer in range(PEERS):
        for round_ in (3, ROUNDS):
            got, expected = _saved(batch, peer, round_), _saved(single, peer, round_)
            assert list(got) == list(expected)
            for name, x in expected.items():
                torch.testing.assert_close(got[name], x, rtol=1e-10, atol=1e-10)
        one, other = _events(batch, peer), _events(single, peer)
        assert len(one) == len(other)
        for line, wanted in zip(one, other, strict=True):
            _assert_near(line, wanted, 1e-9)


def test_float32_agrees_to_its_rounding(tmp_path: Path) -> None:
    batch, single = _both({"dtype": "float32"}, tmp_path)
    for peer in range(PEERS):
        got, expected = _saved(batch, peer, ROUNDS), _saved(single, peer, ROUNDS)
        for name, x in expected.items():
            torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-5)


def test_the_run_folders_hold_the_same_files(tmp_path: Path) -> None:
    batch, single = (
        {path.relative_to(folder) for path in folder.rglob("*")} for folder in _both({}, tmp_path)
    )
    assert batch == single


RESUMED: Mapping[str, Mapping[str, Any]] = {
    name: CASES[name] for name in ("dpsgd", "adam", "learned p", "mixes first", "own classes")
}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("tables", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_has_the_bits_and_figures_of_an_uninterrupted_one(
    tables: Mapping[str, Any], batched: bool, tmp_path: Path
) -> None:
    (tmp_path / "orders.py").write_text(ORDERS, encoding="utf-8")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = config.parse({**BASE, **tables, "rounds": 6}, tmp_path)
    simulated.simulate(run, whole, _ignore, batched=batched)
    simulated.simulate(run.model_copy(update={"rounds": 3}), parts, _ignore, batched=batched)
    past = resuming.read(parts, ["rounds=6"], "simulate")
    simulated.simulate(past.config, None, _ignore, batched=batched, past=past)
    for peer in range(PEERS):
        for round_ in (3, 6):
            ours, theirs = _saved(parts, peer, round_), _saved(whole, peer, round_)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(x, ours[name]) for name, x in theirs.items())
        assert _evaluations(parts, peer) == _evaluations(whole, peer)


def _evaluations(folder: Path, peer: int) -> list[object]:
    """Those that count, every bit of them."""
    found = load_run(folder).peers[peer].evaluations
    return [found.round.tolist(), found.accuracy.tolist(), found.loss.tolist(), found.sketch]


# --- which of the two ------------------------------------------------------------------------

NORMED = """
from torch import nn


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)
    )


def train(model: nn.Module, round: int) -> float:
    return 0.5
"""


def _said(tables: Mapping[str, Any], parent: Path, batched: bool | None) -> str:
    """What a simulation says about how it computes."""
    (parent / "normed.py").write_text(NORMED, encoding="utf-8")
    lines: list[str] = []
    run = config.parse({**BASE, **tables, "rounds": 1}, parent)
    simulated.simulate(run, parent / f"{batched}", _ignore, batched=batched, say=lines.append)
    return "\n".join(lines)


ALONE = {
    "batchnorm": ({"model": "normed:normed"}, "the model has buffers"),
    "own training": (
        {"model": "normed:normed", "train": "normed:train"},
        "the training is a function of your own",
    ),
}


@pytest.mark.parametrize(("tables", "why"), ALONE.values(), ids=ALONE)
def test_what_cannot_be_batched_runs_one_after_another_and_says_so(
    tables: Mapping[str, Any], why: str, tmp_path: Path
) -> None:
    assert why in _said(tables, tmp_path, None)
    assert len(list((tmp_path / "None" / "events").iterdir())) == PEERS


def test_convolutions_run_one_after_another_unless_told_otherwise(tmp_path: Path) -> None:
    tables = {"model": "lenet", "train": {"steps": 1}}
    assert "one after another: on a CPU convolutions" in _said(tables, tmp_path, None)
    assert "as one batch" in _said(tables, tmp_path, True)


@pytest.mark.parametrize(("tables", "why"), ALONE.values(), ids=ALONE)
def test_a_batch_that_cannot_be_had_is_refused_before_anything_is_written(
    tables: Mapping[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"--batched: {why}"):
        _said(tables, tmp_path, True)
    assert not (tmp_path / "True").exists()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    run = config.parse(BASE, tmp_path)
    with pytest.raises(ConfigError, match=r"--device teapot: .*expected cpu, cuda"):
        simulated.simulate(run, tmp_path / "out", _ignore, device="teapot")


@pytest.mark.parametrize(
    ("flags", "says"),
    [([], "as one batch"), (["--lockstep"], None)],
    ids=["default", "lockstep"],
)
def test_the_command_says_in_one_line_when_it_batches(
    flags: list[str], says: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(tomli_w.dumps({**BASE, "rounds": 1}), encoding="utf-8")
    arguments = ["simulate", str(file), "--out", str(tmp_path / "out"), *flags]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160"}, catch_exceptions=False)
    assert result.exit_code == ExitCode.DONE
    said = re.findall(r"^peers train (.*?):", result.output, re.MULTILINE)
    assert said == ([says] if says else [])
