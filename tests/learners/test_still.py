"""The model that is only parameters, and the training that leaves them alone."""

from __future__ import annotations

import time

import pytest
import torch

from p2p_dml.learners import FunctionLearner
from p2p_dml.learners.still import Vector, rest, vector


def test_a_round_changes_nothing_and_tells_when_it_was() -> None:
    learner = FunctionLearner(vector(size=5), rest, peer=0)
    before, wall, cpu = learner.state(), time.time(), time.process_time()
    learner.seek(1)
    assert learner.train() == 0.0
    assert learner.metrics["at"] >= wall
    assert learner.metrics["cpu_s"] >= cpu
    assert all(torch.equal(x, before[name]) for name, x in learner.state().items())


def test_its_parameters_are_one_flat_tensor_of_zeros() -> None:
    module = vector(size=7)
    assert isinstance(module, Vector)
    assert [list(x.shape) for x in module.parameters()] == [[7]]
    assert not module.values.any()
    sample = torch.ones(3)
    assert module(sample) is sample


def test_no_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, found 0"):
        vector(size=0)
