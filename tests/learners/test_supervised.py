"""The usual learner against closed forms, torch itself, and its own promises."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from p2p_dml import data
from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError, TrainingError
from p2p_dml.learners import SupervisedLearner, Training
from p2p_dml.learners._draws import RoundDraws
from p2p_dml.learners._metrics import EvaluateOn
from p2p_dml.models import build_model
from p2p_dml.types import Learner, Tensors


def toy(num_samples: int = 20, features: int = 4, classes: int = 3, **changes: Any) -> Dataset:
    """Float features that grow with the sample's number; labels in turn."""
    x = np.arange(num_samples * features, dtype=np.float32).reshape(num_samples, features) / 40
    fields: dict[str, Any] = {
        "name": "toy",
        "train_x": x,
        "train_y": np.arange(num_samples) % classes,
        "test_x": x[:6],
        "test_y": np.arange(6) % classes,
        "num_classes": classes,
    }
    return Dataset(**(fields | changes))


def linear(dtype: torch.dtype = torch.float64, features: int = 4, classes: int = 3) -> nn.Module:
    return build_model({"name": "softmax"}, (features,), classes, seed=3, dtype=dtype)


def normed() -> nn.Module:
    """A model with every sort of state: BatchNorm buffers, a counter, dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)
    )


def learner(
    module: nn.Module | None = None,
    training: Training | None = None,
    dataset: Dataset | None = None,
    rows: int = 20,
    seed: int = 1,
    peer: int = 2,
    evaluate_on: EvaluateOn = "all",
) -> SupervisedLearner:
    return SupervisedLearner(
        linear() if module is None else module,
        toy() if dataset is None else dataset,
        np.arange(rows),
        training or Training(),
        seed=seed,
        peer=peer,
        evaluate_on=evaluate_on,
    )


def copies(tensors: Tensors) -> Tensors:
    return {name: x.clone() for name, x in tensors.items()}


def same(a: Tensors, b: Tensors) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_satisfies_the_protocol() -> None:
    one: Learner = learner()
    assert set(one.parts) == set(one.params) == {"1.weight", "1.bias"}


# --- training --------------------------------------------------------------------------------


def softmax_gradient(w: Tensor, b: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Closed form: (softmax(Wx + b) - onehot(y)) x^T / B."""
    error = torch.softmax(x @ w.T + b, 1) - nn.functional.one_hot(y, len(b))
    return error.T @ x / len(x), error.mean(0)


def test_one_full_step_is_the_closed_form() -> None:
    one = learner(training=Training(lr=0.5, batch_size=20))
    w, b = one.params["1.weight"].clone(), one.params["1.bias"].clone()
    x, y = torch.from_numpy(toy().train_x).double(), torch.from_numpy(toy().train_y)
    expected_loss = -torch.log_softmax(x @ w.T + b, 1)[torch.arange(20), y].mean()
    gw, gb = softmax_gradient(w, b, x, y)
    assert one.train() == pytest.approx(float(expected_loss), rel=1e-12)
    torch.testing.assert_close(one.params["1.weight"], w - 0.5 * gw)
    torch.testing.assert_close(one.params["1.bias"], b - 0.5 * gb)


def test_clipping_bounds_the_step() -> None:
    one = learner(training=Training(lr=1.0, steps=1, clip_norm=1e-3))
    before = copies(one.params)
    one.train()
    moved = torch.cat([(one.params[name] - before[name]).reshape(-1) for name in before])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_pixels_are_normalised_per_channel() -> None:
    x = np.stack([np.full((6, 2, 2), 10), np.full((6, 2, 2), 200)], axis=1).astype(np.uint8)
    dataset = toy(
        6, train_x=x, test_x=x, test_y=np.arange(6) % 3, mean=(8.0, 100.0), std=(2.0, 50.0)
    )
    seen: list[Tensor] = []
    module = build_model({"name": "softmax"}, (2, 2, 2), 3, seed=0)
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    one = learner(module, dataset=dataset, rows=6)
    one.train()
    one.evaluate()
    for batch in seen:
        assert (batch[:, 0] == 1).all() and (batch[:, 1] == 2).all()
        assert batch.dtype == torch.float32


def test_trains_on_its_own_rows_only() -> None:
    x = toy().train_x.copy()
    x[10:] = np.nan
    assert math.isfinite(learner(dataset=toy(train_x=x), rows=10).train())


def test_reads_read_only_memory(tmp_path: Path) -> None:
    data.share(toy(), tmp_path)
    mapped = learner(dataset=data.open_shared(tmp_path))
    plain = learner()
    assert mapped.train() == plain.train()
    assert mapped.evaluate() == plain.evaluate()


def test_rounds_differ_and_repeat() -> None:
    losses = []
    for round in (0, 1, 0):
        one = learner(normed(), Training(batch_size=4))
        one.seek(round)
        assert one.round == round
        losses.append(one.train())
    assert losses[0] == losses[2] != losses[1]


