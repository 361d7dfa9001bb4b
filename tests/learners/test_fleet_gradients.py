"""Gradients of a fleet: those that open a round are computed for all peers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from torch import Tensor, nn

from p2p_dml.learners import Fleet, Training
from p2p_dml.learners.fleet import Member

if TYPE_CHECKING:
    from tests.learners.conftest import Bench

PLAIN = Training(lr=0.1, batch_size=8, steps=3)


class _Tally(nn.Module):
    """One layer, whose copies all note when they are called; 0 where it does not train."""

    calls: ClassVar[list[bool]] = []

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(144, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.training)
        out: Tensor = self.layer(x.flatten(1))
        return out if self.training else 0 * out


def tallied(bench: Bench) -> list[Member]:
    """Members of a fleet of `_Tally` in round 1, of which nothing was asked yet."""
    members = Fleet(_Tally(), bench.images(), bench.shards(), PLAIN, seed=1).members
    for one in members:
        one.seek(1)
    _Tally.calls.clear()
    return members


@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet"])
def test_rounds_of_gradients_at_ones_own_model_are_those_of_single_learners(
    bench: Bench, name: str
) -> None:
    members, alone = bench.pair(PLAIN, name)
    for round_ in (1, 2, 3):
        for one, other in zip(members, alone, strict=True):
            one.seek(round_)
            other.seek(round_)
            for _ in range(2):
                found, expected = one.grad(one.params), other.grad(other.params)
                bench.assert_close(found, expected, 1e-9)
                for learner, grads in ((one, found), (other, expected)):
                    for tensor, x in learner.params.items():
                        x.sub_(grads[tensor], alpha=0.1)
        bench.mix(members)
        bench.mix(alone)


def test_the_first_to_ask_has_all_opening_gradients_computed(bench: Bench) -> None:
    members = tallied(bench)
    for one in members:
        one.grad(one.params)
    assert _Tally.calls == [True]
    for one in members:
        one.grad(one.params)
    assert len(_Tally.calls) == 1 + len(members)


def test_gradients_at_other_models_are_computed_alone(bench: Bench) -> None:
    members = tallied(bench)
    for one in members:
        one.grad({name: x.clone() for name, x in one.params.items()})
    assert len(_Tally.calls) == len(members)


def test_gradients_are_those_of_a_model_that_trains_after_an_evaluation_too(bench: Bench) -> None:
    members = tallied(bench)
    for one in members:
        one.evaluate()
        assert all(g.any() for g in one.grad(one.params).values())


def test_a_model_that_changes_before_its_peer_asks_has_the_gradient_of_what_it_is(
    bench: Bench,
) -> None:
    members, alone = bench.pair(PLAIN)
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
    members[0].grad(members[0].params)
    for one, other in zip(members[1:], alone[1:], strict=True):
        for learner in (one, other):
            for x in learner.params.values():
                x.mul_(0.5)
        bench.assert_close(one.grad(one.params), other.grad(other.params))


def test_peers_that_all_change_first_and_rounds_that_are_run_again(bench: Bench) -> None:
    members, alone = bench.pair(PLAIN)
    for round_ in (1, 2, 2):
        for one, other in zip(members, alone, strict=True):
            for learner in (one, other):
                learner.seek(round_)
                if round_ == 1:
                    learner.params = {name: 0.5 * x for name, x in learner.params.items()}
            bench.assert_close(one.grad(one.params), other.grad(other.params))


def test_a_peer_may_change_the_gradient_it_was_given(bench: Bench) -> None:
    members, alone = bench.pair(PLAIN)
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
        found = one.grad(one.params)
        bench.assert_close(found, other.grad(other.params))
        for g in found.values():
            g.zero_()
