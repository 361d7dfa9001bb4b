"""The layers below both networks: values by hand, gradients by finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p2p_dml.hypernet._trunk import DEPTH, WIDTH, backward, draw, forward
from p2p_dml.types import Tensors


def layers(leak: float, size: int = 8) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    offset = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    return draw(generator, size, leak) | {f"offset/{d}": offset + d for d in range(DEPTH)}


def test_a_layer_by_hand() -> None:
    weights = {f"hidden/{d}": torch.eye(2, dtype=torch.float64) for d in range(DEPTH)}
    x = torch.tensor([2.0, -3.0], dtype=torch.float64)
    outputs = forward(weights, x, 0.1)
    torch.testing.assert_close(
        torch.stack(outputs[1:]),
        torch.tensor([[2.0, -0.3], [2.0, -0.03], [2.0, -0.003]], dtype=torch.float64),
    )


@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize("name", ["x", "hidden/0", "hidden/2", "offset/1"])
def test_gradients_are_finite_differences(leak: float, name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    weights, h = layers(leak), 1e-6
    x, top = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (8, WIDTH))
    outputs = forward(weights, x, leak)
    found = backward(weights, outputs, top, leak)
    gradient = {
        "x": found[0],
        "hidden/0": torch.outer(found[1], outputs[0]),
        "hidden/2": torch.outer(found[3], outputs[2]),
        "offset/1": found[2],
    }[name]
    way = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)

    def value(by: float) -> Tensor:
        moved = weights | ({} if name == "x" else {name: weights[name] + by * way})
        return forward(moved, x + by * way if name == "x" else x, leak)[-1] @ top

    slope = (value(h) - value(-h)) / (2 * h)
    assert (gradient * way).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_rows_are_gradients_of_their_own() -> None:
    weights = layers(0.1)
    tops = torch.eye(3, WIDTH, dtype=torch.float64)
    x = torch.ones(8, dtype=torch.float64)
    outputs = forward(weights, x, 0.1)
    together = backward(weights, outputs, tops, 0.1)
    for row, top in enumerate(tops):
        for all_rows, alone in zip(together, backward(weights, outputs, top, 0.1), strict=True):
            torch.testing.assert_close(all_rows[row], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_layers_keep_the_size_of_what_goes_through(leak: float) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = []
    for _ in range(50):
        x = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
        out = forward(draw(generator, WIDTH, leak), x, leak)[-1]
        lengths.append((out.square().sum() / x.square().sum()).item())
    assert 0.7 < sum(lengths) / 50 < 1.4
