"""Layers that torch has too: the same outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from p2p_dml.layers import ChannelsLastConv2d, LocalResponseNorm


def outputs_and_gradient(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    (gradient,) = torch.autograd.grad((y * torch.linspace(0, 1, y.numel()).view_as(y)).sum(), leaf)
    return y, gradient


@pytest.mark.parametrize(("size", "channels"), [(1, 3), (2, 5), (4, 16), (5, 7), (9, 4)])
@pytest.mark.parametrize(("alpha", "beta", "k"), [(1e-4, 0.75, 1.0), (0.9, 0.6, 2.0)])
def test_a_normalisation_is_that_of_torch(
    size: int, channels: int, alpha: float, beta: float, k: float
) -> None:
    x = 3 * torch.randn(2, channels, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    ours = outputs_and_gradient(LocalResponseNorm(size, alpha, beta, k), x)
    theirs = outputs_and_gradient(nn.LocalResponseNorm(size, alpha, beta, k), x)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_normalisation_can_be_batched() -> None:
    x = torch.randn(3, 2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    layer = LocalResponseNorm(4)
    batched = vmap(lambda each: functional_call(layer, {}, (each,)))(x)
    torch.testing.assert_close(batched, torch.stack([layer(each) for each in x]))


@pytest.mark.parametrize("options", [{}, {"padding": 2, "bias": False}, {"stride": 2}])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_convolution_is_that_of_torch(channels: int, options: dict[str, Any]) -> None:
    x = torch.randn(2, channels, 7, 6, generator=torch.Generator().manual_seed(1)).double()
    layer = ChannelsLastConv2d(channels, 5, 3, **options).double()
    theirs = nn.Conv2d(channels, 5, 3, **options).double()
    theirs.load_state_dict(layer.state_dict())
    for found, expected in zip(
        outputs_and_gradient(layer, x), outputs_and_gradient(theirs, x), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_convolution_puts_the_channels_of_a_pixel_side_by_side() -> None:
    y = ChannelsLastConv2d(3, 5, 3)(torch.randn(2, 3, 7, 6))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_convolution_can_be_batched() -> None:
    x = torch.randn(3, 2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    layer = ChannelsLastConv2d(4, 3, 3)
    batched = vmap(lambda each: layer(each))(x)
    torch.testing.assert_close(batched, torch.stack([layer(each) for each in x]))
