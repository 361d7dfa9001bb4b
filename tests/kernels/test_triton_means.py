"""The kernels for GPUs without one, in Triton's interpreter. tests/gpu has them compiled.

TRITON_INTERPRET=1 pytest tests/kernels/test_triton_means.py, where Triton is installed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from p2p_dml.kernels import _native
from p2p_dml.kernels._power import power_mean

if os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is imported
    pytest.skip("set TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")
kernels: Any = pytest.importorskip("p2p_dml.kernels._triton_means")

# numpy's, of what a GPU just computes
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEGREES = (1.0, 1.5, 3.0, 9.0, 31.0, 4.123456789)
DTYPES = (torch.float32, torch.float64)
SIZES = ((1, 1), (2, 7), (3, 1024), (5, 1500), (8, 9), (21, 1030))


def draw(count: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count * size)
    drawn = torch.randn((count, size), generator=generator, dtype=torch.float64).to(dtype)
    return [x.clone() for x in drawn]


def weights_of(count: int) -> list[float]:
    return [2 * (j + 1) / (count * (count + 1)) for j in range(count)]


def found(xs: Sequence[Tensor], p: float) -> tuple[Tensor, Tensor]:
    """Value and slope."""
    out, slope = torch.empty_like(xs[0]), torch.empty_like(xs[0])
    kernels.power_mean(xs, weights_of(len(xs)), p, out, slope)
    return out, slope


def expected(xs: Sequence[Tensor], p: float) -> tuple[Tensor, Tensor]:
    """Value and slope by torch, in float64."""
    wide = [x.double() for x in xs]
    slope = torch.empty_like(wide[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "library", None)
        return power_mean(wide, weights_of(len(xs)), p, slope=slope), slope


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", DEGREES)
@pytest.mark.parametrize(("count", "size"), SIZES)
def test_values_of_one_sign(count: int, size: int, p: float, dtype: torch.dtype) -> None:
    xs, eps = [x.abs() for x in draw(count, size, dtype)], torch.finfo(dtype).eps
    (mean, slope), (exact, steep) = found(xs, p), expected(xs, p)
    torch.testing.assert_close(mean.double(), exact, rtol=16 * eps, atol=0)
    assert ((slope - steep).abs() <= 64 * eps * torch.stack(xs).amax(0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", DEGREES)
def test_where_signs_differ_the_mirror_image_is_exact(p: float, dtype: torch.dtype) -> None:
    xs, eps = draw(5, 1500, dtype), torch.finfo(dtype).eps
    mean, exact = found(xs, p)[0].double(), expected(xs, p)[0]
    largest = torch.stack(xs).abs().amax(0)
    images = [(x / largest).sign() * (x / largest).abs() ** p for x in (mean, exact)]
    assert ((images[0] - images[1]).abs() <= 2 * (p + 13) * eps).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_and_views_that_begin_anywhere(dtype: torch.dtype) -> None:
    whole = draw(1, 5000, dtype)[0]
    xs, out = [whole[begin : begin + 1030] for begin in (1, 1032, 2066)], whole.new_empty(1030)
    kernels.mean(xs, [0.2, 0.3, 0.5], out)
    torch.testing.assert_close(out, 0.2 * xs[0] + 0.3 * xs[1] + 0.5 * xs[2])
    assert torch.equal(found(xs, 3.0)[0], found([x.clone() for x in xs], 3.0)[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_spoils_its_own_coordinate_only(bad: float) -> None:
    xs = draw(12, 40, torch.float32)
    clean = found(xs, 4.5)
    xs[10][7] = bad
    for got, before in zip(found(xs, 4.5), clean, strict=True):
        assert got.isnan().nonzero().flatten().tolist() == [7]
        assert torch.equal(got[:7], before[:7]) and torch.equal(got[8:], before[8:])


@pytest.mark.parametrize("p", [1.5, 9.0, 301.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_floats(dtype: torch.dtype, p: float) -> None:
    info = torch.finfo(dtype)
    tiny = info.tiny * info.eps
    extremes = [0.0, tiny, -tiny, info.tiny, 1.0, -1e30, 1e30, info.max, -info.max]
    values = torch.tensor(extremes, dtype=dtype)
    for got in found([values.roll(shift) for shift in range(9)], p):
        assert got.isfinite().all()
    same, flat = found([values] * 3, p)
    torch.testing.assert_close(same, values, rtol=16 * info.eps, atol=tiny)
    assert (flat.abs() <= 16 * info.eps * values.abs()).all()


def test_opposites_cancel_without_a_slope() -> None:
    xs = [torch.tensor([0.0, 2.0, -0.0]), torch.tensor([0.0, -2.0, 0.0])]
    out, slope = torch.ones(3), torch.ones(3)
    kernels.power_mean(xs, [0.5, 0.5], 3.0, out, slope)
    assert out.tolist() == [0.0, 0.0, 0.0] and slope.tolist() == [0.0, 0.0, 0.0]


def test_the_result_may_take_a_models_place_and_raises_its_version() -> None:
    xs = draw(3, 1100, torch.float32)
    exact, version = found(xs, 3.0)[0], xs[1]._version
    kernels.power_mean(xs, weights_of(3), 3.0, xs[1], None)
    assert torch.equal(xs[1], exact)
    assert xs[1]._version == version + 1


def test_no_values() -> None:
    empty = torch.empty(0)
    kernels.mean([empty], [1.0], empty)
    kernels.power_mean([empty], [1.0], 3.0, empty, empty.clone())
