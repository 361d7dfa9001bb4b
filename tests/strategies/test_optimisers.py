"""SGD and Adam against torch's own, and what a strategy relies on beyond them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from p2p_dml.strategies._optimisers import SGD, Adam
from p2p_dml.types import Tensors

WEIGHT = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)


def gradients(count: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(3)
    return [torch.randn(2, 2, generator=draws, dtype=torch.float64) for _ in range(count)]


def torchs(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Tensor:
    """The weight after five steps of torch's optimiser."""
    x = torch.nn.Parameter(WEIGHT.clone())
    optimiser = make([x])
    for g in gradients(5):
        x.grad = g.clone()
        optimiser.step()
    return x.detach()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_torchs(momentum: float, weight_decay: float) -> None:
    sgd = SGD(lr=0.2, momentum=momentum, weight_decay=weight_decay)
    x: Tensors = {"w": WEIGHT.clone()}
    momenta = sgd.at_rest(x)
    for g in gradients(5):
        sgd.step(x, {"w": g}, momenta)
    expected = torchs(
        lambda x: torch.optim.SGD(x, lr=0.2, momentum=momentum, weight_decay=weight_decay)
    )
    torch.testing.assert_close(x["w"], expected, rtol=1e-14, atol=1e-14)
    assert bool(momenta) == bool(momentum)


def test_adam_is_torchs() -> None:
    adam = Adam(lr=0.2)
    x: Tensors = {"w": WEIGHT.clone()}
    moments = adam.at_rest(x)
    for g in gradients(5):
        moments = adam.step(x, {"w": g}, moments)
    expected = torchs(lambda x: torch.optim.Adam(x, lr=0.2))
    torch.testing.assert_close(x["w"], expected, rtol=1e-13, atol=1e-14)
    assert moments.steps == 5


def test_gradients_are_left_alone_and_tensors_of_one_dimension_are_not_decayed() -> None:
    x = {"weight": torch.ones(1, 1), "bias": torch.ones(1)}
    gradient = {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}
    sgd = SGD(lr=0.5, momentum=0.5, weight_decay=0.2)
    sgd.step(x, gradient, sgd.at_rest(x))
    assert x["weight"].item() == pytest.approx(1 - 0.5 * 1.2)
    assert x["bias"].item() == 1
    assert gradient["weight"].item() == 1


@pytest.mark.parametrize(
    "fields",
    [{"lr": 0.0}, {"lr": float("inf")}, {"momentum": 1.0}, {"weight_decay": -1.0}],
)
def test_bad_fields_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} = .*expected"):
        SGD(**({"lr": 0.1} | fields))


def test_adam_refuses_a_step_size_of_0() -> None:
    with pytest.raises(ValueError, match=r"lr = 0.0: expected"):
        Adam(lr=0.0)
