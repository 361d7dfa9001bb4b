"""Shares of small parameters, from checkpoints made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from p2p_dml import checkpoint
from p2p_dml.checkpoint import Checkpoint
from p2p_dml.sweep._checkpoints import small_share
from p2p_dml.types import Tensors


def _save(run: Path, peer: int, round: int, model: Tensors) -> None:
    """A checkpoint whose other tensors are all zero."""
    other = {"optimiser/0/momentum": torch.zeros(9), "strategy/model/x": torch.zeros(9)}
    tensors = {f"model/{name}": x for name, x in model.items()}
    checkpoint.save(run, Checkpoint(peer, round, "d", "v", {**tensors, **other}))


def test_weights_and_biases_count_alike(tmp_path: Path) -> None:
    """Two of three weights and one of two biases: three of five."""
    model = {"weight": torch.tensor([[0.005, -0.01, 0.02]]), "bias": torch.tensor([0.0, -1.0])}
    _save(tmp_path, 0, 1, model)
    assert small_share(tmp_path, 0.01) == pytest.approx(3 / 5)
    assert small_share(tmp_path, 0.001) == pytest.approx(1 / 5)
    assert small_share(tmp_path, 1.0) == 1.0


def test_the_last_checkpoint_of_each_peer_counts(tmp_path: Path) -> None:
    """A quarter of one peer's numbers and three quarters of the other's: half."""
    _save(tmp_path, 0, 9, {"weight": torch.zeros(4)})
    _save(tmp_path, 0, 10, {"weight": torch.tensor([0.0, 1.0, 1.0, 1.0])})
    _save(tmp_path, 1, 10, {"weight": torch.tensor([0.0, 0.0, 0.0, 1.0])})
    assert small_share(tmp_path, 0.01) == pytest.approx(0.5)


def test_counters_do_not_count(tmp_path: Path) -> None:
    _save(tmp_path, 0, 1, {"weight": torch.ones(2), "num_batches_tracked": torch.tensor(0)})
    assert small_share(tmp_path, 0.01) == 0.0


def test_without_checkpoints_it_is_unknown(tmp_path: Path) -> None:
    assert small_share(tmp_path, 0.01) is None
