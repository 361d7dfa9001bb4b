"""Learners on a GPU against the CPU: fleets, single learners, bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from p2p_dml.data import Dataset
from p2p_dml.learners import Fleet, SupervisedLearner, Training
from p2p_dml.learners.fleet import Member
from p2p_dml.models import build_model
from p2p_dml.types import Tensors

pytestmark = pytest.mark.cuda

SHARDS = np.split(np.arange(90), [40, 45, 46])
"""Shard sizes 40, 5, 1 and 44."""

TRAININGS = {
    "sgd": Training(lr=0.1, batch_size=16, steps=3, momentum=0.9, clip_norm=1.0),
    "adam": Training(optimiser="adam", lr=0.01, batch_size=16, epochs=1),
}


def images() -> Dataset:
    words = np.random.Philox(key=[3, 4]).random_raw(90 * 144)
    pixels = (words >> 56).astype(np.uint8).reshape(90, 1, 12, 12)
    labels = np.arange(90) % 4
    return Dataset(
        name="images",
        train_x=pixels,
        train_y=labels,
        test_x=pixels[:20],
        test_y=labels[:20],
        num_classes=4,
        mean=(120.0,),
        std=(70.0,),
    )


def model(name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    return build_model({"name": name}, (1, 12, 12), 4, seed=3, dtype=dtype).to(device)


def members(
    name: str, training: Training, dtype: torch.dtype, device: torch.device
) -> list[Member]:
    return Fleet(model(name, dtype, device), images(), SHARDS, training, seed=1).members


def alone(training: Training, dtype: torch.dtype, device: torch.device) -> SupervisedLearner:
    net = model("mlp", dtype, device)
    return SupervisedLearner(net, images(), SHARDS[0], training, seed=1, peer=0)


def assert_close(found: Tensors, expected: Tensors, tolerance: float) -> None:
    assert list(found) == list(expected)
    for name, x in expected.items():
        torch.testing.assert_close(found[name].cpu(), x.cpu(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "training", "dtype", "tolerance"),
    [
        ("softmax", "sgd", torch.float64, 1e-9),
        ("mlp", "sgd", torch.float64, 1e-9),
        ("mlp", "adam", torch.float64, 1e-9),
        ("lenet", "sgd", torch.float64, 1e-9),
        ("mlp", "sgd", torch.float32, 1e-3),
    ],
)
def test_a_fleet_is_that_of_the_cpu(
    gpu: torch.device, name: str, training: str, dtype: torch.dtype, tolerance: float
) -> None:
    on_gpu = members(name, TRAININGS[training], dtype, gpu)
    on_cpu = members(name, TRAININGS[training], dtype, torch.device("cpu"))
    for round_ in (1, 2):
        for one, other in zip(on_gpu, on_cpu, strict=True):
            one.seek(round_)
            other.seek(round_)
            assert_close(one.grad(one.params), other.grad(other.params), tolerance)
            assert one.train() == pytest.approx(other.train(), rel=tolerance)
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert all(x.device == gpu for x in one.params.values())
        assert_close(one.params, other.params, tolerance)
        found, expected = one.evaluate(), other.evaluate()
        assert found.loss == pytest.approx(expected.loss, rel=tolerance)
        assert found.accuracy == pytest.approx(expected.accuracy, abs=0.05)


def test_a_single_learner_is_that_of_the_cpu_and_its_state_can_be_taken_over(
    gpu: torch.device,
) -> None:
    training = TRAININGS["adam"]
    one, other = (alone(training, torch.float64, device) for device in (gpu, torch.device("cpu")))
    for learner in (one, other):
        learner.seek(1)
        learner.train()
    assert_close(one.params, other.params, 1e-9)
    again = alone(training, torch.float64, gpu)
    again.load_state({name: x.cpu() for name, x in one.state().items()})
    for learner in (one, again):
        learner.seek(2)
        learner.train()
    assert_close(again.params, one.params, 1e-9)


@pytest.mark.parametrize("kind", ["alone", "fleet"])
def test_bfloat16_computes_in_bfloat16_and_keeps_parameters(gpu: torch.device, kind: str) -> None:
    grads = []
    for precision in ("full", "bfloat16"):
        training = Training(lr=0.1, batch_size=16, steps=2, precision=precision)
        learner: Member | SupervisedLearner
        if kind == "fleet":
            learner = members("mlp", training, torch.float32, gpu)[0]
        else:
            learner = alone(training, torch.float32, gpu)
        learner.seek(1)
        grads.append(learner.grad(learner.params))
        assert np.isfinite(learner.train())
        assert {x.dtype for x in learner.params.values()} == {torch.float32}
    exact, rough = grads
    assert all((rough[name] - g).norm() <= 0.05 * g.norm() for name, g in exact.items())
    assert not all(torch.equal(rough[name], g) for name, g in exact.items())
