"""Inner products: hand numbers, exact sums, layouts."""

from __future__ import annotations

import math

import pytest
import torch

from p2p_dml.kernels.products import CHUNK, dots

pytestmark = pytest.mark.usefixtures("backend")


def test_dots_by_hand() -> None:
    x, y = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([4.0, 5.0, 0.5])
    assert dots(x, y) == (-4.5, 14.0, 41.25)
    assert dots(torch.tensor(3.0), torch.tensor(-2.0)) == (-6.0, 9.0, 4.0)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000, CHUNK + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dots_equal_exact_sums(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    x, y = torch.randn((2, size), generator=generator, dtype=torch.float64).to(dtype)
    a, b = x.double().tolist(), y.double().tolist()
    expected = [
        math.fsum(u * v for u, v in zip(left, right, strict=True))
        for left, right in ((a, b), (a, a), (b, b))
    ]
    scale = math.sqrt(expected[1] * expected[2])
    assert dots(x, y) == pytest.approx(expected, rel=1e-13, abs=1e-13 * scale)


def test_float32_is_summed_in_float64() -> None:
    x = torch.tensor([1e8, 1.0, -1e8] * 20)
    xy, xx, _ = dots(x, torch.ones(60))
    assert xy == 20.0
    assert xx == 40 * float(torch.tensor(1e8)) ** 2 + 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layout_does_not_matter(dtype: torch.dtype) -> None:
    x = torch.arange(12).reshape(3, 4).to(dtype).requires_grad_()
    assert dots(x.t(), x.t()) == (506.0, 506.0, 506.0)
