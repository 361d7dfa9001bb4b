"""Alignment of two sets of tensors: by hand, independent of magnitudes, silent without an angle."""

from __future__ import annotations

import math

import pytest
import torch

from p2p_dml.hypernet import Alignment, alignments
from p2p_dml.types import Tensors

NUM = 20_000_001
GROUPS = {"conv": "representation", "fc.w": "decision", "fc.b": "decision"}


def draw(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(40, generator=generator, dtype=torch.float64) for name in GROUPS}


def test_by_hand() -> None:
    a = {"conv": torch.tensor([1.0, 0.0]), "fc.w": torch.tensor([3.0]), "fc.b": torch.tensor([4.0])}
    b = {"conv": torch.tensor([1.0, 1.0]), "fc.w": torch.tensor([2.0]), "fc.b": torch.tensor([0.0])}
    found = alignments(a, b, GROUPS)
    assert found == {
        "decision": Alignment(6.0, 25.0, 4.0),
        "representation": Alignment(1.0, 1.0, 2.0),
    }
    assert found["decision"].cosine == pytest.approx(0.6)
    assert found["representation"].cosine == pytest.approx(0.5**0.5)


def test_the_cosine_does_not_depend_on_magnitudes() -> None:
    a, b = draw(1), draw(2)
    found = alignments(a, b, GROUPS)
    scaled = alignments(
        {n: 1e-6 * x for n, x in a.items()}, {n: 1e6 * x for n, x in b.items()}, GROUPS
    )
    assert all(scaled[g].cosine == pytest.approx(found[g].cosine, rel=1e-12) for g in found)


def test_large_tensors_are_summed_in_float64() -> None:
    """A float32 sum of ones stops at 2^24, which is below NUM."""
    ones = torch.ones(NUM)
    found = alignments({"x": ones}, {"x": ones}, {"x": "all"})["all"]
    assert found.dot == found.squared_a == found.squared_b == NUM


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_group_without_an_angle_is_left_out(bad: float) -> None:
    a = draw(1) | {"conv": torch.full((40,), bad, dtype=torch.float64)}
    assert set(alignments(a, draw(2), GROUPS)) == {"decision"}
    assert set(alignments(draw(2), a, GROUPS)) == {"decision"}
    assert math.isnan(Alignment(0.0, 0.0, 1.0).cosine)