def test_reset_forgets_momentum() -> None:
    """After a reset, a round does not depend on the gradients of the round before."""
    state = {}
    for choice in ("keep", "reset"):
        one = learner(training=Training(momentum=0.9, optimiser_state=choice))
        start = copies(one.params)
        one.train()
        one.params = start
        one.train()
        state[choice] = copies(one.params)
    fresh = learner(training=Training(momentum=0.9))
    fresh.train()
    assert same(state["reset"], fresh.params)
    assert not same(state["keep"], fresh.params)


def test_loss_that_is_not_finite() -> None:
    x = toy().train_x.copy()
    x[7] = np.inf
    one = learner(dataset=toy(train_x=x), training=Training(lr=0.25, batch_size=1), peer=3)
    one.seek(7)
    position = [int(b[0]) for b in islice(RoundDraws(1, 3, 7).batches(20, 1), 20)].index(7)
    message = rf"peer 3, round 7: loss is nan after step {position} of 20; lower \[train\] lr"
    with pytest.raises(TrainingError, match=message):
        one.train()


def test_learns_digits() -> None:
    dataset = data.load({"name": "digits"})
    module = build_model({"name": "softmax"}, dataset.shape, 10, seed=0)
    one = learner(module, Training(lr=0.1, epochs=5), dataset, rows=dataset.num_samples)
    first = one.train()
    assert one.train() < first
    metrics = one.evaluate()
    assert metrics.accuracy is not None and metrics.accuracy > 0.9
    assert metrics.samples == 360


# --- parameters ------------------------------------------------------------------------------


def test_params_are_live_views() -> None:
    one = learner()
    before = one.params
    values = copies(before)
    one.train()
    assert not same(before, values)
    one.params = {name: torch.ones_like(x) for name, x in values.items()}
    assert all((p == 1).all() for p in one.module.parameters())
    assert (before["1.weight"] == 1).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: {"1.weight": p["1.weight"]},
        lambda p: p | {"more": p["1.bias"]},
        lambda p: p | {"1.bias": torch.zeros(4, dtype=torch.float64)},
        lambda p: p | {"1.bias": torch.zeros(3)},
    ],
)
def test_params_of_another_model_are_refused(change: Any) -> None:
    one = learner()
    with pytest.raises(ValueError, match="not the model's tensors"):
        one.params = change(one.params)


def test_batchnorm_statistics_are_mixed_or_local() -> None:
    mixed = learner(normed(), Training(buffers="mix")).params
    local = learner(normed(), Training(buffers="local"))
    assert set(mixed) - set(local.params) == {"1.running_mean", "1.running_var"}
    assert set(local.parts) == set(local.params)
    assert list(mixed) == [n for n in normed().state_dict() if n != "1.num_batches_tracked"]


# --- gradients -------------------------------------------------------------------------------


def test_a_step_along_grad_is_a_training_step() -> None:
    """One step of SGD from x is x - lr grad(x), dropout and BatchNorm included."""
    training = Training(lr=0.5, steps=1, batch_size=8, buffers="local")
    stepped, asked = learner(normed(), training), learner(normed(), training)
    at = copies(asked.params)
    grad = asked.grad(at)
    stepped.train()
    for name, x in stepped.params.items():
        torch.testing.assert_close(x, at[name] - 0.5 * grad[name])


def test_grad_is_at_the_given_point_and_leaves_the_learner_alone() -> None:
    one = learner(normed(), Training(batch_size=8))
    before = {name: x.clone() for name, x in one.module.state_dict().items()}
    at = {name: x + 0.1 for name, x in one.params.items()}
    kept = copies(at)
    grad = one.grad(at)
    assert same(before, one.module.state_dict())
    assert same(at, kept)
    assert list(grad) == list(one.params)
    assert not grad["1.running_mean"].any()
    other = learner(normed(), Training(batch_size=8))
    other.params = at
    assert same(grad, other.grad(other.params))
    assert not same(grad, learner(normed(), Training(batch_size=8)).grad(before))


def test_grads_of_a_round_walk_through_its_batches() -> None:
    """The gradients of one pass average to the gradient of the whole shard."""
    one, whole = learner(training=Training(batch_size=5)), learner(training=Training(batch_size=20))
    at = copies(one.params)
    grads = [one.grad(at) for _ in range(4)]
    mean = {name: sum(g[name] for g in grads) / 4 for name in at}
    for name, expected in whole.grad(at).items():
        torch.testing.assert_close(mean[name], expected)
    assert not same(grads[0], grads[1])
    one.seek(0)
    assert same(grads[0], one.grad(at))


def test_frozen_parameters_stay() -> None:
    module = normed()
    for name, p in module.named_parameters():
        p.requires_grad_(not name.startswith("0."))
    one = learner(module)
    before = copies(one.params)
    grad = one.grad(one.params)
    one.train()
    assert not grad["0.weight"].any() and grad["4.weight"].any()
    assert torch.equal(before["0.weight"], one.params["0.weight"])


