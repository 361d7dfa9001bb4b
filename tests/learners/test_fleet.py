"""A fleet against learners of one peer each: the same numbers, whatever the shards and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from p2p_dml.errors import ConfigError, TrainingError
from p2p_dml.learners import Fleet, SupervisedLearner, Training, obstacle
from p2p_dml.models import MODELS
from p2p_dml.types import Learner, Tensors

if TYPE_CHECKING:
    from tests.learners.conftest import Bench

TRAININGS = {
    "sgd": Training(lr=0.1, batch_size=8, steps=3),
    "epochs": Training(lr=0.1, batch_size=8, epochs=2),
    "momentum": Training(lr=0.1, batch_size=8, momentum=0.9, weight_decay=0.1),
    "momentum anew": Training(lr=0.1, batch_size=8, momentum=0.9, optimiser_state="reset"),
    "clipped": Training(lr=0.5, batch_size=8, steps=2, clip_norm=0.3),
    "adam": Training(optimiser="adam", lr=0.01, batch_size=8, weight_decay=0.1),
    "adam anew": Training(optimiser="adam", lr=0.01, batch_size=8, optimiser_state="reset"),
    "adamw": Training(optimiser="adamw", lr=0.01, batch_size=8, epochs=2, weight_decay=0.1),
}


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_rounds_of_training_and_mixing_are_those_of_single_learners(
    bench: Bench, training: Training
) -> None:
    members, alone = bench.pair(training)
    for round_ in (1, 2, 3):
        for one, other in zip(members, alone, strict=True):
            one.seek(round_)
            other.seek(round_)
            assert one.train() == pytest.approx(other.train(), rel=1e-10)
        bench.mix(members)
        bench.mix(alone)
    for one, other in zip(members, alone, strict=True):
        bench.assert_close(one.params, other.params)
        bench.assert_close(dict(sorted(one.state().items())), dict(sorted(other.state().items())))


@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet", "resnet"])
def test_image_models(bench: Bench, name: str) -> None:
    dataset = bench.images()
    assert obstacle(bench.model_of(name, dataset), torch.ones(1, *dataset.shape).double()) is None
    members, alone = bench.pair(Training(lr=0.05, batch_size=8, steps=2), name)
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
        one.train()
        other.train()
        bench.assert_close(one.params, other.params, 1e-9)
        found, expected = one.evaluate(), other.evaluate()
        assert (found.accuracy, found.samples) == (expected.accuracy, expected.samples)
        assert found.loss == pytest.approx(expected.loss, rel=1e-9)


def test_float32_agrees_to_its_rounding(bench: Bench) -> None:
    members, alone = bench.pair(Training(lr=0.1, batch_size=8, steps=4), dtype=torch.float32)
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
        one.train()
        other.train()
        bench.assert_close(one.params, other.params, 1e-5)


# --- peers see their own training only ---------------------------------------------------------


def trained_alone(
    bench: Bench, peer: int, change: Callable[[Tensor], Tensor], rounds: int = 1
) -> Tensors:
    _, alone = bench.pair(TRAININGS["adam"])
    for round_ in range(1, rounds + 1):
        alone[peer].seek(round_)
        for x in alone[peer].params.values():
            change(x)
        alone[peer].train()
    return alone[peer].params


def test_others_training_shows_only_when_they_train_themselves(bench: Bench) -> None:
    members, _ = bench.pair(TRAININGS["adam"])
    before = {name: x.clone() for name, x in members[1].params.items()}
    for one in members:
        one.seek(1)
    members[0].train()
    bench.assert_close(members[1].params, before, 0.0)
    members[1].train()
    bench.assert_close(members[1].params, trained_alone(bench, 1, lambda x: x))


@pytest.mark.parametrize("first", [0, 1])
def test_what_was_mixed_before_it_trains_is_trained_as_mixed(bench: Bench, first: int) -> None:
    members, _ = bench.pair(TRAININGS["adam"])
    for round_ in (1, 2):
        for one in members:
            one.seek(round_)
        members[first].train()  # trains the others ahead, from what they are now
        for one in members:
            if one is not members[first]:
                for x in one.params.values():
                    x.mul_(0.5)
                one.train()
    for peer, one in enumerate(members):
        if peer != first:
            bench.assert_close(
                one.params, trained_alone(bench, peer, lambda x: x.mul_(0.5), rounds=2)
            )


def test_a_changed_peer_that_trains_first_is_trained_alone(bench: Bench) -> None:
    members, _ = bench.pair(TRAININGS["adam"])
    for one in members:
        one.seek(1)
        one.params = {name: x * 0.5 for name, x in one.params.items()}
        one.train()
    for peer, one in enumerate(members):
        bench.assert_close(one.params, trained_alone(bench, peer, lambda x: x.mul_(0.5)))


def test_training_twice_in_a_round_takes_the_same_batches_again(bench: Bench) -> None:
    members, alone = bench.pair(TRAININGS["momentum"])
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
        losses = [one.train(), one.train()]
        assert losses == pytest.approx([other.train(), other.train()], rel=1e-10)
        bench.assert_close(one.params, other.params)


def test_an_evaluation_is_of_the_model_as_it_is(bench: Bench) -> None:
    members, alone = bench.pair(TRAININGS["sgd"])
    first = members[1].evaluate()
    assert members[0].evaluate().loss == pytest.approx(first.loss)
    with torch.no_grad():
        for one in (members[1], alone[1]):
            for x in one.params.values():
                x.mul_(-3.0)
    assert members[1].evaluate().loss == pytest.approx(alone[1].evaluate().loss, rel=1e-10)
    members[1].seek(1)
    members[1].train()
    alone[1].seek(1)
    alone[1].train()
    assert members[1].evaluate().loss == pytest.approx(alone[1].evaluate().loss, rel=1e-10)


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_personal_evaluations_are_those_of_single_learners(bench: Bench, name: str) -> None:
    """Shards of one to four classes, of one sample to 31."""
    dataset = bench.images()
    training = TRAININGS["sgd"]
    members = Fleet(
        bench.model_of(name, dataset), dataset, bench.shards(), training, seed=1, evaluate_on="own"
    ).members
    for round_ in (0, 1):
        for peer, rows in enumerate(bench.shards()):
            alone = SupervisedLearner(
                bench.model_of(name, dataset),
                dataset,
                rows,
                training,
                seed=1,
                peer=peer,
                evaluate_on="own",
            )
            alone.params = members[peer].params
            found, expected = members[peer].evaluate(), alone.evaluate()
            assert found.accuracy == pytest.approx(expected.accuracy, rel=1e-12)
            assert found.loss == pytest.approx(expected.loss, rel=1e-10)
            assert found.samples == expected.samples
        members[round_].seek(1)
        members[round_].train()


def test_a_fleet_refuses_classes_without_a_test(bench: Bench) -> None:
    dataset = replace(bench.images(), test_y=np.zeros(11, np.int64))
    with pytest.raises(ConfigError, match="no test samples of class"):
        Fleet(
            bench.model_of("mlp", dataset),
            dataset,
            bench.shards(),
            TRAININGS["sgd"],
            seed=1,
            evaluate_on="own",
        )


def test_gradients_walk_through_the_batches_and_change_nothing(bench: Bench) -> None:
    members, alone = bench.pair(TRAININGS["sgd"])
    before = {name: x.clone() for name, x in members[3].params.items()}
    at = {name: x + 0.1 for name, x in before.items()}
    for one, other in zip(members, alone, strict=True):
        one.seek(4)
        other.seek(4)
        for _ in range(3):
            bench.assert_close(one.grad(at), other.grad(at))
    bench.assert_close(members[3].params, before, 0.0)


def test_frozen_parameters_stay_and_have_no_gradient(bench: Bench) -> None:
    dataset = bench.images()
    module = bench.model_of("mlp", dataset)
    frozen = next(iter(dict(module.named_parameters())))
    module.get_parameter(frozen).requires_grad_(False)
    one = Fleet(
        module, dataset, bench.shards(), Training(lr=0.1, weight_decay=0.1), seed=1
    ).members[0]
    before = {name: x.clone() for name, x in one.params.items()}
    one.seek(1)
    one.train()
    moved = {name for name, x in one.params.items() if not torch.equal(x, before[name])}
    assert moved == before.keys() - {frozen}
    assert not one.grad(before)[frozen].any()
    one.seek(2)
    assert not one.grad(one.params)[frozen].any()


def test_a_loss_that_is_not_finite_is_its_own_peers_error(bench: Bench) -> None:
    members, _ = bench.pair(TRAININGS["sgd"])
    for one in members:
        one.seek(2)
    members[0].train()
    members[2].params = {name: x * torch.nan for name, x in members[2].params.items()}
    with pytest.raises(TrainingError, match="peer 2, round 2: loss is nan after step 0 of 3"):
        members[2].train()
    assert members[1].train() > 0


def test_satisfies_the_protocol_with_the_parts_of_the_model(bench: Bench) -> None:
    members, alone = bench.pair(TRAININGS["sgd"])
    one: Learner = members[1]
    assert one.parts == alone[1].parts
    assert [each.num_samples for each in members] == list(bench.ragged)
    with pytest.raises(ValueError, match="not the model's tensors"):
        one.params = {"other": torch.zeros(1)}


# --- models ------------------------------------------------------------------------------------


def test_every_built_in_model_is_either_batched_rightly_or_refused(bench: Bench) -> None:
    for name in MODELS:
        dataset = bench.text() if name.startswith("char") else bench.images(shape=(3, 32, 32))
        module = bench.model_of(name, dataset)
        sample = torch.from_numpy(dataset.train_x[:1].copy())
        found = obstacle(module, sample if dataset.is_tokens else sample.double())
        assert (found is not None) == name.startswith("char"), f"{name}: {found}"


def test_a_text_model(bench: Bench) -> None:
    members, alone = bench.pair(Training(lr=0.1, batch_size=8, steps=2), "tokens", bench.text())
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
        assert one.train() == pytest.approx(other.train(), rel=1e-9)
        bench.assert_close(one.params, other.params, 1e-9)
        assert one.evaluate().loss == pytest.approx(other.evaluate().loss, rel=1e-9)


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_a_resumed_fleet_has_every_bit_of_an_uninterrupted_one(
    bench: Bench, training: Training
) -> None:
    members, again = bench.pair(training)[0], bench.pair(training)[0]
    for round_ in (1, 2, 3, 4):
        if round_ == 3:
            for one, other in zip(members, again, strict=True):
                other.load_state(one.state())
        for group in (members, again) if round_ > 2 else (members,):
            for one in group:
                one.seek(round_)
            for one in group:
                one.train()
            bench.mix(group)
    for one, other in zip(members, again, strict=True):
        ours, expected = other.state(), one.state()
        assert list(ours) == list(expected)
        assert all(torch.equal(ours[name], x) for name, x in expected.items())


def test_a_fleet_takes_over_what_single_learners_have_saved(bench: Bench) -> None:
    members, alone = bench.pair(TRAININGS["adam"])
    for one in alone:
        one.seek(1)
        one.train()
    for member, one in zip(members, alone, strict=True):
        member.load_state(one.state())
        state = member.state()
        assert state.keys() == one.state().keys()
        assert all(torch.equal(state[name], x) for name, x in one.state().items())


def test_states_of_others_are_refused(bench: Bench) -> None:
    adam, momentum = (bench.pair(TRAININGS[name])[0][0] for name in ("adam", "momentum"))
    with pytest.raises(
        ConfigError, match="the checkpoint is of another optimiser: it has 'exp_avg'"
    ):
        momentum.load_state(adam.state())
    (other, *_), _ = bench.pair(TRAININGS["adam"], "softmax")
    with pytest.raises(ConfigError, match="does not fit the model"):
        other.load_state(adam.state())
