"""FedPM: steps of the scores by hand, means of samples by hand, and how samples are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.kernels.masks import pack
from p2p_dml.strategies.fedpm import FedPM, FedPMState
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import (
    Coded,
    Inbox,
    Need,
    Neighbourhood,
    Outbox,
    Payload,
    PeerId,
)

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench, Toy

SHAPES = {"body": (4, 5), "bias": (4,), "head": (3, 4)}
HOOD = Neighbourhood(1, 0.5, {0: 0.3, 2: 0.2}, {0: 0.3, 2: 0.2})


def slope(bench: Bench, seed: int = 0) -> Toy:
    """Equal starts, and a loss that is linear: a gradient of its own for each seed."""
    found = bench.drawn(SHAPES, seed)
    return bench.toy(bench.drawn(SHAPES, 1000), lambda at: clone(found))


def sample(*ones: int) -> Tensor:
    """A packed mask of all weights, set at these places."""
    bits = torch.zeros(32, dtype=torch.bool)
    bits[list(ones)] = True
    return pack([bits])


def message(bits: Tensor) -> Payload:
    return Payload({"mask": bits}, {"coding": 0.0, "base": 0.0, "have": 0.0})


def a_round(
    bench: Bench,
    strategy: FedPM,
    state: FedPMState,
    learner: Toy,
    heard: Mapping[PeerId, Tensor] = {},
) -> tuple[FedPMState, Outbox]:
    """The state after a round in which packed masks were heard, and what was sent."""
    steps = strategy.round(state, learner, bench.links(HOOD))
    sent = next(steps)
    assert isinstance(sent, Coded)
    read = {j: sent.read(j, message(bits)) for j, bits in heard.items()}
    with pytest.raises(StopIteration) as end:
        steps.send(Inbox(HOOD, read))
    found: FedPMState = end.value.value
    return found, sent.outbox


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_scores_follow_the_slope_times_theta_times_its_rest(bench: Bench, optimiser: str) -> None:
    """∂L/∂s = ∂L/∂(w ⊙ m) ⊙ w ⊙ θ (1 - θ), over rounds, with torch's optimisers."""
    strategy = FedPM(optimiser="sgd" if optimiser == "sgd" else "adam", lr=0.3, steps=2)
    learner = slope(bench)
    state, found = strategy.init(learner, 0), learner.grad(learner.params)
    s = {name: torch.nn.Parameter(x.clone()) for name, x in state.scores.items()}
    make: Any = torch.optim.SGD if optimiser == "sgd" else torch.optim.Adam
    steps = make(s.values(), lr=0.3)
    for learner.round in (1, 2, 3):
        state, _ = a_round(bench, strategy, state, learner)
        for _ in range(2):
            for name, each in s.items():
                theta = torch.sigmoid(each.detach())
                each.grad = found[name] * state.weights[name] * theta * (1 - theta)
            steps.step()
    for name, each in s.items():
        torch.testing.assert_close(state.scores[name], each.detach(), rtol=1e-12, atol=1e-13)


def test_gradients_are_asked_at_fresh_samples(bench: Bench) -> None:
    strategy, learner = FedPM(steps=3), slope(bench)
    state = strategy.init(learner, 0)
    a_round(bench, strategy, state, learner)
    assert len(learner.asked) == 3
    for at in learner.asked:
        for name, w in state.weights.items():
            assert bool(((at[name] == 0) | (at[name] == w)).all())
        assert torch.equal(at["bias"], learner.x["bias"])
    bodies = [at["body"] for at in learner.asked]
    assert not torch.equal(bodies[0], bodies[1]) and not torch.equal(bodies[1], bodies[2])


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", [1.0, 2 / 3, 1 / 3, 2 / 3]),
        ("weights", [1.0, 0.5 + 0.3, 0.3, 0.3 + 0.2]),
    ],
)
def test_theta_becomes_the_mean_of_samples(
    bench: Bench, combine: str, expected: list[float]
) -> None:
    """Own sample: places 0 and 1; heard: 0, 1, 2, 3 of peer 0 and 0, 3 of peer 2."""
    strategy, learner = (
        FedPM(combine="mean" if combine == "mean" else "weights", lr=1e-9),
        slope(bench),
    )
    state = strategy.init(learner, 0)
    certain = torch.full((32,), -50.0, dtype=torch.float64)
    certain[:2] = 50.0
    state = replace(
        state, scores={"body": certain[:20].view(4, 5), "head": certain[20:].view(3, 4)}
    )
    heard = {0: sample(0, 1, 2, 3), 2: sample(0, 3)}
    state, _ = a_round(bench, strategy, state, learner, heard)
    theta = torch.cat([torch.sigmoid(s).view(-1) for s in state.scores.values()])
    wanted = torch.zeros(32, dtype=torch.float64)
    wanted[:4] = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(theta, 0.01 + 0.98 * wanted, rtol=1e-12, atol=0)


def test_the_weight_of_a_missing_neighbour_returns_to_the_own_sample(bench: Bench) -> None:
    strategy, learner = FedPM(combine="weights", lr=1e-9), slope(bench)
    state = strategy.init(learner, 0)
    certain = {name: torch.full_like(s, -50.0) for name, s in state.scores.items()}
    state, _ = a_round(bench, strategy, replace(state, scores=certain), learner, {0: sample(7)})
    theta = torch.sigmoid(state.scores["body"]).view(-1)
    assert theta[7].item() == pytest.approx(0.01 + 0.98 * 0.3)
    assert theta[8].item() == pytest.approx(0.01)


