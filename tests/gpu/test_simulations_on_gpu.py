"""Whole simulations on a GPU against the CPU: the same models in float64 to rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from p2p_dml import config
from p2p_dml.checkpoint import checkpoint_file, load
from p2p_dml.launchers import resuming, simulated
from p2p_dml.types import Tensors

pytestmark = pytest.mark.cuda

PEERS, ROUNDS = 4, 2
BASE: Mapping[str, Any] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "dtype": "float64",
    "links": {"kind": "erdos_renyi", "density": 0.8},
    "model": {"name": "mlp", "hidden": [20]},
    "train": {"lr": 0.1, "steps": 3, "batch_size": 32},
    "checkpoint_every": 1,
}
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "dpsgd": {"strategy": "dpsgd"},
    "p=9": {"strategy": {"name": "hyperprism", "degree": 9.0}},
    "learned p": {"strategy": {"name": "hyperprism", "degree": "learned"}},
    "mirror step": {
        "strategy": {"name": "hyperprism", "degree": 3.0, "gradient": "mirror", "mirror_lr": 0.01}
    },
    "mcepl": {"strategy": "mcepl"},
    "supermask": {"strategy": {"name": "supermask", "steps": 2}},
    "magnitude": {"strategy": "magnitude"},
    "fedpm": {"strategy": "fedpm"},
    "dispfl": {"strategy": "dispfl"},
}


def _ignore(folder: Path, started: float) -> Callable[[], None]:
    return lambda: None


def _models(tables: Mapping[str, Any], folder: Path, device: str, batched: bool) -> list[Tensors]:
    """Every peer's checkpoint after the last round."""
    run = config.parse({**BASE, **tables}, folder)
    outcome = simulated.simulate(run, folder, _ignore, batched=batched, device=device)
    assert outcome.exit_code == 0
    return [load(folder / checkpoint_file(peer, ROUNDS)).tensors for peer in range(PEERS)]


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "lockstep"])
@pytest.mark.parametrize("tables", STRATEGIES.values(), ids=STRATEGIES)
def test_a_simulation_is_that_of_the_cpu(
    tmp_path: Path, gpu: torch.device, tables: Mapping[str, Any], batched: bool
) -> None:
    found = _models(tables, tmp_path / "gpu", str(gpu), batched)
    expected = _models(tables, tmp_path / "cpu", "cpu", batched)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, x in other.items():
            torch.testing.assert_close(one[name], x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "lockstep"])
@pytest.mark.parametrize("tables", STRATEGIES.values(), ids=STRATEGIES)
def test_a_resumed_simulation_is_an_uninterrupted_one(
    tmp_path: Path, gpu: torch.device, tables: Mapping[str, Any], batched: bool
) -> None:
    expected = _models(tables, tmp_path / "whole", str(gpu), batched)
    _models(tables, tmp_path / "parts", str(gpu), batched)
    for peer in range(PEERS):
        (tmp_path / "parts" / checkpoint_file(peer, ROUNDS)).unlink()
    past = resuming.read(tmp_path / "parts", (), "simulate")
    simulated.simulate(past.config, None, _ignore, batched=batched, device=str(gpu), past=past)
    for peer, other in enumerate(expected):
        one = load(tmp_path / "parts" / checkpoint_file(peer, ROUNDS)).tensors
        assert one.keys() == other.keys()
        for name, x in other.items():
            torch.testing.assert_close(one[name], x, rtol=1e-8, atol=1e-9)
