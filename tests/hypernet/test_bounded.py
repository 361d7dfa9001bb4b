"""The degree network: bounds, step size, no saturation, explicit randomness, plain state."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from p2p_dml.hypernet.bounded import EMBEDDING, HyperNet, HyperNetState

START = {"representation": 3.0, "decision": 9.0}


def pull(**signal: float) -> dict[str, float]:
    return signal


def fresh(net: HyperNet, seed: int = 0) -> HyperNetState:
    return net.init(START, torch.Generator().manual_seed(seed))


def test_first_degrees_are_the_given_ones() -> None:
    net = HyperNet()
    assert net.degrees(fresh(net)) == pytest.approx(START, rel=1e-11)


def fresh_for(start: dict[str, float]) -> HyperNetState:
    return HyperNet().init(start, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("signal", [-0.8, -0.1, 0.1, 0.8])
def test_a_step_changes_ln_p_by_rate_times_the_averaged_signal(signal: float) -> None:
    net = HyperNet(rate=0.01, memory=0.75, p_max=21.0)
    after = net.degrees(net.step(fresh(net), pull(decision=signal)))
    change = math.log(after["decision"] / START["decision"])
    assert change == pytest.approx(0.01 * 0.25 * signal, rel=0.02)
    assert after["representation"] == pytest.approx(START["representation"], rel=1e-3)


def test_the_signal_is_averaged_over_rounds() -> None:
    net = HyperNet(memory=0.5)
    state = net.step(net.step(fresh(net), pull(decision=0.4)), pull(decision=0.8))
    assert state.signal == pytest.approx({"representation": 0.0, "decision": 0.5})


@pytest.mark.parametrize("wave", [lambda t: 1.0, lambda t: -1.0, lambda t: math.sin(0.7 * t)])
def test_degrees_never_leave_their_range(wave: Callable[[float], float]) -> None:
    net = HyperNet(rate=50.0, memory=0.0, p_max=15.0)
    state = fresh(net)
    for round in range(60):
        state = net.step(state, pull(representation=wave(round), decision=-wave(round)))
        assert all(1 <= p <= 15 for p in net.degrees(state).values())


@pytest.mark.parametrize(("towards", "bound"), [(-1.0, 1.0), (1.0, 15.0)])
def test_a_bound_is_met_exactly_and_left_at_once(towards: float, bound: float) -> None:
    net = HyperNet(rate=2.0, memory=0.0)
    state = fresh(net)
    for _ in range(30):
        state = net.step(state, pull(decision=towards))
    assert net.degrees(state)["decision"] == pytest.approx(bound, rel=1e-11)
    assert bound > 1 or net.degrees(state)["decision"] == 1.0
    gentle = HyperNet(rate=0.01, memory=0.0)
    away = gentle.degrees(gentle.step(state, pull(decision=-towards)))["decision"]
    assert math.log(away / bound) == pytest.approx(-0.01 * towards, rel=0.02)


def test_the_network_itself_learns_not_the_base_alone() -> None:
    net = HyperNet(rate=1.0, memory=0.0)
    first = fresh(net)
    state = net.step(net.step(first, pull(decision=-0.5)), pull(decision=-0.5))
    moved = {n for n in first.weights if not torch.equal(first.weights[n], state.weights[n])}
    assert moved >= {"embedding", "hidden/0", "hidden/1", "hidden/2", "head", "base"}


def test_a_seed_gives_the_network_and_the_global_generator_is_not_touched() -> None:
    net = HyperNet()
    before = torch.random.get_rng_state()
    one, same, other = fresh(net, 7), fresh(net, 7), fresh(net, 8)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one.weights[name], same.weights[name]) for name in one.weights)
    assert not torch.equal(one.weights["embedding"], other.weights["embedding"])


def test_a_step_leaves_the_old_state_alone_and_works_without_grad_mode() -> None:
    net = HyperNet()
    state = fresh(net)
    before = {name: w.clone() for name, w in state.weights.items()}
    with torch.no_grad():
        after = net.step(state, pull(representation=0.3, decision=-0.3))
    assert all(torch.equal(state.weights[name], w) for name, w in before.items())
    assert set(state.signal.values()) == {0.0}
    assert not any(w.requires_grad for w in after.weights.values())
    assert all(w.dtype == torch.float64 for w in after.weights.values())


def test_every_group_of_the_model_gets_a_head() -> None:
    for groups in (["decision"], [f"layer{i}" for i in range(30)]):
        state = fresh_for(dict.fromkeys(groups, 2.0))
        assert list(HyperNet().degrees(state)) == groups
        assert state.weights["head"].shape == (len(groups), 64)


def test_a_degree_that_is_not_given_is_drawn_evenly_in_its_logarithm() -> None:
    drawn = HyperNet(p_max=9.0).degrees(
        HyperNet(p_max=9.0).init({str(i): None for i in range(2000)}, torch.Generator())
    )
    logs = torch.tensor([math.log(p) / math.log(9) for p in drawn.values()])
    assert all(1 <= p <= 9 for p in drawn.values())
    assert logs.mean().item() == pytest.approx(1 / 2, abs=0.03)
    assert logs.square().mean().item() == pytest.approx(1 / 3, abs=0.03)


def test_a_step_is_along_the_gradient_of_ln_p() -> None:
    """Oracle: autograd through the definition, group by group."""
    net = HyperNet(rate=0.3, memory=0.0, p_max=1e6)
    state = net.step(net.step(fresh(net), pull(representation=0.4, decision=-0.7)), pull())
    cosines = {"representation": 0.2, "decision": -0.1}
    after = net.step(state, pull(**cosines)).weights
    expected = {name: w.clone() for name, w in state.weights.items()}
    for row, cosine in enumerate(cosines.values()):
        leaves = {name: w.clone().requires_grad_() for name, w in state.weights.items()}
        by_name = dict(
            zip(
                leaves,
                torch.autograd.grad(log_degree(leaves, row), list(leaves.values())),
                strict=True,
            )
        )
        length = sum(g.square().sum() for g in by_name.values())
        for name, g in by_name.items():
            expected[name] += 0.3 * cosine * g / length
    for name, w in expected.items():
        torch.testing.assert_close(after[name], w, rtol=1e-12, atol=1e-13)


def log_degree(weights: dict[str, Tensor], row: int) -> Tensor:
    """ln p = base + head · h, with h three leaky layers over [cos, sin] of the embedding."""
    angle = weights["embedding"] * (math.pi / 2)
    h = torch.cat([angle.cos(), angle.sin()]) / math.sqrt(EMBEDDING)
    for depth in range(3):
        h = torch.nn.functional.leaky_relu(weights[f"hidden/{depth}"] @ h, 0.1)
    return weights["base"][row] + weights["head"][row] @ h


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p_max": 0.5}, "p_max = 0.5: expected"),
        ({"p_max": math.inf}, "p_max = inf: expected"),
        ({"rate": -1.0}, "rate = -1.0: expected"),
        ({"rate": math.nan}, "rate = nan: expected"),
        ({"memory": 1.0}, "memory = 1.0: expected"),
        ({"memory": -0.1}, "memory = -0.1: expected"),
    ],
)
def test_values_out_of_range_are_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperNet(**changed)


@pytest.mark.parametrize("degree", [0.9, 15.1, math.nan])
def test_a_first_degree_out_of_range_is_refused(degree: float) -> None:
    with pytest.raises(ValueError, match=r"decision: expected a degree from 1 to 15\.0"):
        HyperNet().init({"decision": degree}, torch.Generator())
