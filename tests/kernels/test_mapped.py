"""Differently mapped terms: direct evaluation, the power mean, finite differences, the extremes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from p2p_dml.kernels._power import power_mean, signed_power
from p2p_dml.kernels.mapped import CHUNK, Term, mapped_mean
from p2p_dml.kernels.means import weighted_power_mean

WEIGHTS = (0.5, 0.3, 0.2)
FAR = CHUNK + 100
"""More than one chunk."""


def draw(seed: int, size: int = 200, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(size, generator=generator, dtype=torch.float64)


def terms_of(xs: Sequence[Tensor], degrees: Sequence[float], moving: Sequence[bool]) -> list[Term]:
    rows = zip(xs, WEIGHTS, degrees, moving, strict=True)
    return [Term(x=x, weight=a, degree=q, moves=m) for x, a, q, m in rows]


def direct(terms: Sequence[Term], p: float) -> Tensor:
    """The definition, in float64."""
    z = torch.stack([t.weight * t.x.sign() * t.x.abs() ** t.degree for t in terms]).sum(0)
    return z.sign() * z.abs() ** (1 / p)


@pytest.mark.parametrize("degrees", [(1.0, 1.0, 1.0), (3.0, 1.0, 2.5), (9.0, 15.0, 3.0)])
@pytest.mark.parametrize("p", [1.0, 3.0, 7.3])
def test_it_is_the_definition(degrees: tuple[float, ...], p: float) -> None:
    terms = terms_of([draw(i, FAR) for i in range(3)], degrees, (True, False, False))
    torch.testing.assert_close(mapped_mean(terms, p), direct(terms, p), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.7, 9.0, 15.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_equal_degrees_are_the_power_mean(p: float, scale: float) -> None:
    xs = [draw(i, scale=scale) for i in range(3)]
    got = mapped_mean(terms_of(xs, [p] * 3, [True] * 3), p)
    expected = weighted_power_mean(xs, WEIGHTS, p)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12 * scale)


def test_its_slope_is_then_the_power_means() -> None:
    xs, slope = [draw(i).abs() + 0.01 for i in range(3)], torch.empty(200, dtype=torch.float64)
    mapped_mean(terms_of(xs, [5.0] * 3, [True] * 3), 5.0, slope=slope)
    expected = torch.empty_like(slope)
    power_mean(xs, WEIGHTS, 5.0, slope=expected)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("moving", [(True, True, True), (True, False, False)])
@pytest.mark.parametrize("p", [1.0, 3.0, 6.5])
def test_the_slope_is_the_finite_difference(p: float, moving: tuple[bool, ...]) -> None:
    xs, pull, h = [draw(i).abs() + 0.1 for i in range(3)], 0.01 * draw(9).abs(), 1e-5

    def at(own: float) -> Tensor:
        degrees = [own if moves else 4.0 for moves in moving]
        terms = [*terms_of(xs, degrees, moving), Term(x=-pull, weight=-1.0, degree=1.0)]
        return mapped_mean(terms, own, slope=slope)

    slope = torch.empty_like(xs[0])
    above, below = at(p + 2 * h), at(p)
    at(p + h)
    torch.testing.assert_close(slope, (above - below) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_that_underflow_are_not_lost(dtype: torch.dtype) -> None:
    """1e-4^15 is 0 in float32, and in float64 far below a gradient of 1e-30, which then decides."""
    x = torch.full((3,), 1e-4, dtype=dtype)
    same = mapped_mean([Term(x=x, weight=1.0, degree=15.0)], 15.0)
    torch.testing.assert_close(same, x)
    pulled = [Term(x=x, weight=1.0, degree=15.0), Term(x=x * 1e-26, weight=-1.0, degree=1.0)]
    expected = torch.full_like(x, -((1e-30) ** (1 / 15)))
    torch.testing.assert_close(mapped_mean(pulled, 15.0), expected)


@pytest.mark.parametrize(("degree", "expected"), [(9.0, -0.36), (15.0, -0.54)])
def test_a_literal_mirror_step_throws_a_small_weight_far(degree: float, expected: float) -> None:
    """The figures of the specification: η = 0.01, gradient 0.01, weight 0.05."""
    x, pull = torch.tensor([0.05]), torch.tensor([0.01 * 0.01])
    step = [Term(x=x, weight=1.0, degree=degree), Term(x=pull, weight=-1.0, degree=1.0)]
    got = mapped_mean(step, degree).item()
    assert got == pytest.approx(expected, abs=0.005)
    assert got == pytest.approx(-((0.01 * 0.01 - 0.05**degree) ** (1 / degree)), rel=1e-6)
    assert signed_power(torch.tensor([got]), degree, torch.empty(1)).item() == pytest.approx(
        0.05**degree - 1e-4, rel=1e-4
    )


def test_zeros_and_what_cancels_give_0_and_no_slope() -> None:
    x = torch.tensor([0.0, 2.0, 0.0])
    opposed = [
        Term(x=x, weight=0.5, degree=3.0, moves=True),
        Term(x=-x, weight=0.5, degree=3.0, moves=True),
    ]
    slope = torch.full((3,), math.nan)
    assert torch.equal(mapped_mean(opposed, 3.0, slope=slope), torch.zeros(3))
    assert torch.equal(slope, torch.zeros(3))


def test_the_slope_is_cut_where_terms_nearly_cancel() -> None:
    x, y = torch.tensor([2.0], dtype=torch.float64), torch.tensor([-2.0 + 1e-13]).double()
    slope = torch.empty(1, dtype=torch.float64)
    terms = [Term(x=z, weight=0.5, degree=3.0, moves=True) for z in (x, y)]
    mapped_mean(terms, 3.0, slope=slope)
    assert slope.abs().item() <= 2 * (1 + math.log(2)) + 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_may_take_the_place_of_a_term(dtype: torch.dtype) -> None:
    xs = [draw(i, FAR).to(dtype) for i in range(3)]
    terms = terms_of(xs, (3.0, 5.0, 1.0), (True, False, False))
    expected = mapped_mean(terms, 3.0)
    assert expected.dtype == dtype
    assert mapped_mean(terms, 3.0, out=xs[1]) is xs[1]
    assert torch.equal(xs[1], expected)


def test_layouts_may_differ() -> None:
    xs = [draw(i, 12).reshape(3, 4) for i in range(3)]
    degrees, moving = (3.0, 5.0, 1.0), (True, False, False)
    expected = mapped_mean(terms_of(xs, degrees, moving), 3.0)
    turned = [x.t().contiguous().t() for x in xs]
    mapped_mean(terms_of(turned, degrees, moving), 3.0, out=turned[0])
    assert torch.equal(turned[0], expected)


@pytest.mark.parametrize("p", [0.5, math.nan, math.inf])
def test_a_degree_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number of at least 1"):
        mapped_mean([Term(x=torch.ones(1), weight=1.0, degree=3.0)], p)
