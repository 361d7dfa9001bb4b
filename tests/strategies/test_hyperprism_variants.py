"""The variants of HyperPrism: closed forms, reductions, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.errors import ConfigError
from p2p_dml.hypernet import HyperNet
from p2p_dml.kernels.mixing import metropolis
from p2p_dml.links.random import ErdosRenyi
from p2p_dml.links.static import Ring
from p2p_dml.strategies import DPSGD, HyperPrism
from p2p_dml.strategies.hyperprism import HyperPrismState
from p2p_dml.tables import build
from p2p_dml.types import AnyStrategy, Coded, PeerId, Tag

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench, Gossip

RING = Ring(num_peers=5)


def state_of(run: Gossip, peer: int) -> HyperPrismState:
    state = run.states[peer]
    assert isinstance(state, HyperPrismState)
    return state


def degrees(run: Gossip) -> list[float]:
    """The degree of every peer's only layer group."""
    return [state_of(run, i).degrees["decision"] for i in range(len(run.learners))]


def signed(x: torch.Tensor, p: float) -> torch.Tensor:
    return x.sign() * x.abs() ** p


def test_a_mirror_step_of_degree_1_is_the_papers_dpsgd(bench: Bench) -> None:
    """Eq. (6) with p = 1: w <- sum_j a_ij w_j - η ∇f(w_i), gradients at the unmixed model."""
    lr = 0.05
    mirrored, plain = (
        bench.gossip(strategy, bench.learners(5, lr=lr), RING).advance(20).models
        for strategy in (
            HyperPrism(degree=1.0, gradient="mirror", mirror_lr=lr),
            DPSGD(combine="before"),
        )
    )
    torch.testing.assert_close(mirrored, plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("gradient", "primal"), [("mirror", 0.0), ("both", 0.05)])
@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_equation_6_by_direct_evaluation(
    bench: Bench, gradient: str, primal: float, p: float
) -> None:
    """On a ring all weights are 1/3; "both" takes the gradient after the primal step."""
    eta = 0.2
    strategy = build(HyperPrism, {"degree": p, "gradient": gradient, "mirror_lr": eta}, "strategy")
    run = bench.gossip(strategy, bench.learners(5, lr=0.05), RING)
    w = run.models.clone()

    def gradients(at: torch.Tensor) -> torch.Tensor:
        return torch.stack([each.grad({"x": at[i]})["x"] for i, each in enumerate(run.learners)])

    for _ in range(2):
        w = w - primal * gradients(w)
        z = (signed(w, p) + signed(w, p).roll(1, 0) + signed(w, p).roll(-1, 0)) / 3
        w = signed(z - eta * gradients(w), 1 / p)
    torch.testing.assert_close(run.advance(2).models, w, rtol=1e-9, atol=1e-11)


def test_a_peer_that_hears_nobody_takes_its_mirror_step_alone(bench: Bench) -> None:
    strategy = HyperPrism(degree=3.0, gradient="mirror", mirror_lr=0.1)
    run = bench.gossip(strategy, bench.learners(5), RING, fate=lambda tag, sender, receiver: None)
    w = run.models.clone()
    g = torch.stack([each.grad({"x": w[i]})["x"] for i, each in enumerate(run.learners)])
    expected = signed(signed(w, 3.0) - 0.1 * g, 1 / 3)
    torch.testing.assert_close(run.advance().models, expected, rtol=1e-10, atol=1e-12)


def test_degrees_of_the_senders_by_direct_evaluation(bench: Bench) -> None:
    """w_i <- (sum_j a_ij w_j^p_j)^(1/p_i): frozen networks give every peer its own degree."""
    strategy = HyperPrism(degree_at="sender", frozen=True, p_max=6.0)
    run = bench.gossip(strategy, bench.learners(5, lr=0.0), RING)
    p, w = degrees(run), run.models.clone()
    assert max(p) / min(p) > 1.5
    mapped = torch.stack([signed(w[i], p[i]) for i in range(5)])
    z = (mapped + mapped.roll(1, 0) + mapped.roll(-1, 0)) / 3
    expected = torch.stack([signed(z[i], 1 / p[i]) for i in range(5)])
    torch.testing.assert_close(run.advance().models, expected, rtol=1e-10, atol=1e-12)


