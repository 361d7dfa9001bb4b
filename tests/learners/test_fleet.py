"""A fleet against learners of one peer each: the same numbers, whatever the shards and settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError, TrainingError
from p2p_dml.learners import Fleet, SupervisedLearner, Training, obstacle
from p2p_dml.learners.fleet import Member
from p2p_dml.models import MODELS, build_model
from p2p_dml.types import Learner, Tensors

RAGGED = (31, 4, 1, 18)
"""Shard sizes: more than a batch, less than one, a single sample."""


def images(num_samples: int = 60, shape: tuple[int, ...] = (1, 12, 12)) -> Dataset:
    words = np.random.Philox(key=[5, 6]).random_raw(num_samples * int(np.prod(shape)))
    pixels = (words >> 56).astype(np.uint8).reshape(num_samples, *shape)
    labels = np.arange(num_samples) % 4
    return Dataset(
        name="images",
        train_x=pixels,
        train_y=labels,
        test_x=pixels[:11],
        test_y=labels[::-1][:11].copy(),
        num_classes=4,
        mean=(120.0,),
        std=(70.0,),
    )


def text(num_samples: int = 60, length: int = 7) -> Dataset:
    words = np.random.Philox(key=[7, 8]).random_raw(num_samples * (length + 1))
    tokens = (words % 5).astype(np.int64).reshape(num_samples, length + 1)
    x, y = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    return Dataset(name="text", train_x=x, train_y=y, test_x=x[:9], test_y=y[:9], num_classes=5)


def shards(sizes: tuple[int, ...] = RAGGED) -> list[NDArray[Any]]:
    """Disjoint rows, not in order."""
    order = np.random.Philox(key=[1, 2]).random_raw(sum(sizes)).argsort(kind="stable")
    return np.split(order, np.cumsum(sizes)[:-1])


def model_of(name: str, dataset: Dataset, dtype: torch.dtype = torch.float64) -> nn.Module:
    if name == "tokens":
        torch.manual_seed(3)
        return nn.Sequential(nn.Embedding(5, 6), nn.Tanh(), nn.Linear(6, 5)).to(dtype)
    return build_model(
        {"name": name},
        dataset.shape,
        dataset.num_classes,
        seed=3,
        dtype=dtype,
        is_tokens=dataset.is_tokens,
    )


def pair(
    training: Training,
    name: str = "mlp",
    dataset: Dataset | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[list[Member], list[SupervisedLearner]]:
    """A fleet's members, and learners of their own with the same models, data and seed."""
    data = dataset or images()
    fleet = Fleet(model_of(name, data, dtype), data, shards(), training, seed=1)
    alone = [
        SupervisedLearner(model_of(name, data, dtype), data, rows, training, seed=1, peer=peer)
        for peer, rows in enumerate(shards())
    ]
    return fleet.members, alone


def assert_close(got: Tensors, expected: Tensors, tolerance: float = 1e-10) -> None:
    assert list(got) == list(expected)
    for name, x in expected.items():
        torch.testing.assert_close(got[name], x, rtol=tolerance, atol=tolerance)


def mix(learners: Sequence[Learner]) -> None:
    """Replace every model by the mean of itself and the next peer's, in place."""
    before = [{name: x.clone() for name, x in one.params.items()} for one in learners]
    for place, one in enumerate(learners):
        for name, x in one.params.items():
            x.add_(before[(place + 1) % len(before)][name]).div_(2)


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
def test_rounds_of_training_and_mixing_are_those_of_single_learners(training: Training) -> None:
    members, alone = pair(training)
    for round_ in (1, 2, 3):
        for one, other in zip(members, alone, strict=True):
            one.seek(round_)
            other.seek(round_)
            assert one.train() == pytest.approx(other.train(), rel=1e-10)
        mix(members)
        mix(alone)
    for one, other in zip(members, alone, strict=True):
        assert_close(one.params, other.params)
        assert_close(dict(sorted(one.state().items())), dict(sorted(other.state().items())))


@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet", "resnet"])
def test_image_models(name: str) -> None:
    dataset = images()
    assert obstacle(model_of(name, dataset), torch.ones(1, *dataset.shape).double()) is None
    members, alone = pair(Training(lr=0.05, batch_size=8, steps=2), name)
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
        one.train()
        other.train()
        assert_close(one.params, other.params, 1e-9)
        found, expected = one.evaluate(), other.evaluate()
        assert (found.accuracy, found.samples) == (expected.accuracy, expected.samples)
        assert found.loss == pytest.approx(expected.loss, rel=1e-9)


def test_float32_agrees_to_its_rounding() -> None:
    members, alone = pair(Training(lr=0.1, batch_size=8, steps=4), dtype=torch.float32)
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
        one.train()
        other.train()
        assert_close(one.params, other.params, 1e-5)


# --- peers see their own training only ---------------------------------------------------------


def trained_alone(peer: int, change: Callable[[Tensor], Tensor], rounds: int = 1) -> Tensors:
    _, alone = pair(TRAININGS["adam"])
    for round_ in range(1, rounds + 1):
        alone[peer].seek(round_)
        for x in alone[peer].params.values():
            change(x)
        alone[peer].train()
    return alone[peer].params


def test_others_training_shows_only_when_they_train_themselves() -> None:
    members, _ = pair(TRAININGS["adam"])
    before = {name: x.clone() for name, x in members[1].params.items()}
    for one in members:
        one.seek(1)
    members[0].train()
    assert_close(members[1].params, before, 0.0)
    members[1].train()
    assert_close(members[1].params, trained_alone(1, lambda x: x))


