"""Kernels on a GPU against the CPU: fused means and torch's, masks and their codes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from p2p_dml.kernels import _fused, entropy
from p2p_dml.kernels._power import power_mean
from p2p_dml.kernels.mapped import Term, mapped_mean
from p2p_dml.kernels.masks import count, ones, pack, top_share, unpack
from p2p_dml.kernels.means import weighted_mean, weighted_power_mean
from p2p_dml.kernels.products import dots

pytestmark = pytest.mark.cuda

WEIGHTS = (0.1, 0.2, 0.3, 0.25, 0.15)
DEGREES = (1.0, 1.5, 3.0, 4.123456789, 9.0, 31.0)
SIZES = (1, 1000, 4096, 300_001)
DTYPES = (torch.float32, torch.float64)
LOOSE = {torch.float32: 2e-6, torch.float64: 1e-13}


@pytest.fixture(params=["fused", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a test once with the fused kernels, if Triton is there, and once without."""
    way: str = request.param
    if way == "torch":
        monkeypatch.setattr(_fused, "kernels", lambda: None)
    elif importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    yield way


def draw(size: int, dtype: torch.dtype, count: int = len(WEIGHTS)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    drawn = torch.randn((count, size), generator=generator, dtype=torch.float64)
    return [x.to(dtype) for x in drawn]


def test_the_fused_kernels_are_used_where_triton_is(gpu: torch.device) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    one = torch.ones(1, device=gpu)
    assert _fused.takes([one, one])
    assert not _fused.takes([one, one.double()])
    assert not _fused.takes([one.bfloat16()])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", DEGREES)
@pytest.mark.parametrize("size", SIZES)
def test_power_means_of_one_sign_with_slopes(
    gpu: torch.device, size: int, p: float, dtype: torch.dtype
) -> None:
    xs = [x.abs() for x in draw(size, dtype)]
    expected_slope = torch.empty(size, dtype=torch.float64)
    expected = power_mean([x.double() for x in xs], WEIGHTS, p, slope=expected_slope)
    slope = torch.empty(size, dtype=dtype, device=gpu)
    found = power_mean([x.to(gpu) for x in xs], WEIGHTS, p, slope=slope)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=LOOSE[dtype], atol=0)
    error = (slope.double().cpu() - expected_slope).abs()
    assert (error <= 10 * LOOSE[dtype] * torch.stack(xs).amax(0)).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", DEGREES)
def test_where_signs_differ_the_mirror_image_is_exact(
    gpu: torch.device, p: float, dtype: torch.dtype
) -> None:
    xs = draw(30_001, dtype)
    expected = weighted_power_mean([x.double() for x in xs], WEIGHTS, p)
    found = weighted_power_mean([x.to(gpu) for x in xs], WEIGHTS, p).cpu().double()
    largest = torch.stack(xs).abs().amax(0)
    images = [(x / largest).sign() * (x / largest).abs() ** p for x in (found, expected)]
    assert ((images[0] - images[1]).abs() <= (p + 10) * LOOSE[dtype]).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("p", [1.5, 9.0, 301.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_floats(gpu: torch.device, dtype: torch.dtype, p: float) -> None:
    info = torch.finfo(dtype)
    extremes = [0.0, info.tiny, -info.tiny, 1.0, -1e30, 1e30, info.max, -info.max]
    values = torch.tensor(extremes, dtype=dtype, device=gpu)
    slope = torch.empty_like(values)
    xs = [values.roll(shift) for shift in range(8)]
    assert power_mean(xs, [1 / 8] * 8, p, slope=slope).isfinite().all()
    assert slope.isfinite().all()
    same = power_mean([values] * 3, [0.25, 0.25, 0.5], p)
    torch.testing.assert_close(same, values, rtol=LOOSE[dtype], atol=info.tiny)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_spoils_its_own_coordinate_only(
    gpu: torch.device, bad: float
) -> None:
    xs = [x.to(gpu) for x in draw(5000, torch.float32)]
    clean = weighted_power_mean(xs, WEIGHTS, 4.5)
    xs[1][7] = bad
    found = weighted_power_mean(xs, WEIGHTS, 4.5)
    assert found.isnan().nonzero().flatten().tolist() == [7]
    assert torch.equal(found[8:], clean[8:])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("p", [1.0, 3.0])
def test_means_in_place_of_a_model_and_of_views_that_begin_anywhere(
    gpu: torch.device, p: float
) -> None:
    whole = draw(50_000, torch.float32, count=1)[0].to(gpu)
    xs = [whole[begin : begin + 9_001] for begin in (1, 9_100, 20_003, 30_000, 40_002)]
    expected = weighted_power_mean([x.clone() for x in xs], WEIGHTS, p)
    version = xs[2]._version
    weighted_power_mean(xs, WEIGHTS, p, out=xs[2])
    assert torch.equal(xs[2], expected)
    assert xs[2]._version > version


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, *DTYPES])
def test_weighted_means(gpu: torch.device, dtype: torch.dtype) -> None:
    xs = draw(100_001, dtype)
    expected = weighted_mean([{"w": x} for x in xs], WEIGHTS)["w"]
    found = weighted_mean([{"w": x.to(gpu)} for x in xs], WEIGHTS)["w"]
    torch.testing.assert_close(found.cpu(), expected)


