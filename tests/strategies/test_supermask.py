"""Supermasks: a step by hand, torch's optimiser on the scores, MCE-PL without neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from p2p_dml.kernels.structure import kept_per_output
from p2p_dml.strategies.mcepl import MCEPL
from p2p_dml.strategies.supermask import Supermask, SupermaskState
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import AnyStrategy, Inbox, Need, Neighbourhood, PeerId

if TYPE_CHECKING:
    from tests.strategies.conftest import Bench, Toy


SHAPES = {"body.weight": (3, 20), "body.bias": (3,), "head": (2, 10)}


def alone(me: PeerId = 0) -> Neighbourhood:
    return Neighbourhood(me, 1.0, {}, {})


def after(
    bench: Bench, strategy: Supermask, learner: Toy, rounds: int = 1, me: PeerId = 0
) -> SupermaskState:
    """The state after some rounds."""
    state = strategy.init(learner, seed=5)
    for _ in range(rounds):
        state = a_round(bench, strategy, state, learner, me)
    return state


def a_round(
    bench: Bench, strategy: Supermask, state: SupermaskState, learner: Toy, me: PeerId = 0
) -> SupermaskState:
    with pytest.raises(StopIteration) as end:
        next(strategy.round(state, learner, bench.links(alone(me))))
    found: SupermaskState = end.value.value
    return found


def test_a_step_by_hand(bench: Bench) -> None:
    """w ⊙ m = [[0, -1], [0, 4]] is 1 off its target everywhere but in its signs and sizes:
    (w ⊙ m - 1) ⊙ w ⊙ sign z = [[-2, 2], [0.5, 12]], and half of the weights are kept."""
    w = torch.tensor([[2.0, -1.0], [0.5, 4.0]], dtype=torch.float64)
    z = torch.tensor([[0.1, 0.3], [-0.2, 0.4]], dtype=torch.float64)
    learner = bench.pulled({"head": w.clone()}, {"head": torch.ones_like(w)})
    strategy = Supermask(keep_decision=0.5, lr=0.1, weight_decay=0.5)
    state = replace(strategy.init(learner, 0), scores={"head": z})
    learner.params = {"head": torch.tensor([[0.0, -1.0], [0.0, 4.0]], dtype=torch.float64)}
    state = a_round(bench, strategy, state, learner)
    expected = torch.tensor([[0.295, 0.085], [-0.24, -0.82]], dtype=torch.float64)
    torch.testing.assert_close(state.scores["head"], expected, rtol=1e-14, atol=1e-15)
    assert state.masks["head"].tolist() == [[True, False], [False, True]]
    assert learner.x["head"].tolist() == [[2, 0], [0, 4]]
    assert torch.equal(state.weights["head"], w)


def test_momentum_is_torchs_on_the_scores(bench: Bench) -> None:
    strategy = Supermask(steps=2, lr=0.3, momentum=0.9, weight_decay=0.01)
    learner, other = bench.springs(SHAPES), bench.springs(SHAPES)
    state = strategy.init(learner, 0)
    z = {name: torch.nn.Parameter(each.clone()) for name, each in state.scores.items()}
    sgd = torch.optim.SGD(z.values(), lr=0.3, momentum=0.9, weight_decay=0.01)
    masks = state.masks
    for _ in range(3):
        state = a_round(bench, strategy, state, learner)
        for _ in range(2):
            slopes = other.grad(other.x | tmap(torch.mul, state.weights, masks))
            for name, each in z.items():
                each.grad = slopes[name] * state.weights[name] * each.detach().sign()
            sgd.step()
            masks = {
                name: each.detach().abs() >= each.detach().abs().flatten().topk(18).values[-1]
                for name, each in z.items()
            }
        for name, each in z.items():
            torch.testing.assert_close(state.scores[name], each.detach(), rtol=1e-12, atol=1e-13)


def test_it_is_mcepl_without_neighbours(bench: Bench) -> None:
    theirs = MCEPL(fused=False, fine_tune=0.0, regulariser=0.0, least_kept=4, coding="packed")
    learner, other = bench.springs(SHAPES), bench.springs(SHAPES)
    state = theirs.init(other, 0)
    for round_ in (1, 2, 3):
        other.round = round_
        steps = theirs.round(state, other, bench.links(alone()))
        next(steps)
        with pytest.raises(StopIteration) as end:
            steps.send(Inbox(alone(), {}))
        state = end.value.value
    after(bench, Supermask(least_kept=4), learner, rounds=3)
    for name, x in other.x.items():
        assert torch.equal(learner.x[name], x)


def test_peers_keep_their_shares_in_turns(bench: Bench) -> None:
    strategy = Supermask(keep_representation=(0.1, 0.5), keep_decision=0.9)
    for me, expected in enumerate([(6, 18), (30, 18), (6, 18)]):
        learner = bench.springs(SHAPES)
        after(bench, strategy, learner, me=me)
        kept = (learner.x["body.weight"].count_nonzero(), learner.x["head"].count_nonzero())
        assert tuple(map(int, kept)) == expected


def test_the_model_starts_with_the_mean_share_and_scores_are_drawn_alike(bench: Bench) -> None:
    strategy = Supermask(keep_representation=(0.1, 0.5), keep_decision=1.0)
    one, two = bench.springs(SHAPES, 1), bench.springs(SHAPES, 2)
    states = strategy.init(one, seed=1), strategy.init(two, seed=2)
    assert int(one.x["body.weight"].count_nonzero()) == 18
    for name, z in states[0].scores.items():
        assert torch.equal(z, states[1].scores[name])
        assert torch.equal(one.x[name], two.x[name])


def test_with_all_weights_kept_the_model_stays(bench: Bench) -> None:
    learner = bench.springs(SHAPES)
    start = clone(learner.params)
    after(bench, Supermask(keep_representation=1.0, keep_decision=1.0), learner, rounds=3)
    assert all(torch.equal(x, start[name]) for name, x in learner.x.items())


def test_outputs_with_few_weights_are_taken_out_whole(bench: Bench) -> None:
    strategy = Supermask(keep_representation=0.2, keep_decision=0.5, least_kept=4)
    learner = bench.springs(SHAPES)
    state = after(bench, strategy, learner, rounds=2)
    counts = [kept_per_output(learner.x[name]) for name in ("body.weight", "head")]
    assert all(n == 0 or n > 4 for each in counts for n in each.tolist())
    empty = sum(int((each == 0).sum()) for each in counts)
    kept = sum(int(each.sum()) for each in counts)
    assert 0 < empty < 5
    assert strategy.report(state) == {"share/kept": kept / 80, "share/empty outputs": empty / 5}


def test_biases_and_the_state_before_stay(bench: Bench) -> None:
    strategy, learner = Supermask(momentum=0.5), bench.springs(SHAPES)
    state = strategy.init(learner, 0)
    before = clone(state.scores), clone(state.momenta), clone(learner.params)
    a_round(bench, strategy, state, learner)
    assert all(torch.equal(x, before[0][name]) for name, x in state.scores.items())
    assert all(torch.equal(x, before[1][name]) for name, x in state.momenta.items())
    assert torch.equal(learner.x["body.bias"], before[2]["body.bias"])


def test_it_never_talks_and_needs_the_first_weights() -> None:
    strategy: AnyStrategy = Supermask()
    assert (strategy.exchanges, strategy.needs) == (
        0,
        frozenset({Need.FIRST_WEIGHTS, Need.NO_MATRIX_BUFFERS}),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"keep_representation": 0.0},
        {"keep_decision": (0.5, 1.5)},
        {"steps": 0},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"least_kept": -1},
    ],
)
def test_bad_fields_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))}.*expected"):
        Supermask(**fields)  # type: ignore[arg-type]
