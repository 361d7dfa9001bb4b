"""bfloat16 and compiled programs: the same learner to rounding, in its own dtype."""

from __future__ import annotations

import inspect
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError
from p2p_dml.learners import Fleet, SupervisedLearner, Training
from p2p_dml.learners._forward import compiled
from p2p_dml.learners.fleet import Member
from p2p_dml.models import build_model
from p2p_dml.types import Tensors

NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)


def problem() -> Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((96, 16), dtype=np.float32), np.arange(96) % 3
    return Dataset(name="x", train_x=x, train_y=y, test_x=x, test_y=y, num_classes=3)


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return build_model({"name": "mlp", "hidden": (24,)}, (16,), 3, seed=1, dtype=dtype)


def learner(
    kind: str, dtype: torch.dtype = torch.float32, **settings: Any
) -> SupervisedLearner | Member:
    training = Training(lr=0.1, batch_size=32, steps=2, **settings)
    rows = np.arange(96)
    if kind == "fleet":
        return Fleet(model(dtype), problem(), [rows], training, seed=0).members[0]
    return SupervisedLearner(model(dtype), problem(), rows, training, seed=0, peer=0)


def trained(found: SupervisedLearner | Member) -> tuple[Tensors, float]:
    """Gradient in round 1, and the loss of a round's training."""
    found.seek(1)
    grads = found.grad(found.params)
    return grads, found.train()


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's compiler
@pytest.mark.parametrize("kind", ["supervised", "fleet"])
@pytest.mark.parametrize(
    ("settings", "loose"),
    [
        ({"precision": "bfloat16"}, 5e-2),
        pytest.param({"compile": True}, 1e-5, marks=NEEDS_COMPILER),
    ],
    ids=["bfloat16", "compile"],
)
def test_agrees_with_full_precision(kind: str, settings: dict[str, Any], loose: float) -> None:
    exact, loss = trained(learner(kind))
    found, other = trained(learner(kind, **settings))
    assert other == pytest.approx(loss, rel=loose)
    for name, g in exact.items():
        assert found[name].dtype == g.dtype
        assert (found[name] - g).norm() <= loose * g.norm()
        same = bool(torch.equal(found[name], g))
        assert not (same and "precision" in settings), "bfloat16 was not used"


def test_bfloat16_tests_in_bfloat16_and_keeps_parameters() -> None:
    found = learner("supervised", precision="bfloat16")
    assert isinstance(found, SupervisedLearner)
    dtypes = []
    found.module[-1].register_forward_hook(lambda m, x, out: dtypes.append(out.dtype))  # type: ignore[index]
    found.evaluate()
    assert set(dtypes) == {torch.bfloat16}
    assert {p.dtype for p in found.params.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["supervised", "fleet"])
def test_bfloat16_is_for_float32(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.precision: 'bfloat16' .* found 'float64'"):
        learner(kind, torch.float64, precision="bfloat16")


def test_compiling_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise BackendCompilerFailed(fail, OSError("no compiler"), inspect.currentframe())

    monkeypatch.setattr(torch, "compile", lambda forward: fail)
    with pytest.raises(ConfigError, match=r"train\.compile: .*no compiler.*; install a C\+\+"):
        compiled(nn.Identity(), Training(compile=True))(torch.ones(1))