def test_equal_degrees_of_the_senders_are_the_power_mean(bench: Bench) -> None:
    table = {"rate": 0.0, "start_decision": 5.0}
    sent, received = (
        bench.gossip(HyperPrism(degree_at=at, **table), bench.learners(5), RING).advance(5).models  # type: ignore[arg-type]
        for at in ("sender", "receiver")
    )
    torch.testing.assert_close(sent, received, rtol=1e-9, atol=1e-11)


def test_what_a_round_teaches_reaches_a_senders_model_in_the_next(bench: Bench) -> None:
    """So that peers map with the degree that they have sent."""
    strategy = HyperPrism(degree_at="sender", start_decision=5.0, rate=0.5, memory=0.0)
    run = bench.gossip(strategy, bench.learners(5), RING).advance(2)
    p = degrees(run)
    assert any(each != 5.0 for each in p)
    w = run.models.clone()
    for i, each in enumerate(run.learners):
        w[i] -= each.lr * each.grad({"x": w[i]})["x"]
    mapped = torch.stack([signed(w[i], p[i]) for i in range(5)])
    z = (mapped + mapped.roll(1, 0) + mapped.roll(-1, 0)) / 3
    expected = torch.stack([signed(z[i], 1 / p[i]) for i in range(5)])
    torch.testing.assert_close(run.advance().models, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("hypernet", ["bounded", "paper"])
def test_frozen_degrees_differ_from_peer_to_peer_and_stay(bench: Bench, hypernet: str) -> None:
    strategy = build(HyperPrism, {"frozen": True, "hypernet": hypernet}, "strategy")
    run = bench.gossip(strategy, bench.learners(5), RING)
    first = degrees(run)
    assert len(set(first)) == 5
    assert degrees(run.advance(10)) == first


def test_a_frozen_network_mixes_as_a_fixed_degree_would(bench: Bench) -> None:
    """At peer 0, where the degree drawn is known; all peers start at the same models."""
    frozen = bench.gossip(HyperPrism(frozen=True), bench.learners(5), RING)
    p = degrees(frozen)[0]
    fixed = bench.gossip(HyperPrism(degree=p), bench.learners(5), RING)
    assert torch.equal(frozen.advance().models[0], fixed.advance().models[0])


def test_shared_degrees_come_together_and_keep_their_mean(bench: Bench) -> None:
    """Frozen networks propose different degrees; gossip alone makes them one, with no server."""
    links = ErdosRenyi(num_peers=6, density=0.5, seed=3)
    strategy = HyperPrism(frozen=True, shared=True, hypernet="paper")
    run = bench.gossip(strategy, bench.learners(6), links)
    first = [math.log(p) for p in degrees(run)]
    assert max(first) - min(first) > 0.1
    last = [math.log(p) for p in degrees(run.advance(80))]
    assert max(last) - min(last) < 1e-9
    assert sum(last) / 6 == pytest.approx(sum(first) / 6, rel=1e-12)


def test_the_mean_of_shared_degrees_is_that_of_what_networks_learn(bench: Bench) -> None:
    """At any time, when both ends of a link lose it too."""

    def lose(tag: Tag, sender: PeerId, receiver: PeerId) -> int | None:
        return None if tag.round % 3 == 0 and {sender, receiver} == {1, 2} else 0

    strategy = HyperPrism(shared=True, start_decision=5.0, rate=0.05)
    run = bench.gossip(strategy, bench.learners(5), RING, fate=lose).advance()
    for _ in range(12):
        run.advance()
        learned = [state_of(run, i).learned for i in range(5)]
        agreed = [each.agreed["decision"] for each in learned if each is not None]
        nets = [each.net for each in learned if each is not None]
        own = [math.log(HyperNet().degrees(net)["decision"]) for net in nets]
        assert len(set(own)) > 2
        assert sum(agreed) == pytest.approx(sum(own), rel=1e-11)
    assert max(agreed) - min(agreed) < (max(own) - min(own)) / 2


def test_odd_degrees_are_those_of_a_fixed_degree(bench: Bench) -> None:
    """The nearest odd integer of 6.4 is 7, as long as nothing is learned."""
    rounded = HyperPrism(odd=True, start_decision=6.4, rate=0.0)
    run = bench.gossip(rounded, bench.learners(5), RING).advance(3)
    fixed = bench.gossip(HyperPrism(degree=7.0), bench.learners(5), RING).advance(3)
    assert degrees(run) == [7.0] * 5
    torch.testing.assert_close(run.models, fixed.models, rtol=1e-11, atol=1e-13)


def test_the_network_below_odd_degrees_learns_on(bench: Bench) -> None:
    """Straight through: small steps add up until the next odd integer is nearer."""
    strategy = HyperPrism(odd=True, start_decision=6.9, rate=0.02, memory=0.0, signal="own")
    run = bench.gossip(strategy, bench.learners(5, lr=0.1), RING)
    seen = set()
    for _ in range(120):
        seen.update(degrees(run.advance()))
    assert len(seen) > 1
    assert seen <= {1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0}


SENT: list[tuple[Mapping[str, object], set[str]]] = [
    ({}, set()),
    ({"degree": 3.0}, set()),
    ({"hypernet": "paper"}, set()),
    ({"shared": True}, {"ln_p/decision"}),
    ({"degree_at": "sender"}, {"degree/decision"}),
    ({"degree_at": "sender", "shared": True}, {"degree/decision", "ln_p/decision"}),
    ({"degree_at": "sender", "groups": "layers"}, {"degree/x"}),
]


@pytest.mark.parametrize(("table", "scalars"), SENT)
def test_raw_models_travel_with_a_number_or_two(
    bench: Bench, table: Mapping[str, object], scalars: set[str]
) -> None:
    strategy: AnyStrategy = build(HyperPrism, table, "strategy")
    learner = bench.learners(3)[0]
    links = bench.links(metropolis(Ring(num_peers=3)(0), 0))
    outbox = next(strategy.round(strategy.init(learner, 0), learner, links))
    assert not isinstance(outbox, Coded)
    for payload in outbox.values():
        assert set(payload.scalars) == scalars
        assert torch.equal(payload.tensors["x"], learner.x)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"degree": 9.0, "hypernet": "paper"}, "hypernet = 'paper': only for degree = 'learned'"),
        ({"degree": 9.0, "groups": "layers"}, "groups = 'layers': only for degree = 'learned'"),
        ({"degree": 9.0, "degree_at": "sender"}, "degree_at = 'sender': only for degree"),
        ({"degree": 9.0, "odd": True}, "odd = True: only for degree = 'learned'"),
        ({"degree": 9.0, "frozen": True}, "frozen = True: only for degree = 'learned'"),
        ({"degree": 9.0, "shared": True}, "shared = True: only for degree = 'learned'"),
        ({"frozen": True, "start_decision": 3.0}, "frozen: the degrees are drawn"),
        ({"degree": 9.0, "signal": "own"}, "signal = 'own': only for degree = 'learned'"),
        ({"gradient": "mirror", "mirror_lr": 0.0}, "mirror_lr = 0.0: expected"),
        ({"hypernet": "paper", "memory": 0.5}, "memory = 0.5: the paper's network averages no"),
        (
            {"hypernet": "paper", "p_max": 2.0},
            "p_max = 2.0: expected a finite number of at least 3",
        ),
        ({"hypernet": "paper", "start_decision": 15.0}, "decision: expected a degree between 1"),
        ({"hypernet": "papr"}, r"strategy\.hypernet: .*'bounded' or 'paper'"),
        ({"groups": "tensors"}, r"strategy\.groups: .*'parts' or 'layers'"),
        ({"degree_at": "both"}, r"strategy\.degree_at: .*'receiver' or 'sender'"),
        ({"gradient": "dual"}, r"strategy\.gradient: .*'primal', 'mirror' or 'both'"),
    ],
)
def test_what_makes_no_sense_is_refused(table: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(HyperPrism, table, "strategy")


@pytest.mark.parametrize(
    "table",
    [
        {"hypernet": "paper", "start_decision": 8.0, "p_max": 21.0},
        {"hypernet": "paper", "groups": "layers", "odd": True, "shared": True},
        {"frozen": True, "gradient": "mirror"},
        {"gradient": "mirror", "degree_at": "sender"},
        {"degree": 3.0, "gradient": "both"},
        {"degree": {"start": 9.0, "time_constant": 2.0}, "gradient": "mirror"},
    ],
)
def test_what_goes_together_can_be_chosen(table: Mapping[str, object], bench: Bench) -> None:
    run = bench.gossip(build(HyperPrism, table, "strategy"), bench.learners(5), RING).advance(3)
    assert run.models.isfinite().all()
