"""HyperPrism: its run-file table, and how a learned degree follows its signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import pytest
import torch
from torch import Tensor

from p2p_dml.errors import ConfigError
from p2p_dml.kernels._power import power_mean
from p2p_dml.kernels.means import weighted_power_mean
from p2p_dml.strategies.hyperprism import HyperPrism, HyperPrismState
from p2p_dml.tables import build
from p2p_dml.tensors import tmap
from p2p_dml.types import Inbox, Neighbourhood, Payload, Tensors

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench, Toy

HOOD = Neighbourhood(0, 0.25, {1: 0.25, 2: 0.5}, {1: 0.25, 2: 0.5})
PARTS = {"conv": "representation", "fc.w": "decision", "fc.b": "decision"}


def draw(seed: int, size: int = 40) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(size, generator=generator, dtype=torch.float64) for name in PARTS}


def pushed(bench: Bench, push: Mapping[str, Tensor] = {}) -> Toy:
    """A learner whose training adds `push`, whatever the model."""
    return bench.toy(draw(0), lambda at: {name: -x for name, x in push.items()}, adding(push))


def adding(push: Mapping[str, Tensor]) -> Callable[[Tensors], None]:
    def move(x: Tensors) -> None:
        for name, change in push.items():
            x[name].add_(change)

    return move


def play(
    bench: Bench,
    strategy: HyperPrism,
    state: HyperPrismState,
    learner: Toy,
    heard: Mapping[int, Mapping[str, Tensor]],
) -> HyperPrismState:
    steps = strategy.round(state, learner, bench.links(HOOD))
    next(steps)
    try:
        steps.send(Inbox(HOOD, {j: Payload(tensors) for j, tensors in heard.items()}))
    except StopIteration as end:
        new: HyperPrismState = end.value
        return new
    raise AssertionError("a round of HyperPrism has one exchange")


@pytest.mark.parametrize(
    "degree",
    [
        9.0,
        9,
        "learned",
        {"representation": 1.0, "decision": 9.0},
        {"decision": 3},
        {"start": 15.0, "end": 1.0, "time_constant": 2.0},
    ],
)
def test_every_form_of_degree_can_stand_in_a_run_file(degree: object) -> None:
    assert build(HyperPrism, {"degree": degree}, "strategy") == HyperPrism(degree=degree)  # type: ignore[arg-type]


def test_the_default_is_a_learned_degree() -> None:
    assert build(HyperPrism, {}, "strategy").degree == "learned"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"degree": 0.5}, r"strategy: degree = 0\.5: expected a degree of at least 1"),
        ({"degree": True}, r"strategy\.degree: .*found bool True"),
        ({"degree": [1.0, 9.0]}, r"strategy\.degree: .*found list"),
        ({"degree": "learnt"}, r"strategy: degree = 'learnt': unknown word; did you mean"),
        ({"degree": {"decison": 9.0}}, r"strategy: degree\.decison: unknown key; did you mean"),
        ({"degree": {"decision": "x"}}, r"strategy: degree\.decision: .*found str 'x'"),
        ({"degre": 9.0}, r"strategy\.degre: unknown key; did you mean 'degree'"),
        ({"p_max": 0.9}, r"strategy: p_max = 0\.9: expected"),
        ({"p_max": "9"}, r"strategy\.p_max: .*found str '9'"),
        ({"start_decision": 16.0}, r"strategy: decision: expected a degree from 1 to 15"),
        ({"start_representation": 0.0}, r"strategy: representation: expected a degree from 1"),
        ({"rate": -1.0}, r"strategy: rate = -1\.0: expected"),
        ({"memory": 1.0}, r"strategy: memory = 1\.0: expected"),
        ({"length": 0.5}, r"strategy: length: expected 'own' or a degree of at least 1, got 0\.5"),
        ({"length": float("inf")}, r"strategy: length: expected 'own' or a degree of at least 1"),
        ({"length": "mine"}, r"strategy\.length: .*found str 'mine'"),
        ({"signal": "mine"}, r"strategy\.signal: .*'neighbourhood', 'own' or 'paper'"),
    ],
)
def test_a_bad_table_is_a_config_error_that_names_the_key(
    table: Mapping[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(HyperPrism, table, "strategy")


def test_first_degrees_are_reported(bench: Bench) -> None:
    learner = pushed(bench)
    for strategy, expected in (
        (HyperPrism(), {"decision": 15.0, "representation": 1.0}),
        (HyperPrism(p_max=9.0, start_representation=3.0), {"decision": 9.0, "representation": 3.0}),
        (HyperPrism(start_decision=2.0), {"decision": 2.0, "representation": 1.0}),
        (HyperPrism(degree=5.0), {"decision": 5.0, "representation": 5.0}),
    ):
        reported = strategy.report(strategy.init(learner, seed=3))
        assert reported == {f"degree/{part}": p for part, p in expected.items()}


def test_a_scheduled_degree_is_that_of_the_learners_round(bench: Bench) -> None:
    strategy = HyperPrism(degree={"start": 15.0, "time_constant": 1e-3})
    learner = pushed(bench)
    state = strategy.init(learner, 0)
    for round, degree in ((1, 15.0), (2, 1.0)):
        learner.round = round
        state = play(bench, strategy, state, learner, {1: draw(1), 2: draw(2)})
        assert state.degrees == {"decision": degree, "representation": degree}


def test_the_state_keeps_the_slope_at_the_mix_for_the_papers_signal(bench: Bench) -> None:
    strategy = HyperPrism(start_representation=4.0, signal="paper")
    learner = pushed(bench)
    models = [learner.params, draw(1), draw(2)]
    own = {name: x.clone() for name, x in models[0].items()}
    state = play(bench, strategy, strategy.init(learner, 0), learner, {1: models[1], 2: models[2]})
    assert state.degrees["representation"] == pytest.approx(4.0)
    xs = [own["conv"], models[1]["conv"], models[2]["conv"]]
    expected = torch.empty_like(own["conv"])
    power_mean(xs, [0.25, 0.25, 0.5], state.degrees["representation"], slope=expected)
    assert torch.equal(state.change["conv"], expected)


@pytest.mark.parametrize(("degree", "probed"), [(1.0, 3.0), (2.0, 3.0), (4.0, 4.0)])
def test_the_state_keeps_what_the_degree_changed_but_for_scale(
    bench: Bench, degree: float, probed: float
) -> None:
    strategy = HyperPrism(start_representation=degree, length="own")
    learner = pushed(bench)
    xs = [learner.params["conv"].clone(), draw(1)["conv"], draw(2)["conv"]]
    state = play(bench, strategy, strategy.init(learner, 0), learner, {1: draw(1), 2: draw(2)})
    mean, ahead = (weighted_power_mean(xs, [0.25, 0.25, 0.5], p) for p in (1.0, probed))
    mixed = learner.params["conv"]
    assert torch.allclose(mixed, weighted_power_mean(xs, [0.25, 0.25, 0.5], degree), rtol=1e-12)
    change = ahead - mean
    change -= torch.dot(change, mixed) / torch.dot(mixed, mixed) * mixed
    assert torch.allclose(state.change["conv"], change, atol=1e-12)
    assert change.norm() > 0.01


@pytest.mark.parametrize("signal", ["own", "neighbourhood"])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_degree_follows_the_descent_direction(
    bench: Bench, signal: Literal["own", "neighbourhood"], direction: float
) -> None:
    strategy = HyperPrism(
        signal=signal, start_representation=5.0, start_decision=5.0, rate=0.1, memory=0.0
    )
    learner = pushed(bench)
    state = play(bench, strategy, strategy.init(learner, 0), learner, {1: draw(1), 2: draw(2)})
    # Training now goes where the decision part's degree went, and the other way elsewhere.
    push = {
        name: direction * (1 if part == "decision" else -1) * state.change[name]
        for name, part in PARTS.items()
    }
    learner.move = adding(push)
    ahead = tmap(torch.add, learner.x, push)
    after = play(bench, strategy, state, learner, {1: ahead, 2: ahead}).degrees
    # A cosine of ±1 changes ln p by ±rate; a head moves the network the other shares, by under 1 %.
    assert after["decision"] == pytest.approx(5 * 2.718281828 ** (0.1 * direction), rel=0.01)
    assert after["representation"] == pytest.approx(5 * 2.718281828 ** (-0.1 * direction), rel=0.01)


def test_a_mix_with_nobody_is_not_judged(bench: Bench) -> None:
    strategy = HyperPrism()
    learner = pushed(bench, draw(5))
    state = play(bench, strategy, strategy.init(learner, 0), learner, {1: draw(1), 2: draw(2)})
    alone = play(bench, strategy, state, learner, {})
    assert all((x == 0).all() for x in alone.change.values())
    after = play(bench, strategy, alone, learner, {1: draw(1), 2: draw(2)})
    assert alone.learned is not None
    assert after.learned is not None
    assert after.learned.net is alone.learned.net
    assert after.degrees == alone.degrees


def test_verdicts_travel_and_are_pooled(bench: Bench) -> None:
    strategy = HyperPrism(start_decision=5.0, rate=0.1)
    learner = pushed(bench)
    state = play(bench, strategy, strategy.init(learner, 0), learner, {1: draw(1), 2: draw(2)})
    learner.move = adding(state.change)  # a verdict of 1 on both parts
    steps = strategy.round(state, learner, bench.links(HOOD))
    sent = next(steps)[1].scalars
    assert sent == pytest.approx({"verdict/decision": 1.0, "verdict/representation": 1.0})
    heard = {j: Payload(draw(j), {"verdict/decision": c}) for j, c in ((1, 0.5), (2, -0.25))}
    with pytest.raises(StopIteration) as end:
        steps.send(Inbox(HOOD, heard))
    # Three verdicts on the decision part, one on the other; 3 % is for what the heads share.
    after = end.value.value.degrees
    assert math.log(after["decision"] / 5) == pytest.approx(0.1 * 1.25 / 3**0.5, rel=0.03)
    assert math.log(after["representation"]) == pytest.approx(0.1, rel=0.03)


def test_private_seeds_give_private_networks(bench: Bench) -> None:
    drawn = [HyperPrism().init(pushed(bench), seed).learned for seed in (1, 1, 2)]
    embeddings = [each.net.weights["embedding"] for each in drawn if each is not None]
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])
