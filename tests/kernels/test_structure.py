"""Structured sparsity: counts by hand, shares, pruning of outputs with few ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p2p_dml.kernels.structure import kept_per_output, prune_outputs, structured_sparsity

LINEAR = torch.tensor([[0.0, 2.0, -1.0], [0.0, 0.0, 0.0], [0.0, -0.0, 1e-30]])


def _conv() -> Tensor:
    """Four filters of 2 x 3 x 3 with 0, 1, 2 and 18 weights."""
    weight = torch.zeros(4, 2, 3, 3)
    weight[1, 0, 1, 2] = -4.0
    weight[2, :, 2, 0] = 0.5
    weight[3] = 1.0
    return weight


@pytest.mark.parametrize(
    ("x", "counts"),
    [
        (LINEAR, [2, 0, 1]),
        (LINEAR != 0, [2, 0, 1]),
        (_conv(), [0, 1, 2, 18]),
        (torch.tensor([[float("nan"), 0.0]]), [1]),
        (torch.zeros(2, 0), [0, 0]),
        (torch.zeros(0, 3), []),
    ],
    ids=["linear", "bool mask", "conv", "nan is a weight", "no inputs", "no outputs"],
)
def test_counts_by_hand(x: Tensor, counts: list[int]) -> None:
    assert kept_per_output(x).tolist() == counts


def test_shares_are_of_weights_only() -> None:
    params = {
        "conv.weight": _conv(),
        "conv.bias": torch.zeros(4),
        "head.weight": LINEAR.requires_grad_(),
        "none": torch.zeros(0, 3),
    }
    assert structured_sparsity(params) == {"conv.weight": 0.25, "head.weight": 1 / 3, "none": 0.0}


@pytest.mark.parametrize(
    ("least", "left"), [(0, [0, 1, 2, 18]), (1, [0, 0, 2, 18]), (2, [0, 0, 0, 18]), (18, [0] * 4)]
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_outputs_with_few_ones_go_as_a_whole(
    least: int, left: list[int], dtype: torch.dtype
) -> None:
    mask = (_conv() != 0).to(dtype)
    before = mask.clone()
    pruned = prune_outputs(mask, least)
    assert kept_per_output(pruned).tolist() == left
    assert pruned.dtype == dtype
    assert torch.equal(mask, before)
    rows = torch.tensor(left) > 0
    assert torch.equal(pruned[rows], mask[rows])
