"""The power mean by its mirror images, and its derivative against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from p2p_dml.kernels._power import power_mean, signed_power
from p2p_dml.kernels.means import mix_power_mean, weighted_power_mean
from p2p_dml.types import Inbox, Neighbourhood, Payload

pytestmark = pytest.mark.usefixtures("backend")

WEIGHTS = [0.1, 0.2, 0.3, 0.25, 0.15]
DEGREES = (1.0, 1.5, 2.0, 3.0, 9.0, 21.0)


def draw(count: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    return list(torch.randn((count, size), generator=generator, dtype=torch.float64))


def mirror(w: Tensor, p: float) -> Tensor:
    return signed_power(w, p, out=torch.empty_like(w))


def power_mean_slope(xs: list[Tensor], weights: list[float], p: float) -> Tensor:
    slope = torch.empty_like(xs[0])
    power_mean(xs, weights, p, slope=slope)
    return slope


@pytest.mark.parametrize("p", DEGREES)
def test_the_inverse_undoes_the_map_and_keeps_signs(p: float) -> None:
    (w,) = draw(1, 200)
    z = mirror(w, p)
    assert torch.equal(z.sign(), w.sign())
    torch.testing.assert_close(mirror(z, 1 / p), w, rtol=1e-13, atol=0)


def test_the_map_by_hand() -> None:
    w = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    assert mirror(w, 3.0).tolist() == [-8.0, 0.0, 27.0]
    assert mirror(w, 2.0).tolist() == [-4.0, 0.0, 9.0]
    assert mirror(torch.tensor([-8.0, 27.0]), 1 / 3).tolist() == pytest.approx([-2.0, 3.0])


@pytest.mark.parametrize("p", DEGREES)
def test_the_mirror_image_of_the_power_mean_is_the_mean_of_the_images(p: float) -> None:
    xs = draw(5, 50)
    mean_image = sum(w * mirror(x, p) for x, w in zip(xs, WEIGHTS, strict=True))
    torch.testing.assert_close(mirror(weighted_power_mean(xs, WEIGHTS, p), p), mean_image)


@pytest.mark.parametrize("p", DEGREES)
@pytest.mark.parametrize("signs", ["one", "mixed"])
def test_the_slope_equals_finite_differences(p: float, signs: str) -> None:
    xs = [x.abs() if signs == "one" else x for x in draw(5, 400)]
    h = 1e-5
    ends = [weighted_power_mean(xs, WEIGHTS, p + k * h) for k in range(3)]
    # One-sided and of second order, as the degree cannot go below 1.
    expected = (4 * ends[1] - 3 * ends[0] - ends[2]) / (2 * h)
    slope = power_mean_slope(xs, WEIGHTS, p)
    largest = torch.stack(xs).abs().amax(0)
    # Where positive and negative inputs nearly cancel the mean has no useful expansion in p.
    smooth = weighted_power_mean(xs, WEIGHTS, p).abs() > 0.3 * largest
    assert smooth.sum() > 100
    torch.testing.assert_close(slope[smooth], expected[smooth], rtol=1e-4, atol=1e-7)
    assert (slope.abs() <= largest).all()


def test_the_slope_by_hand() -> None:
    # p = 1, inputs 1 and e^-1 with weights a and b: S = a + b/e, S' = -b/e, times S'/S - ln S.
    a, b = 0.25, 0.75
    xs = [torch.tensor(1.0, dtype=torch.float64), torch.tensor(math.exp(-1), dtype=torch.float64)]
    s, change = a + b / math.e, -b / math.e
    expected = change - s * math.log(s)
    assert power_mean_slope(xs, [a, b], 1.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", DEGREES)
@pytest.mark.parametrize("values", [(0.0, 0.0), (2.0, -2.0), (3.0, 3.0), (0.0, -0.0)])
def test_the_slope_is_0_where_the_mean_is_0_or_all_agree(
    p: float, values: tuple[float, float]
) -> None:
    xs = [torch.full((3,), value, dtype=torch.float64) for value in values]
    assert power_mean_slope(xs, [0.5, 0.5], p).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("exponent", [-90, 90])
def test_the_slope_scales_with_its_inputs_to_the_bit(exponent: int) -> None:
    xs = [x.float() for x in draw(5, 100)]
    factor = 2.0**exponent
    scaled = power_mean_slope([x * factor for x in xs], WEIGHTS, 5.5)
    assert torch.equal(scaled, power_mean_slope(xs, WEIGHTS, 5.5) * factor)


@pytest.mark.parametrize("p", [1.0, 1.5, 9.0, 31.0, 301.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_of_extreme_floats_is_finite(p: float, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    tiny = info.tiny * info.eps
    values = torch.tensor([0.0, tiny, -tiny, 1.0, -1e30, 1e30, info.max, -info.max], dtype=dtype)
    xs = [values.roll(shift) for shift in range(8)]
    for weights in ([1 / 8] * 8, [1e-38, *[(1 - 1e-38) / 7] * 7]):
        assert power_mean_slope(xs, weights, p).isfinite().all()


def test_near_cancellation_the_slope_is_cut_at_the_largest_input() -> None:
    # Degree 3: S = 1/9 - 8/9 (1/2)^3 is 0 but for the nudge, and S' is not.
    xs = [torch.tensor([x, -x], dtype=torch.float64) for x in (4.0, -2.0)]
    nudge = 1e-9
    slope = power_mean_slope(xs, [1 / 9 + nudge, 8 / 9 - nudge], 3.0)
    assert slope.tolist() == [4.0, -4.0]


@pytest.mark.parametrize("p", [1.0, 2.0, 7.0])
def test_mixing_gives_the_slope_of_the_mean_it_takes_in_the_same_pass(p: float) -> None:
    own, other = torch.linspace(-1, 2, 9), torch.linspace(3, -2, 9)
    hood = Neighbourhood(1, 0.6, {0: 0.4}, {0: 0.4})
    inbox = Inbox(hood, {0: Payload({"a": other})})
    mean, slope = {"a": own.clone()}, {"a": torch.empty(9)}
    mix_power_mean(mean, inbox, {"a": p}, slope)
    assert torch.equal(slope["a"], power_mean_slope([other, own], [0.4, 0.6], p))
    expected = weighted_power_mean([other, own], [0.4, 0.6], p)
    torch.testing.assert_close(mean["a"], expected, rtol=4e-6, atol=1e-6)
    mix_power_mean(mean, Inbox(hood, {}), {"a": p}, slope)
    assert not slope["a"].any()


def test_degrees_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        power_mean_slope(draw(5, 2), WEIGHTS, 0.5)


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_the_slope_is_not_a_number_where_an_input_is_not_finite(p: float) -> None:
    xs = draw(5, 40)
    xs[2][3], xs[4][5] = math.nan, math.inf
    spoilt = power_mean_slope(xs, WEIGHTS, p).isnan()
    assert spoilt.nonzero().flatten().tolist() == [3, 5]


def test_the_slope_of_half_precision_is_computed_in_float32() -> None:
    xs = [x.bfloat16() for x in draw(5, 100)]
    wide = power_mean_slope([x.float() for x in xs], WEIGHTS, 4.5)
    assert torch.equal(power_mean_slope(xs, WEIGHTS, 4.5), wide.bfloat16())
