"""SGP: where mass goes, on time, late and lost; what push-sum agrees on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.kernels.mixing import metropolis, push_uniform
from p2p_dml.links.random import Epidemic
from p2p_dml.links.static import Exponential, OnePeerExponential, Ring
from p2p_dml.strategies import DPSGD, SGP
from p2p_dml.types import Inbox, Message, Payload, Tag

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench, Gossip

UNEVEN = Epidemic(num_peers=8, fanout=2, seed=1, regular=False)


def mass(run: Gossip) -> tuple[float, torch.Tensor]:
    """Sum of weights and of weighted models, what is under way included."""
    weights = [state.weight for state in run.states]
    x = torch.stack([w * z for w, z in zip(weights, run.models, strict=True)]).sum(0)
    away = run.under_way
    for payload in away:
        x = x + payload.tensors["x"]
    return sum(weights) + sum(p.scalars["weight"] for p in away), x


@pytest.mark.parametrize(
    "links", [Exponential(num_peers=8), OnePeerExponential(num_peers=8), Ring(num_peers=7)]
)
def test_weights_stay_1_on_regular_graphs(
    bench: Bench, links: Exponential | OnePeerExponential | Ring
) -> None:
    run = bench.gossip(SGP(), bench.learners(links.num_peers), links, rule=push_uniform)
    for _ in range(12):
        assert [state.weight for state in run.advance().states] == [1.0] * links.num_peers


def test_with_doubly_stochastic_weights_it_is_dpsgd(bench: Bench) -> None:
    one, two = (
        bench.gossip(strategy, bench.learners(6), Ring(num_peers=6), rule=metropolis)
        .advance(10)
        .models
        for strategy in (SGP(), DPSGD())
    )
    torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-14)


def test_uneven_one_way_links_agree_on_the_plain_mean(bench: Bench) -> None:
    run = bench.gossip(SGP(min_weight=0.0), bench.learners(8, lr=0.0), UNEVEN, rule=push_uniform)
    mean = run.models.mean(0)
    assert {round(state.weight, 6) for state in run.advance(3).states} != {1.0}
    run.advance(60)
    torch.testing.assert_close(run.models, mean.expand(8, -1), rtol=1e-9, atol=1e-9)


def test_late_messages_keep_all_mass(bench: Bench) -> None:
    run = bench.gossip(
        SGP(min_weight=0.0),
        bench.learners(8, lr=0.0),
        UNEVEN,
        rule=push_uniform,
        fate=lambda tag, a, b: (tag.round + a + 2 * b) % 3,
    )
    _, total = mass(run)
    seen_late = False
    for _ in range(30):
        weight, x = mass(run.advance())
        seen_late |= bool(run.under_way)
        assert weight == pytest.approx(8, abs=1e-12)
        torch.testing.assert_close(x, total, rtol=0, atol=1e-11)
    assert seen_late


def test_lost_messages_take_weight_and_model_alike(bench: Bench) -> None:
    """What is lost is lost, but survivors still agree, and on a mean of the models."""
    links = Exponential(num_peers=8)
    run = bench.gossip(
        SGP(min_weight=0.0),
        bench.learners(8, lr=0.0),
        links,
        rule=push_uniform,
        fate=lambda tag, a, b: None if tag.round <= 5 and (a, b) in {(0, 1), (3, 4)} else 0,
    )
    low, high = run.models.min(0).values, run.models.max(0).values
    before = 8.0
    for _ in range(5):
        weight, _ = mass(run.advance())
        lost = sum(run.states[sender].weight for sender in (0, 3))
        assert before - lost < weight < before
        before = weight
    weight, _ = mass(run.advance(60))
    assert weight == pytest.approx(before, abs=1e-12)
    assert (run.models.std(0) < 1e-9).all()
    assert ((low < run.models) & (run.models < high)).all()


def test_a_weight_never_falls_below_the_least(bench: Bench) -> None:
    """A peer cut off for long still trains with a bounded factor; with 0 it would explode."""
    learners = bench.learners(6)
    run = bench.gossip(
        SGP(min_weight=0.5),
        learners,
        Ring(num_peers=6),
        rule=push_uniform,
        fate=lambda tag, a, b: None,
    ).advance(60)
    assert [state.weight for state in run.states] == [0.5] * 6
    alone = torch.stack([torch.linalg.solve(each.h, each.b) for each in learners])
    torch.testing.assert_close(run.models, alone, rtol=1e-2, atol=1e-2)


def test_late_messages_of_another_layout_are_left_alone(bench: Bench) -> None:
    strategy = SGP()
    learner = bench.learners(3, lr=0.0)[0]
    before = learner.x.clone()
    hood = push_uniform(Ring(num_peers=3)(0), 0)
    steps = strategy.round(strategy.init(learner, 0), learner, bench.links(hood))
    outbox = next(steps)
    odd = Message(1, Tag(1), Payload({"other": torch.ones(2)}, {"weight": 1.0}))
    with pytest.raises(StopIteration):
        steps.send(Inbox(hood, {1: outbox[1], 2: outbox[2]}, [odd]))
    torch.testing.assert_close(learner.x, before, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("least", [-0.1, 1.0, float("nan")])
def test_bad_fields_are_refused(least: float) -> None:
    with pytest.raises(ValueError, match=r"min_weight = .*expected"):
        SGP(min_weight=least)
