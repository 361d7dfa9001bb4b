"""What a rank keeps of its last complete round."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from p2p_dml.checkpoint import load
from p2p_dml.events import Checkpointed
from p2p_dml.launchers.group import Spare


@dataclass
class State:
    """What a strategy may remember."""

    momentum: Tensor
    rounds: int


def test_before_the_first_round_there_is_nothing_to_save(tmp_path: Path) -> None:
    assert Spare(3, b"r" * 16).save(tmp_path) is None
    assert not any(tmp_path.iterdir())


def test_the_newest_is_saved_as_it_was(tmp_path: Path) -> None:
    """The strategy's state changes in place while the next round runs; the copy does not."""
    spare, state = Spare(3, b"r" * 16), State(torch.zeros(2), 0)
    for round_ in (1, 2):
        state.momentum.fill_(round_)
        state.rounds = round_
        spare.keep(round_, {"model/x": torch.full((3,), float(round_))}, state)
    state.momentum.fill_(-1)
    saved = spare.save(tmp_path)
    assert isinstance(saved, Checkpointed)
    assert saved.round == 2
    found = load(tmp_path / saved.file)
    assert (found.peer, found.round, found.digest) == (3, 2, "72" * 16)
    assert {name: x.tolist() for name, x in found.tensors.items()} == {
        "model/x": [2.0, 2.0, 2.0],
        "strategy/momentum": [2.0, 2.0],
        "strategy/rounds": 2,
    }
