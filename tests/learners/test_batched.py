"""Models that cannot be computed for many peers at once, and what is said of them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from p2p_dml.learners import obstacle


class _Count(nn.Module):
    """Its output depends on how often it was called: no function of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.scale * self.calls


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if float(x.sum()) > 0 else x


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "buffers, such as BatchNorm's"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), "cannot be batched: .*random"),
        (_Count(), "something else when it is batched"),
        (_Branch(), "cannot be batched: "),
    ],
    ids=["batchnorm", "dropout", "counter", "branch"],
)
def test_obstacles(module: nn.Module, why: str) -> None:
    found = obstacle(module, torch.ones(1, 4))
    assert found is not None

    assert re.search(why, found)
