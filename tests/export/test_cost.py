"""What a model costs: multiply-adds and numbers by hand, times by a clock of our own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from p2p_dml.export._cost import largest_difference, multiply_adds, num_parameters, time_ratio
from p2p_dml.export._layers import WindowNorm
from p2p_dml.models import build_model


def test_multiply_adds_by_hand() -> None:
    conv = nn.Conv2d(3, 5, (3, 2), bias=False)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(5 * 6 * 7, 4))
    sample = torch.zeros(1, 3, 8, 8)
    assert multiply_adds(model, sample) == 5 * 6 * 7 * (3 * 3 * 2) + 5 * 6 * 7 * 4


def test_multiply_adds_of_the_paper_s_network() -> None:
    """Tian et al. 2025: maps of 30 x 30, 12 x 12 and 3 x 3, then 1024, 192 and 10 numbers."""
    model = build_model({"name": "alexnet_mcepl"}, (3, 32, 32), 10, 1)
    convs = 4800 * 30 * 30 + 204_800 * 12 * 12 + 819_200 * 3 * 3
    assert multiply_adds(model, torch.zeros(1, 3, 32, 32)) == convs + 1024 * 192 + 1920


def test_numbers_that_a_model_is_made_of() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), WindowNorm(2, 1.0, 1.0, (0, 1, 2), (1, 2)))
    assert num_parameters(model) == 3 * 2 * 4 + 3 + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_largest_difference(dtype: torch.dtype) -> None:
    first, second = (nn.Linear(2, 1, bias=False, dtype=dtype) for _ in range(2))
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -2.0]]))
        second.weight.copy_(torch.tensor([[1.0, -1.5]]))
    x = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=dtype)
    assert largest_difference(first, second, x) == (2.0, 8.0)


def test_the_shortest_pass_counts() -> None:
    reading = iter([0.0, 4.0, 4.0, 9.0, 10.0, 12.0, 20.0, 21.0])  # 4, 5; 2, 1
    model = nn.Identity()
    assert time_ratio(model, model, torch.zeros(1), 2, lambda: next(reading)) == 0.5