def test_a_peer_that_hears_nobody_keeps_what_it_learned(bench: Bench) -> None:
    learner, other = slope(bench), slope(bench)
    strategy = FedPM(optimiser="sgd", lr=0.5, steps=1)
    state, _ = a_round(bench, strategy, strategy.init(learner, 0), learner)
    start = strategy.init(other, 0).scores["head"]
    theta = torch.sigmoid(start)
    moved = learner.grad(learner.params)["head"] * state.weights["head"] * theta * (1 - theta)
    torch.testing.assert_close(state.scores["head"], start - 0.5 * moved, rtol=1e-13, atol=0)


@pytest.mark.parametrize("coding", ["packed", "entropy"])
def test_what_is_sent_is_read_as_a_sample_of_theta(bench: Bench, coding: str) -> None:
    """Of 2,000 weights of probability 1/4 a quarter, within 5 standard errors, at any coding."""
    learner = bench.toy({"w": torch.ones(40, 50)}, lambda at: tmap(torch.zeros_like, at))
    strategy = FedPM(coding="packed" if coding == "packed" else "entropy")
    state = strategy.init(learner, 0)
    state = replace(state, scores={"w": torch.full((40, 50), 1 / 4).logit()})
    steps = strategy.round(state, learner, bench.links(HOOD))
    sent = next(steps)
    assert isinstance(sent, Coded)
    assert sent.outbox.keys() == {0, 2}
    assert sent.outbox[0].tensors["mask"].numel() <= 250
    assert (sent.outbox[0].tensors["mask"].numel() == 250) == (coding == "packed")
    bits = sent.read(2, sent.outbox[0]).tensors["mask"]
    share = sum(bin(byte).count("1") for byte in bits.tolist()) / 2000
    assert share == pytest.approx(1 / 4, abs=5 * (3 / 16 / 2000) ** 0.5)


def test_a_sample_or_the_mean_is_worn(bench: Bench) -> None:
    for evaluated in ("sample", "mean"):
        learner = slope(bench)
        strategy = FedPM(evaluated="sample" if evaluated == "sample" else "mean")
        state = strategy.init(learner, 3)
        for learner.round in (1, 2):
            state, _ = a_round(bench, strategy, state, learner, {0: sample(0, 5, 9)})
            for name, w in state.weights.items():
                factor = (
                    state.masks[name]
                    if evaluated == "sample"
                    else torch.sigmoid(state.scores[name])
                )
                assert torch.equal(learner.x[name], w * factor)
        kept = sum(int(m.sum()) for m in state.masks.values()) / 32
        assert strategy.report(state)["share/kept"] == kept


def test_scores_start_alike_and_samples_are_private(bench: Bench) -> None:
    strategy = FedPM()
    learners = [slope(bench), slope(bench)]
    states = [strategy.init(learner, seed=i) for i, learner in enumerate(learners)]
    assert all(torch.equal(s, states[1].scores[k]) for k, s in states[0].scores.items())
    assert not torch.equal(learners[0].x["body"], learners[1].x["body"])
    sent = [
        a_round(bench, strategy, state, learner)[1][0].tensors["mask"]
        for state, learner in zip(states, learners, strict=True)
    ]
    assert not torch.equal(*sent)


def test_a_round_that_is_run_again_is_the_same_and_leaves_the_state_before(bench: Bench) -> None:
    strategy, learner = FedPM(), slope(bench)
    state = strategy.init(learner, 7)
    before = clone(state.scores), clone(state.moments.mean)
    one, sent = a_round(bench, strategy, state, learner, {0: sample(3)})
    two, again = a_round(bench, strategy, state, learner, {0: sample(3)})
    assert all(torch.equal(m, two.masks[name]) for name, m in one.masks.items())
    assert torch.equal(sent[0].tensors["mask"], again[0].tensors["mask"])
    assert all(torch.equal(s, before[0][name]) for name, s in state.scores.items())
    assert all(torch.equal(s, before[1][name]) for name, s in state.moments.mean.items())


@pytest.mark.parametrize(
    "bits", [torch.zeros(3, dtype=torch.uint8), torch.zeros(4), torch.zeros(0, dtype=torch.uint8)]
)
def test_messages_that_make_no_sense_are_refused(bench: Bench, bits: Tensor) -> None:
    strategy, learner = FedPM(), slope(bench)
    sent = next(strategy.round(strategy.init(learner, 0), learner, bench.links(HOOD)))
    assert isinstance(sent, Coded)
    with pytest.raises(WireError):
        sent.read(0, message(bits))


def test_mixing_weights_need_doubly_stochastic_ones() -> None:
    assert Need.DOUBLY_STOCHASTIC not in FedPM().needs
    assert FedPM(combine="weights").needs == FedPM().needs | {Need.DOUBLY_STOCHASTIC}


@pytest.mark.parametrize("fields", [{"lr": 0.0}, {"steps": 0}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} = .*expected"):
        FedPM(**fields)
