"""The paper's network: softmax over odd degrees, the chain rule, and where it cannot go."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from p2p_dml.hypernet.paper import PaperNet, PaperNetState

DRAWN: Mapping[str, float | None] = {"representation": None, "decision": None}


def fresh(net: PaperNet, seed: int = 0, start: Mapping[str, float | None] = DRAWN) -> PaperNetState:
    return net.init(start, torch.Generator().manual_seed(seed))


def pull(**signal: float) -> dict[str, float]:
    return signal


def degree(weights: Mapping[str, Tensor], row: int, candidates: Tensor) -> Tensor:
    """The definition: p = sum_k softmax_k P_k over three ReLU layers of the embedding."""
    h = weights["embedding"]
    for depth in range(3):
        h = torch.relu(weights[f"hidden/{depth}"] @ h + weights[f"offset/{depth}"])
    share = torch.softmax(weights["head"][row] @ h + weights["head_offset"][row], 0)
    return share @ candidates


@pytest.mark.parametrize(("p_max", "last"), [(15.0, 15), (15.9, 15), (17.0, 17), (3.0, 3)])
def test_a_degree_is_the_softmaxs_mean_of_odd_degrees(p_max: float, last: int) -> None:
    net = PaperNet(p_max=p_max)
    state = fresh(net)
    odd = torch.arange(1, last + 1, 2, dtype=torch.float64)
    for row, p in enumerate(net.degrees(state).values()):
        assert p == pytest.approx(degree(state.weights, row, odd).item(), rel=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.03])
def test_a_step_is_the_chain_rule_through_the_whole_network(rate: float) -> None:
    """Descent on dL/dp = -dot: weights move by rate · sum_groups dot · dp/dweights (autograd)."""
    net = PaperNet(rate=rate)
    state = net.step(fresh(net), pull(representation=3.0, decision=-2.0))
    dots = {"representation": 0.7, "decision": -1.9}
    leaves = {name: w.clone().requires_grad_() for name, w in state.weights.items()}
    odd = torch.arange(1, 16, 2, dtype=torch.float64)
    rise = sum(dot * degree(leaves, row, odd) for row, dot in enumerate(dots.values()))
    assert isinstance(rise, Tensor)
    gradients = torch.autograd.grad(rise, list(leaves.values()))
    after = net.step(state, pull(**dots)).weights
    for name, g in zip(leaves, gradients, strict=True):
        assert g.abs().max() > 0
        torch.testing.assert_close(after[name], state.weights[name] + rate * g, rtol=1e-12, atol=0)


def test_the_rate_is_the_papers() -> None:
    assert PaperNet().rate == 0.01


@pytest.mark.parametrize("towards", [1.0, -1.0])
def test_it_saturates_within_the_odd_degrees(towards: float) -> None:
    """What the default network is there to avoid: far out, the same pull moves it no more."""
    net = PaperNet(rate=1.0)
    state = fresh(net)
    moves = []
    for _ in range(200):
        before = net.degrees(state)["decision"]
        state = net.step(state, pull(decision=towards))
        after = net.degrees(state)["decision"]
        assert 1 <= after <= 15
        moves.append((after - before) * towards)
    assert moves[-1] < 1e-3 * max(moves)


@pytest.mark.parametrize("start", [1.01, 3.0, 8.0, 14.9])
def test_a_given_start_is_met_whatever_is_drawn(start: float) -> None:
    for seed in range(3):
        degrees = PaperNet().degrees(fresh(PaperNet(), seed, {"a": None, "b": start}))
        assert degrees["b"] == pytest.approx(start, rel=1e-9)
        assert (
            degrees["a"] == PaperNet().degrees(fresh(PaperNet(), seed, {"a": None, "b": 2.0}))["a"]
        )


@pytest.mark.parametrize("start", [0.0, 1.0, 15.0, 20.0, math.nan])
def test_a_start_that_a_softmax_cannot_take_is_refused(start: float) -> None:
    with pytest.raises(ValueError, match=r"decision: expected a degree between 1 and 15\.0"):
        fresh(PaperNet(), start={"decision": start})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p_max": 2.9}, "p_max = 2.9: expected"),
        ({"p_max": math.inf}, "p_max = inf: expected"),
        ({"rate": -1.0}, "rate = -1.0: expected"),
        ({"rate": math.nan}, "rate = nan: expected"),
    ],
)
def test_values_out_of_range_are_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaperNet(**changed)


def test_seeds_give_different_degrees_and_the_global_generator_is_not_touched() -> None:
    before = torch.random.get_rng_state()
    drawn = [PaperNet().degrees(fresh(PaperNet(), seed)) for seed in (1, 1, 2, 3)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert drawn[0] == drawn[1]
    assert len({each["decision"] for each in drawn}) == 3


def test_a_step_leaves_the_old_state_alone() -> None:
    net = PaperNet(rate=1.0)
    state = fresh(net)
    before = {name: w.clone() for name, w in state.weights.items()}
    net.step(state, pull(decision=1.0))
    assert all(torch.equal(state.weights[name], w) for name, w in before.items())