# --- evaluation ------------------------------------------------------------------------------


def test_evaluation_by_hand() -> None:
    """A model that always says class 0 with probability 1/2, and 1/4 for the others."""
    one = learner()
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    one.params = {"1.weight": torch.zeros(3, 4, dtype=torch.float64), "1.bias": logits}
    metrics = one.evaluate()
    assert metrics.accuracy == pytest.approx(1 / 3)
    assert metrics.loss == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)
    assert metrics.samples == 6


def test_evaluation_in_chunks_counts_every_sample_once() -> None:
    count = 1234
    x = (np.arange(count * 4, dtype=np.float32).reshape(count, 4) % 7) / 7
    y = np.arange(count) % 3
    one = learner(dataset=toy(test_x=x, test_y=y))
    logits = one.module(torch.from_numpy(x).double())
    metrics = one.evaluate()
    right = (logits.argmax(1).numpy() == y).mean()
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(y))
    assert metrics.accuracy == pytest.approx(right)
    assert metrics.loss == pytest.approx(float(loss.detach()))
    assert metrics.samples == count


@pytest.mark.parametrize(("rows", "right", "samples"), [(1, 1.0, 4), (4, 0.5, 6), (5, 0.4, 6)])
def test_personal_evaluation_by_hand(rows: int, right: float, samples: int) -> None:
    """Class 0 is always right with probability 1/2; the others never, with 1/4."""
    one = learner(dataset=toy(test_y=np.array([0, 0, 0, 0, 1, 2])), rows=rows, evaluate_on="own")
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    one.params = {"1.weight": torch.zeros(3, 4, dtype=torch.float64), "1.bias": logits}
    metrics = one.evaluate()
    assert metrics.accuracy == pytest.approx(right)
    assert metrics.loss == pytest.approx(right * math.log(2) + (1 - right) * math.log(4))
    assert metrics.samples == samples


def test_classes_of_others_are_not_even_computed() -> None:
    seen: list[Tensor] = []
    module = linear()
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    learner(module, rows=2, evaluate_on="own").evaluate()
    assert torch.equal(torch.cat(seen), torch.from_numpy(toy().test_x[[0, 3, 1, 4]]).double())


def test_evaluation_changes_nothing() -> None:
    one = learner(normed())
    before = {name: x.clone() for name, x in one.module.state_dict().items()}
    assert one.evaluate() == one.evaluate()
    assert same(before, one.module.state_dict())


def test_text() -> None:
    tokens = np.arange(60).reshape(10, 6) % 4
    dataset = toy(
        classes=4, train_x=tokens, train_y=(tokens + 1) % 4, test_x=tokens, test_y=(tokens + 1) % 4
    )
    module = build_model({"name": "char_lstm", "hidden": 16}, (6,), 4, seed=0, is_tokens=True)
    one = learner(module, Training(optimiser="adam", lr=0.02, epochs=60), dataset, rows=10)
    one.train()
    metrics = one.evaluate()
    assert (metrics.accuracy, metrics.samples) == (1.0, 60)
    assert list(one.grad(one.params)) == list(one.params)


# --- checkpoints -----------------------------------------------------------------------------

TRAININGS = [
    Training(lr=0.1, momentum=0.9, batch_size=4),
    Training(optimiser="adam", batch_size=4),
    Training(optimiser="adamw", batch_size=4, optimiser_state="reset"),
    Training(batch_size=4),
]


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumed_is_uninterrupted(tmp_path: Path, training: Training, dtype: torch.dtype) -> None:
    one = learner(normed().to(dtype), training)
    for round in range(4):
        if round == 2:
            save_file(one.state(), tmp_path / "state.safetensors")
        one.seek(round)
        one.train()
    other = learner(normed().to(dtype), training)
    other.load_state(load_file(tmp_path / "state.safetensors"))
    for round in (2, 3):
        other.seek(round)
        other.train()
    assert same(one.state(), other.state())


def test_state_is_a_copy() -> None:
    one = learner(training=TRAININGS[0])
    one.train()
    state = one.state()
    kept = copies(state)
    one.train()
    assert same(state, kept)
    assert sorted(state) == [
        "model/1.bias",
        "model/1.weight",
        "optimiser/0/momentum_buffer",
        "optimiser/1/momentum_buffer",
    ]


def test_checkpoints_of_others_are_refused() -> None:
    adam, sgd = learner(training=TRAININGS[1]), learner(training=TRAININGS[0])
    adam.train()
    with pytest.raises(ConfigError, match="another optimiser than 'sgd'"):
        sgd.load_state(adam.state())
    with pytest.raises(ConfigError, match="does not fit the model"):
        learner(normed()).load_state(sgd.state())