@pytest.mark.parametrize("first", [0, 1])
def test_what_was_mixed_before_it_trains_is_trained_as_mixed(first: int) -> None:
    members, _ = pair(TRAININGS["adam"])
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
            assert_close(one.params, trained_alone(peer, lambda x: x.mul_(0.5), rounds=2))


def test_a_changed_peer_that_trains_first_is_trained_alone() -> None:
    members, _ = pair(TRAININGS["adam"])
    for one in members:
        one.seek(1)
        one.params = {name: x * 0.5 for name, x in one.params.items()}
        one.train()
    for peer, one in enumerate(members):
        assert_close(one.params, trained_alone(peer, lambda x: x.mul_(0.5)))


def test_training_twice_in_a_round_takes_the_same_batches_again() -> None:
    members, alone = pair(TRAININGS["momentum"])
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
        losses = [one.train(), one.train()]
        assert losses == pytest.approx([other.train(), other.train()], rel=1e-10)
        assert_close(one.params, other.params)


def test_an_evaluation_is_of_the_model_as_it_is() -> None:
    members, alone = pair(TRAININGS["sgd"])
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
def test_personal_evaluations_are_those_of_single_learners(name: str) -> None:
    """Shards of one to four classes, of one sample to 31."""
    dataset = images()
    training = TRAININGS["sgd"]
    members = Fleet(
        model_of(name, dataset), dataset, shards(), training, seed=1, evaluate_on="own"
    ).members
    for round_ in (0, 1):
        for peer, rows in enumerate(shards()):
            alone = SupervisedLearner(
                model_of(name, dataset),
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


def test_a_fleet_refuses_classes_without_a_test() -> None:
    dataset = replace(images(), test_y=np.zeros(11, np.int64))
    with pytest.raises(ConfigError, match="no test samples of class"):
        Fleet(
            model_of("mlp", dataset),
            dataset,
            shards(),
            TRAININGS["sgd"],
            seed=1,
            evaluate_on="own",
        )


def test_gradients_walk_through_the_batches_and_change_nothing() -> None:
    members, alone = pair(TRAININGS["sgd"])
    before = {name: x.clone() for name, x in members[3].params.items()}
    at = {name: x + 0.1 for name, x in before.items()}
    for one, other in zip(members, alone, strict=True):
        one.seek(4)
        other.seek(4)
        for _ in range(3):
            assert_close(one.grad(at), other.grad(at))
    assert_close(members[3].params, before, 0.0)


def test_frozen_parameters_stay_and_have_no_gradient() -> None:
    dataset = images()
    module = model_of("mlp", dataset)
    frozen = next(iter(dict(module.named_parameters())))
    module.get_parameter(frozen).requires_grad_(False)
    one = Fleet(module, dataset, shards(), Training(lr=0.1, weight_decay=0.1), seed=1).members[0]
    before = {name: x.clone() for name, x in one.params.items()}
    one.seek(1)
    one.train()
    moved = {name for name, x in one.params.items() if not torch.equal(x, before[name])}
    assert moved == before.keys() - {frozen}
    assert not one.grad(before)[frozen].any()


def test_a_loss_that_is_not_finite_is_its_own_peers_error() -> None:
    members, _ = pair(TRAININGS["sgd"])
    for one in members:
        one.seek(2)
    members[0].train()
    members[2].params = {name: x * torch.nan for name, x in members[2].params.items()}
    with pytest.raises(TrainingError, match="peer 2, round 2: loss is nan after step 0 of 3"):
        members[2].train()
    assert members[1].train() > 0


def test_satisfies_the_protocol_with_the_parts_of_the_model() -> None:
    members, alone = pair(TRAININGS["sgd"])
    one: Learner = members[1]
    assert one.parts == alone[1].parts
    assert [each.num_samples for each in members] == list(RAGGED)
    with pytest.raises(ValueError, match="not the model's tensors"):
        one.params = {"other": torch.zeros(1)}


# --- what cannot be batched -------------------------------------------------------------------


class _Count(nn.Module):
    """Its output depends on how often it was called: no function of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.scale * self.calls


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if float(x.sum()) > 0 else x


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "buffers, such as BatchNorm's"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), "cannot be batched: .*random"),
        (_Count(), "something else when it is batched"),
        (_Branch(), "cannot be batched: "),
    ],
    ids=["batchnorm", "dropout", "counter", "branch"],
)
def test_obstacles(module: nn.Module, why: str) -> None:
    found = obstacle(module, torch.ones(1, 4))
    assert found is not None

    assert re.search(why, found)


def test_every_built_in_model_is_either_batched_rightly_or_refused() -> None:
    for name in MODELS:
        dataset = text() if name.startswith("char") else images(shape=(3, 32, 32))
        module = model_of(name, dataset)
        sample = torch.from_numpy(dataset.train_x[:1].copy())
        found = obstacle(module, sample if dataset.is_tokens else sample.double())
        assert (found is not None) == name.startswith("char"), f"{name}: {found}"


def test_a_text_model() -> None:
    members, alone = pair(Training(lr=0.1, batch_size=8, steps=2), "tokens", text())
    for one, other in zip(members, alone, strict=True):
        one.seek(1)
        other.seek(1)
        assert one.train() == pytest.approx(other.train(), rel=1e-9)
        assert_close(one.params, other.params, 1e-9)
        assert one.evaluate().loss == pytest.approx(other.evaluate().loss, rel=1e-9)
