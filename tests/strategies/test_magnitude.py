"""Magnitude pruning while training: a round by hand, D-PSGD with all weights kept, bad messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch

from p2p_dml.errors import WireError
from p2p_dml.kernels.mixing import metropolis
from p2p_dml.links.static import Ring
from p2p_dml.strategies import DPSGD
from p2p_dml.strategies.magnitude import Magnitude, MagnitudeState
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import (
    AnyStrategy,
    Coded,
    Graph,
    Inbox,
    Need,
    Neighbourhood,
    Payload,
    PeerId,
    Sent,
    Tensors,
)

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench, Toy

HOOD = Neighbourhood(1, 0.5, {0: 0.3, 2: 0.2}, {0: 0.3, 2: 0.2})
ALL: dict[str, Any] = {"keep_representation": 1.0, "keep_decision": 1.0}


SHAPES = {"body": (3, 5, 2), "bias": (3,), "head": (2, 10)}


def springs(bench: Bench, seed: int = 0, dtype: torch.dtype = torch.float64) -> Toy:
    """Equal starts, targets of their own; training takes three plain steps of size 0.2."""
    targets = bench.drawn(SHAPES, seed, dtype)

    def move(x: Tensors) -> None:
        for _ in range(3):
            for name, each in x.items():
                each.sub_(each - targets[name], alpha=0.2)

    return bench.pulled(bench.drawn(SHAPES, 1000, dtype), targets, move)


def coded(sent: Sent) -> Coded:
    assert isinstance(sent, Coded)
    return sent


def lockstep(
    bench: Bench,
    strategy: AnyStrategy,
    learners: Sequence[Toy],
    graph: Graph,
    num_rounds: int = 4,
) -> list[Any]:
    """All peers with Metropolis weights; returns their states."""
    hoods = [metropolis(graph, me) for me in range(graph.num_peers)]
    states = [strategy.init(learner, seed=me) for me, learner in enumerate(learners)]
    for _ in range(num_rounds):
        going = [
            strategy.round(state, learner, bench.links(hood))
            for state, learner, hood in zip(states, learners, hoods, strict=True)
        ]
        sent = [next(each) for each in going]
        outboxes = [each.outbox if isinstance(each, Coded) else each for each in sent]
        boxes = [{to: Payload(clone(p.tensors)) for to, p in box.items()} for box in outboxes]
        for me, (each, hood) in enumerate(zip(going, hoods, strict=True)):
            heard = {j: boxes[j][me] for j in hood.in_weights}
            mine = sent[me]
            if isinstance(mine, Coded):
                heard = {j: mine.read(j, payload) for j, payload in heard.items()}
            with pytest.raises(StopIteration) as end:
                each.send(Inbox(hood, heard))
            states[me] = end.value.value
    return states


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("absent", ["zero", "own"])
def test_with_all_weights_kept_it_is_dpsgd_bit_for_bit(
    bench: Bench, absent: str, dtype: torch.dtype
) -> None:
    ring = Ring(num_peers=5)(0)
    ours, theirs = ([springs(bench, i, dtype) for i in range(5)] for _ in range(2))
    options: dict[str, Any] = {**ALL, "absent": absent}
    lockstep(bench, Magnitude(steps=3, lr=0.2, weight_decay=0.0, **options), ours, ring)
    lockstep(bench, DPSGD(), theirs, ring)
    for one, two in zip(ours, theirs, strict=True):
        assert all(torch.equal(x, two.x[name]) for name, x in one.x.items())


def test_momentum_and_decay_are_torchs_over_rounds(bench: Bench) -> None:
    learner, other = springs(bench), springs(bench)
    strategy = Magnitude(steps=2, lr=0.1, momentum=0.8, weight_decay=0.01, **ALL)
    x = {name: torch.nn.Parameter(each) for name, each in other.x.items()}
    flat = [each for each in x.values() if each.dim() == 1]
    deep = [each for each in x.values() if each.dim() > 1]
    groups: list[dict[str, Any]] = [{"params": deep, "weight_decay": 0.01}, {"params": flat}]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.8)
    for _ in range(6):
        slopes = other.grad({name: each.detach() for name, each in x.items()})
        for name, each in x.items():
            each.grad = slopes[name]
        sgd.step()
    state, alone = strategy.init(learner, 0), Neighbourhood(0, 1.0, {}, {})
    for _ in range(3):
        state = a_round(bench, strategy, state, learner, {}, alone)
    for name, each in x.items():
        torch.testing.assert_close(learner.x[name], each.detach(), rtol=1e-13, atol=1e-14)


def a_round(
    bench: Bench,
    strategy: Magnitude,
    state: MagnitudeState,
    learner: Toy,
    heard: Mapping[PeerId, Payload],
    hood: Neighbourhood = HOOD,
) -> MagnitudeState:
    steps = strategy.round(state, learner, bench.links(hood))
    sent = coded(next(steps))
    read = {j: sent.read(j, payload) for j, payload in heard.items()}
    with pytest.raises(StopIteration) as end:
        steps.send(Inbox(hood, read))
    found: MagnitudeState = end.value.value
    return found


def message(values: Sequence[float], bits: int) -> Payload:
    return Payload(
        {
            "values": torch.tensor(values, dtype=torch.float64),
            "mask": torch.tensor([bits], dtype=torch.uint8),
            "dense/bias": torch.tensor([10.0], dtype=torch.float64),
        }
    )


def by_hand(bench: Bench) -> Toy:
    """Half of four weights kept: 4 and -3 at first; the gradient there is (3, 2, -1, 0)."""
    x = {"head": torch.tensor([[4.0, 1.0], [-3.0, 2.0]]), "bias": torch.tensor([2.0])}
    targets = {"head": torch.tensor([[1.0, -2.0], [-2.0, 0.0]]), "bias": torch.tensor([0.0])}
    return bench.pulled(tmap(torch.Tensor.double, x), tmap(torch.Tensor.double, targets))


@pytest.mark.parametrize(
    ("absent", "mixed"),
    [
        ("zero", [0.5 * 2.5 + 0.2 * 5, 0.3 * 6, 0.5 * -2.5 + 0.3 * -8 + 0.2 * 9, 0.5 * 2]),
        (
            "own",
            [
                0.5 * 2.5 + 0.3 * 2.5 + 0.2 * 5,
                0.3 * 6,
                0.5 * -2.5 + 0.3 * -8 + 0.2 * 9,
                2.0,
            ],
        ),
    ],
)
def test_a_round_by_hand(bench: Bench, absent: str, mixed: list[float]) -> None:
    """After a step of 0.5, w is (2.5, 0, -2.5, 2): dropped weights have moved too."""
    strategy = Magnitude(
        keep_decision=0.5,
        lr=0.5,
        weight_decay=0.0,
        absent="own" if absent == "own" else "zero",
    )
    learner = by_hand(bench)
    state = strategy.init(learner, 0)
    assert learner.x["head"].tolist() == [[4, 0], [-3, 0]]
    heard = {0: message([6.0, -8.0], 0b0110), 2: message([5.0, 9.0], 0b0101)}
    state = a_round(bench, strategy, state, learner, heard)
    assert state.weights["head"].flatten().tolist() == pytest.approx(mixed)
    order = sorted(range(4), key=lambda i: -abs(mixed[i]))
    worn = [mixed[i] if i in order[:2] else 0 for i in range(4)]
    assert learner.x["head"].flatten().tolist() == pytest.approx(worn)
    assert learner.x["bias"].item() == pytest.approx(0.5 * 1 + 0.5 * 10)


def test_what_is_sent_is_what_is_kept(bench: Bench) -> None:
    strategy = Magnitude(keep_decision=0.5, lr=0.5, weight_decay=0.0)
    learner = by_hand(bench)
    sent = coded(next(strategy.round(strategy.init(learner, 0), learner, bench.links(HOOD))))
    assert sent.outbox.keys() == {0, 2}
    assert sent.outbox[0].tensors["values"].tolist() == [2.5, -2.5]
    assert sent.outbox[0].tensors["mask"].tolist() == [0b0101]
    assert sent.outbox[0].tensors["dense/bias"].tolist() == [1]


def test_a_lost_message_gives_its_weight_to_the_own_model(bench: Bench) -> None:
    strategy = Magnitude(keep_decision=0.5, lr=0.5, weight_decay=0.0)
    learner = by_hand(bench)
    state = strategy.init(learner, 0)
    state = a_round(bench, strategy, state, learner, {2: message([5.0, 9.0], 0b0101)})
    expected = [0.8 * 2.5 + 0.2 * 5, 0.0, 0.8 * -2.5 + 0.2 * 9, 0.8 * 2]
    assert state.weights["head"].flatten().tolist() == pytest.approx(expected)


def test_peers_keep_their_shares_in_turns_and_read_each_other(bench: Bench) -> None:
    strategy = Magnitude(keep_representation=(0.1, 0.5), keep_decision=(0.3, 0.6, 0.9))
    learners = [springs(bench, i) for i in range(4)]
    states = lockstep(bench, strategy, learners, Ring(num_peers=4)(0))
    kept = [[int(learner.x[n].count_nonzero()) for n in ("body", "head")] for learner in learners]
    assert kept == [[3, 6], [15, 12], [3, 18], [15, 6]]
    assert strategy.report(states[1])["share/kept"] == 27 / 50


def test_the_model_starts_with_the_largest_of_the_mean_share(bench: Bench) -> None:
    learner = springs(bench)
    start = clone(learner.x)
    state = Magnitude(keep_representation=(0.1, 0.5)).init(learner, 0)
    least = start["body"].abs().flatten().topk(9).values[-1]
    expected = torch.where(start["body"].abs() >= least, start["body"], 0.0)
    assert torch.equal(learner.x["body"], expected)
    assert torch.equal(state.weights["body"], start["body"])
    assert torch.equal(learner.x["bias"], start["bias"])


def test_the_state_before_a_round_stays(bench: Bench) -> None:
    strategy, learner = Magnitude(momentum=0.9), springs(bench)
    state = strategy.init(learner, 0)
    before = clone(state.weights), clone(state.momenta)
    a_round(bench, strategy, state, learner, {})
    assert all(torch.equal(x, before[0][name]) for name, x in state.weights.items())
    assert all(torch.equal(x, before[1][name]) for name, x in state.momenta.items())


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (message([1.0], 0b0001), r"expected torch.float64 \[2\]"),
        (message([1.0, 2.0], 0b0001), r"\[1\] ones in the tensors, expected \[2\]"),
        (message([1.0, 2.0], 0b00110000), "behind its 4 values"),
        (Payload({}), "missing"),
    ],
)
def test_messages_that_make_no_sense_are_refused(bench: Bench, payload: Payload, why: str) -> None:
    strategy, learner = Magnitude(keep_decision=0.5), by_hand(bench)
    sent = coded(next(strategy.round(strategy.init(learner, 0), learner, bench.links(HOOD))))
    with pytest.raises(WireError, match=why):
        sent.read(0, payload)


def test_needs_are_those_of_dpsgd_bits_as_they_were_sent_and_weights_to_choose_from() -> None:
    assert DPSGD().needs == {Need.DOUBLY_STOCHASTIC}
    assert Magnitude().needs == DPSGD().needs | {Need.EXACT, Need.NO_MATRIX_BUFFERS}


@pytest.mark.parametrize(
    "fields",
    [
        {"keep_representation": (0.5, 0.0)},
        {"keep_decision": 1.5},
        {"steps": 0},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))}.*expected"):
        Magnitude(**fields)
