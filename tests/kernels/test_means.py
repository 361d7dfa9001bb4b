"""Weighted means and power means: hand numbers, closed forms, invariants, extreme floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from p2p_dml.kernels._power import signed_power
from p2p_dml.kernels.means import (
    CHUNK,
    mix_mean,
    mix_power_mean,
    weighted_mean,
    weighted_power_mean,
)
from p2p_dml.types import Inbox, Neighbourhood, Payload

pytestmark = pytest.mark.usefixtures("backend")

DEGREES = (1.0, 1.5, 2.0, 3.0, 9.0, 15.5, 31.0, 101.0)


def rows(count: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return list(torch.randn((count, *shape), generator=generator, dtype=torch.float64).to(dtype))


def reference(xs: Sequence[Tensor], weights: Sequence[float], p: float) -> Tensor:
    """Eq. (2) as printed, in float64 and without scaling."""
    total = sum(
        (w * x.double().sign() * x.double().abs() ** p for x, w in zip(xs, weights, strict=True)),
        start=torch.zeros(xs[0].shape, dtype=torch.float64),
    )
    return total.sign() * total.abs() ** (1 / p)


def inbox(heard: dict[int, Tensor], weights: dict[int, float]) -> Inbox:
    """What peer 1 hears: tensors named `w` from the peers in `heard`."""
    hood = Neighbourhood(1, 1 - sum(weights.values()), weights, weights)
    return Inbox(hood, {j: Payload({"w": x}) for j, x in heard.items()})


def test_weighted_mean_sums_in_the_given_order() -> None:
    x, y, z = rows(3, 7, dtype=torch.float32)
    got = weighted_mean([{"w": x}, {"w": y}, {"w": z}], [0.2, 0.3, 0.5])["w"]
    assert torch.equal(got, (x * 0.2).add(y, alpha=0.3).add(z, alpha=0.5))


def test_weighted_mean_by_hand() -> None:
    models = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])}]
    assert weighted_mean(models, [0.75, 0.25])["w"].tolist() == [1.5, 1.0]


def test_a_missing_neighbours_weight_returns_to_self() -> None:
    heard = inbox({0: torch.tensor([8.0])}, {0: 0.25, 2: 0.5})
    mean, power_mean = ({"w": torch.tensor([4.0])} for _ in range(2))
    mix_mean(mean, heard)
    assert mean["w"].tolist() == [5.0]
    mix_power_mean(power_mean, heard, {"w": 3.0})
    expected = (0.75 * 4**3 + 0.25 * 8**3) ** (1 / 3)
    assert power_mean["w"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("p", [1.0, 1.7, 9.0])
def test_an_isolated_peer_keeps_its_values_bit_for_bit(p: float) -> None:
    (own,) = rows(1, 50)
    alone = inbox({}, {0: 0.1, 2: 0.2, 3: 0.3})
    kept = own.clone()
    mix_power_mean({"w": kept}, alone, {"w": p})
    assert torch.equal(kept, own)


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
@pytest.mark.parametrize("size", [1, 1000, CHUNK, 2 * CHUNK + 3])
def test_mixing_in_place_gives_the_same_bits_as_a_new_tensor(p: float, size: int) -> None:
    own, left, right = rows(3, size, dtype=torch.float32)
    heard = inbox({0: left, 2: right}, {0: 0.25, 2: 0.35})
    models, weights = heard.with_own({"w": own})
    expected = weighted_power_mean([m["w"] for m in models], weights, p)
    kept = left.clone(), right.clone()
    mix_power_mean({"w": own}, heard, {"w": p})
    assert torch.equal(own, expected)
    assert torch.equal(left, kept[0]) and torch.equal(right, kept[1])


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_a_tensor_with_gaps_is_mixed_in_place_too(p: float) -> None:
    own, other = rows(2, 24, dtype=torch.float32)
    sparse, dense = own.view(6, 4).t(), own.view(6, 4).t().contiguous()
    for mine in (sparse, dense):
        mix_power_mean({"w": mine}, inbox({0: other.view(4, 6)}, {0: 0.5}), {"w": p})
    assert torch.equal(sparse, dense)


@pytest.mark.parametrize(
    ("values", "weights", "p", "expected"),
    [
        ([1.0, 2.0], [0.5, 0.5], 2.0, math.sqrt(2.5)),
        ([1.0, -2.0], [0.5, 0.5], 3.0, -(3.5 ** (1 / 3))),
        ([1.0, -2.0], [0.5, 0.5], 2.0, -math.sqrt(1.5)),
        ([-1.0, -1.0], [0.25, 0.75], 9.0, -1.0),
        ([1.0, -1.0], [0.5, 0.5], 5.0, 0.0),
        ([0.0, 0.0], [0.5, 0.5], 7.0, 0.0),
        ([0.0, 3.0], [0.5, 0.5], 4.0, 3 * 0.5**0.25),
        ([5.0, 7.0], [0.0, 1.0], 3.0, 7.0),
        ([7.0, 5.0], [0.0, 1.0], 3.0, 5.0),
    ],
)
def test_power_mean_by_hand(
    values: list[float], weights: list[float], p: float, expected: float
) -> None:
    xs = [torch.tensor(value, dtype=torch.float64) for value in values]
    assert weighted_power_mean(xs, weights, p).item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("p", DEGREES)
def test_power_mean_equals_equation_2(p: float) -> None:
    xs, weights = rows(5, 40), [0.1, 0.2, 0.3, 0.25, 0.15]
    got = weighted_power_mean(xs, weights, p)
    torch.testing.assert_close(got, reference(xs, weights, p), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("p", DEGREES)
def test_float32_survives_small_values_and_large_degrees(p: float) -> None:
    xs = [x.abs() * 1e-3 + 1e-5 for x in rows(6, 500, dtype=torch.float32)]
    weights = [1 / 6] * 6
    scaled = reference([x.double() * 1e3 for x in xs], weights, p) / 1e3
    got = weighted_power_mean(xs, weights, p)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), scaled, rtol=2e-6, atol=0)


@pytest.mark.parametrize("p", DEGREES)
@pytest.mark.parametrize("exponent", [-90, 90])
def test_power_mean_is_homogeneous_to_the_bit(p: float, exponent: int) -> None:
    xs, weights = rows(4, 60, dtype=torch.float32), [0.4, 0.3, 0.2, 0.1]
    factor = 2.0**exponent
    scaled = weighted_power_mean([x * factor for x in xs], weights, p)
    assert torch.equal(scaled, weighted_power_mean(xs, weights, p) * factor)


@pytest.mark.parametrize("p", [1.5, *DEGREES[2:], 1001.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_power_mean_of_extreme_floats_is_finite(p: float, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    tiny = info.tiny * info.eps
    extremes = [0.0, tiny, -tiny, info.tiny, 1.0, -1e30, 1e30, info.max, -info.max]
    values = torch.tensor(extremes, dtype=dtype)
    xs = [values.roll(shift) for shift in range(9)]
    got = weighted_power_mean(xs, [1 / 9] * 9, p)
    assert got.isfinite().all()
    same = weighted_power_mean([values] * 9, [1 / 9] * 9, p)
    assert same.isfinite().all()
    torch.testing.assert_close(same, values, rtol=4 * info.eps, atol=tiny)


def test_power_mean_of_non_negative_values_rises_from_the_mean_to_the_maximum() -> None:
    xs, weights = [x.abs() for x in rows(4, 30)], [0.25] * 4
    means = torch.stack([weighted_power_mean(xs, weights, p) for p in (*DEGREES, 2000.0)])
    assert (means.diff(dim=0) > 0).all()
    torch.testing.assert_close(means[-1], torch.stack(xs).amax(0), rtol=1e-3, atol=0)


def test_power_mean_is_odd() -> None:
    xs, weights = rows(3, 30), [0.5, 0.3, 0.2]
    for p in DEGREES:
        flipped = weighted_power_mean([-x for x in xs], weights, p)
        assert torch.equal(flipped, -weighted_power_mean(xs, weights, p))


@pytest.mark.parametrize("p", [3, 5, 7, 9, 15, 21, 31])
def test_odd_powers_by_multiplication_equal_pow(p: int) -> None:
    (x,) = rows(1, 2000, dtype=torch.float32)
    fast = signed_power(x, float(p), out=torch.empty_like(x)).double()
    exact = x.double().sign() * x.double().abs() ** p
    # Each of the at most 2 log2(p) products doubles and adds half an ulp: p/2 ulp in the end.
    assert ((fast - exact).abs() <= p * 2**-24 * exact.abs() + 1e-45).all()


@pytest.mark.parametrize("p", [3.0, 15.0, 31.0])
def test_the_fast_path_agrees_with_the_real_one_next_to_it(p: float) -> None:
    xs, weights = [x.abs() for x in rows(5, 400, dtype=torch.float32)], [0.2] * 5
    fast = weighted_power_mean(xs, weights, p)
    real = weighted_power_mean(xs, weights, p * (1 + 1e-12))
    torch.testing.assert_close(fast, real, rtol=4 * 2**-23, atol=0)


def test_degree_1_is_the_weighted_mean_bit_for_bit() -> None:
    xs = rows(5, 33, dtype=torch.float32)
    weights = [0.3, 0.1, 0.1, 0.2, 0.3]
    linear = weighted_mean([{"a": x} for x in xs], weights)["a"]
    assert torch.equal(weighted_power_mean(xs, weights, 1), linear)


def test_each_tensor_has_its_own_degree() -> None:
    own = {"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}
    other = {"a": torch.tensor([3.0]), "b": torch.tensor([3.0])}
    hood = Neighbourhood(1, 0.5, {0: 0.5}, {0: 0.5})
    mix_power_mean(own, Inbox(hood, {0: Payload(other)}), {"a": 1.0, "b": 3.0})
    assert own["a"].item() == 2.0
    assert own["b"].item() == pytest.approx(14 ** (1 / 3), rel=1e-6)


@pytest.mark.parametrize("p", [0.999, 0.0, -3.0, math.nan, math.inf])
def test_degrees_out_of_range_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        weighted_power_mean(rows(2, 3), [0.5, 0.5], p)


@pytest.mark.parametrize("p", [3.0, 4.5])
def test_chunks_do_not_show(p: float) -> None:
    xs, weights = rows(2, 2 * CHUNK + 3, dtype=torch.float32), [0.5, 0.5]
    whole = weighted_power_mean(xs, weights, p)
    ends = weighted_power_mean([x[-CHUNK // 2 :] for x in xs], weights, p)
    torch.testing.assert_close(whole[-CHUNK // 2 :], ends, rtol=2**-22, atol=0)


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_layout_and_shape_do_not_matter(p: float) -> None:
    xs = rows(2, 5, 4)
    plain = weighted_power_mean(xs, [0.5, 0.5], p)
    turned = weighted_power_mean([x.t().contiguous().t() for x in xs], [0.5, 0.5], p)
    torch.testing.assert_close(plain, turned, rtol=1e-15, atol=0)
    assert weighted_power_mean([torch.empty(0, 3)] * 2, [0.5, 0.5], p).shape == (0, 3)


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_inputs_are_not_written_and_the_result_is_detached(p: float) -> None:
    xs = [x.requires_grad_() for x in rows(3, 20)]
    before = [x.detach().clone() for x in xs]
    got = weighted_power_mean(xs, [0.2, 0.3, 0.5], p)
    assert not got.requires_grad
    assert all(torch.equal(x, old) for x, old in zip(xs, before, strict=True))


def test_half_precision_is_computed_in_float32() -> None:
    xs = rows(3, 64, dtype=torch.bfloat16)
    got = weighted_power_mean(xs, [0.2, 0.3, 0.5], 9.0)
    wide = weighted_power_mean([x.float() for x in xs], [0.2, 0.3, 0.5], 9.0)
    assert torch.equal(got, wide.bfloat16())


@pytest.mark.parametrize("p", [1.5, 3.0, 9.0, 40.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_spoils_its_own_coordinate_only(p: float, bad: float) -> None:
    xs = rows(3, 70, dtype=torch.float32)
    expected = weighted_power_mean(xs, [0.2, 0.3, 0.5], p)
    xs[1][7] = bad
    got = weighted_power_mean(xs, [0.2, 0.3, 0.5], p)
    assert got[7].isnan()
    assert torch.equal(got[:7], expected[:7]) and torch.equal(got[8:], expected[8:])


@pytest.mark.parametrize("p", [1.5, 3.0, 9.0, 40.0])
def test_a_model_of_weight_0_is_not_read(p: float) -> None:
    x, y = rows(2, 20)
    spoilt = torch.full_like(x, math.nan)
    got = weighted_power_mean([x, spoilt, y], [0.4, 0.0, 0.6], p)
    assert torch.equal(got, weighted_power_mean([x, y], [0.4, 0.6], p))
