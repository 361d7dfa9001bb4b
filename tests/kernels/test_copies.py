"""A copy that is looked through on the way: the same bytes, and the truth about them."""

from __future__ import annotations

import pytest
import torch

from p2p_dml.kernels import _native
from p2p_dml.kernels.copies import copy_checked

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [0, 1, 63, 64, 65, 5000]


@pytest.fixture(params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(_native, "library", None)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int8])
def test_the_same_bytes(dtype: torch.dtype, size: int) -> None:
    x = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    out = torch.zeros_like(x)
    assert copy_checked(x, out)
    assert torch.equal(x, out)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("place", [0, 1, 62, 64, 4999])
@pytest.mark.parametrize("special", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_no_number_is_found_and_copied(
    dtype: torch.dtype, special: float, place: int
) -> None:
    x = torch.zeros(5000, dtype=dtype)
    x[place] = special
    out = torch.ones_like(x)
    assert not copy_checked(x, out)
    assert torch.equal(x.nan_to_num(nan=7.0), out.nan_to_num(nan=7.0))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    """Their sum is not."""
    x = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    assert copy_checked(x, torch.empty_like(x))


@pytest.mark.usefixtures("kernels")
def test_strides_are_followed_and_the_version_goes_up() -> None:
    x = torch.arange(12.0).view(3, 4).t()
    out = torch.zeros(4, 3)
    before = out._version
    assert copy_checked(x, out)
    assert torch.equal(x, out)
    assert out._version > before
