"""The optimiser of local training: torch's bits, its state by names, and no compiler with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from p2p_dml.errors import ConfigError
from p2p_dml.learners import Training
from p2p_dml.learners._optimiser import Optimiser

DECAY = 0.1
Make = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(5, 7), (7,), (2, 3, 4)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(params: Sequence[nn.Parameter], step: int) -> None:
    """Others in each step; the second parameter has none in the first two."""
    generator = torch.Generator().manual_seed(100 + step)
    for index, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator)
        p.grad = None if index == 1 and step < 2 else grad


@pytest.mark.parametrize(
    ("training", "make"),
    [
        (Training(lr=0.2), lambda x: torch.optim.SGD(x, lr=0.2)),
        (
            Training(lr=0.2, momentum=0.9, weight_decay=DECAY),
            lambda x: torch.optim.SGD(x, lr=0.2, momentum=0.9, weight_decay=DECAY),
        ),
        (
            Training(optimiser="adam", weight_decay=DECAY),
            lambda x: torch.optim.Adam(x, lr=0.01, weight_decay=DECAY),
        ),
        (
            Training(optimiser="adamw", weight_decay=DECAY),
            lambda x: torch.optim.AdamW(x, lr=0.01, weight_decay=DECAY),
        ),
    ],
    ids=["sgd", "sgd with all", "adam", "adamw"],
)
def test_every_bit_is_torch_s(training: Training, make: Make) -> None:
    ours, theirs = parameters(), parameters()
    optimiser, expected = Optimiser(ours, training), make(theirs)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimiser.step()
        expected.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for index, entry in expected.state_dict()["state"].items():
        kept = {key: value for key, value in entry.items() if isinstance(value, Tensor)}
        assert optimiser.state.get(index, {}).keys() == kept.keys()
        assert all(torch.equal(optimiser.state[index][key], kept[key]) for key in kept)


@pytest.mark.parametrize(
    ("training", "keys"),
    [
        (Training(momentum=0.9), ("momentum_buffer",)),
        (Training(optimiser="adam"), ("exp_avg", "exp_avg_sq", "step")),
    ],
)
def test_state_by_names_and_back(training: Training, keys: tuple[str, ...]) -> None:
    params = parameters()
    optimiser = Optimiser(params, training)
    give_gradients(params, 0)
    optimiser.step()
    named = optimiser.named_state()
    assert list(named) == [f"{index}/{key}" for index in (0, 2) for key in keys]
    entries = optimiser.entries(named)
    assert entries.keys() == {0, 2}
    assert all(tuple(entry) == optimiser.keys == keys for entry in entries.values())
    assert torch.equal(entries[2][keys[0]], named[f"2/{keys[0]}"])
    entries[2][keys[0]].zero_()  # a copy
    assert named[f"2/{keys[0]}"].all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0/exp_avg", "of another optimiser than 'sgd': it has 'exp_avg'"),
        ("3/momentum_buffer", "'optimiser/3/momentum_buffer', and the model trains 3 parameters"),
    ],
)
def test_state_that_does_not_fit(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Optimiser(parameters(), Training(momentum=0.9)).entries({name: torch.ones(1)})


def test_training_imports_no_compiler() -> None:
    """It takes 1.2 s and 75 MB in every process, for nothing."""
    program = """if True:
        import sys
        import numpy as np
        from p2p_dml import data, models
        from p2p_dml.learners import SupervisedLearner, Training
        digits = data.load({"name": "digits"})
        for optimiser in ("sgd", "adam", "adamw"):
            model = models.softmax(shape=digits.shape, classes=digits.num_classes)
            training = Training(optimiser=optimiser, steps=2)
            learner = SupervisedLearner(model, digits, np.arange(64), training, seed=1, peer=0)
            learner.train()
            learner.load_state(learner.state())
            learner.evaluate()
        sys.exit("torch._dynamo" in sys.modules)
    """
    subprocess.run([sys.executable, "-c", program], check=True)
