"""The degree network: bounds, step size, no saturation, explicit randomness, plain state."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from p2p_dml.hypernet import HyperNet, HyperNetState

START = {"representation": 3.0, "decision": 9.0}


def fresh(net: HyperNet, seed: int = 0) -> HyperNetState:
    return net.init(START, torch.Generator().manual_seed(seed))


def test_first_degrees_are_the_given_ones() -> None:
    net = HyperNet()
    assert net.degrees(fresh(net)) == pytest.approx(START, rel=1e-11)


@pytest.mark.parametrize("signal", [-0.8, -0.1, 0.1, 0.8])
def test_a_step_changes_ln_p_by_rate_times_the_averaged_signal(signal: float) -> None:
    net = HyperNet(rate=0.01, memory=0.75, p_max=21.0)
    after = net.degrees(net.step(fresh(net), {"decision": signal}))
    change = math.log(after["decision"] / START["decision"])
    assert change == pytest.approx(0.01 * 0.25 * signal, rel=0.02)
    assert after["representation"] == pytest.approx(START["representation"], rel=1e-3)


def test_the_signal_is_averaged_over_rounds() -> None:
    net = HyperNet(memory=0.5)
    state = net.step(net.step(fresh(net), {"decision": 0.4}), {"decision": 0.8})
    assert state.signal == pytest.approx({"representation": 0.0, "decision": 0.5})


@pytest.mark.parametrize("wave", [lambda t: 1.0, lambda t: -1.0, lambda t: math.sin(0.7 * t)])
def test_degrees_never_leave_their_range(wave: Callable[[float], float]) -> None:
    net = HyperNet(rate=50.0, memory=0.0, p_max=15.0)
    state = fresh(net)
    for round in range(60):
        state = net.step(state, {"representation": wave(round), "decision": -wave(round)})
        assert all(1 <= p <= 15 for p in net.degrees(state).values())


@pytest.mark.parametrize(("towards", "bound"), [(-1.0, 1.0), (1.0, 15.0)])
def test_a_bound_is_met_exactly_and_left_at_once(towards: float, bound: float) -> None:
    net = HyperNet(rate=2.0, memory=0.0)
    state = fresh(net)
    for _ in range(30):
        state = net.step(state, {"decision": towards})
    assert net.degrees(state)["decision"] == pytest.approx(bound, rel=1e-11)
    assert bound > 1 or net.degrees(state)["decision"] == 1.0
    gentle = HyperNet(rate=0.01, memory=0.0)
    away = gentle.degrees(gentle.step(state, {"decision": -towards}))["decision"]
    assert math.log(away / bound) == pytest.approx(-0.01 * towards, rel=0.02)


def test_the_network_itself_learns_not_the_base_alone() -> None:
    net = HyperNet(rate=1.0, memory=0.0)
    first = fresh(net)
    state = net.step(net.step(first, {"decision": -0.5}), {"decision": -0.5})
    moved = {n for n in first.weights if not torch.equal(first.weights[n], state.weights[n])}
    assert moved >= {"embedding", "hidden/0", "hidden/1", "hidden/2", "head/decision"}


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
        after = net.step(state, {"representation": 0.3, "decision": -0.3})
    assert all(torch.equal(state.weights[name], w) for name, w in before.items())
    assert set(state.signal.values()) == {0.0}
    assert not any(w.requires_grad for w in after.weights.values())
    assert all(w.dtype == torch.float64 for w in after.weights.values())


def test_only_the_groups_of_the_model_get_a_head() -> None:
    net = HyperNet()
    state = net.init({"decision": 2.0}, torch.Generator().manual_seed(0))
    assert state.groups == ("decision",)
    assert "head/representation" not in state.weights


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