def test_mapped_means_and_inner_products(gpu: torch.device) -> None:
    xs = draw(100_001, torch.float64, count=3)
    rows = zip(xs, (0.5, 0.3, 0.2), (3.0, 5.0, 1.0), strict=True)
    terms = [Term(x=x, weight=a, degree=q) for x, a, q in rows]
    moved = [Term(x=t.x.to(gpu), weight=t.weight, degree=t.degree) for t in terms]
    torch.testing.assert_close(mapped_mean(moved, 3.0).cpu(), mapped_mean(terms, 3.0))
    assert dots(xs[0].to(gpu), xs[1].to(gpu)) == pytest.approx(dots(xs[0], xs[1]), rel=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *DTYPES])
def test_masks_of_the_largest_values(gpu: torch.device, dtype: torch.dtype, share: float) -> None:
    x = draw(100_003, dtype, count=1)[0]
    zeros_of_both_signs = torch.where(x > 1, x, 0 * x)
    for values in (x, zeros_of_both_signs, (2 * x).round(), torch.ones_like(x)):
        assert top_share(values.to(gpu), share).cpu().equal(top_share(values, share))


def test_values_that_are_no_numbers_are_a_failed_training(gpu: torch.device) -> None:
    with pytest.raises(FloatingPointError, match="not all numbers"):
        top_share(torch.tensor([1.0, math.nan, 0.0], device=gpu), 0.5)


def test_masks_are_packed_counted_and_coded_as_on_the_cpu(gpu: torch.device) -> None:
    shapes, numels = [(37, 91), (1, 5), (1000, 3)], [3367, 5, 3000]
    drawn = [
        [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3 for shape in shapes]
        for seed in range(9)
    ]
    packed = [pack([mask.to(gpu) for mask in masks]) for masks in drawn]
    on_cpu = [pack(masks) for masks in drawn]
    assert all(x.device == gpu and x.cpu().equal(y) for x, y in zip(packed, on_cpu, strict=True))
    assert count(packed, sum(numels)).cpu().equal(count(on_cpu, sum(numels)))
    assert ones(packed[0], numels) == ones(on_cpu[0], numels)
    found = unpack(packed[0], shapes)
    assert all(x.cpu().equal(y) for x, y in zip(found, drawn[0], strict=True))
    code = entropy.encode(packed[0].cpu(), numels)
    assert code.numel() < on_cpu[0].numel()
    assert entropy.decode(code, numels).equal(on_cpu[0])
