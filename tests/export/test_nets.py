"""Chains of every kind of layer, masked at random: the same outputs, smaller, also from files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import pytest
import torch
from torch import Tensor, nn

from p2p_dml.export import load, save, shrink
from p2p_dml.tensors import mismatch

IMAGE = (2, 9, 8)
FLAT = (7,)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A chain in the making, and the shape of its samples."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


Padding = Literal["zeros", "reflect", "replicate", "circular"]


def _headed(*features: nn.Module) -> nn.Module:
    """Features of an image, and two linear layers of the size that they need."""
    with torch.no_grad():
        size = nn.Sequential(*features, nn.Flatten())(torch.zeros(1, *IMAGE)).shape[1]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(size, 6), nn.ReLU(), nn.Linear(6, 3))


def _image(
    *between: nn.Module, padding: int | str = 1, mode: Padding = "zeros", bias: bool = True
) -> Net:
    """Two convolutions with layers behind the first, then two linear layers."""

    def make() -> nn.Module:
        first = nn.Conv2d(2, 8, 3, padding=padding, padding_mode=mode, bias=bias)
        second = nn.Conv2d(8, 5, 3, padding=padding, padding_mode=mode, bias=bias)
        return _headed(first, *copy.deepcopy(between), nn.Sequential(second, nn.Tanh()))

    return Net(make=make, shape=IMAGE)


def _elementwise(layer: nn.Module) -> Net:
    chain = (nn.Linear(7, 9), layer, nn.Linear(9, 8), layer, nn.Linear(8, 3), layer)
    return Net(make=lambda: nn.Sequential(*chain), shape=FLAT)


NETS = {
    "linear": Net(make=lambda: nn.Linear(7, 3), shape=FLAT),
    "linear on an image": Net(
        make=lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), shape=IMAGE
    ),
    "relu": _elementwise(nn.ReLU(inplace=True)),
    "relu6": _elementwise(nn.ReLU6()),
    "leaky relu": _elementwise(nn.LeakyReLU(0.2)),
    "elu": _elementwise(nn.ELU(0.7, inplace=True)),
    "celu": _elementwise(nn.CELU(0.7)),
    "selu": _elementwise(nn.SELU()),
    "gelu": _elementwise(nn.GELU("tanh")),
    "silu": _elementwise(nn.SiLU()),
    "mish": _elementwise(nn.Mish()),
    "tanh": _elementwise(nn.Tanh()),
    "sigmoid": _elementwise(nn.Sigmoid()),
    "softplus": _elementwise(nn.Softplus(2.0, 5.0)),
    "softsign": _elementwise(nn.Softsign()),
    "hardtanh": _elementwise(nn.Hardtanh(-0.3, 0.4)),
    "hardswish": _elementwise(nn.Hardswish()),
    "hardsigmoid": _elementwise(nn.Hardsigmoid()),
    "dropout": _elementwise(nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.ReLU())),
    "conv": _image(nn.Sigmoid()),
    "conv without padding": _image(nn.Sigmoid(), padding=0),
    "conv same": _image(nn.ReLU(), padding="same"),
    "conv reflect": _image(nn.Sigmoid(), mode="reflect"),
    "conv circular": _image(nn.Sigmoid(), mode="circular"),
    "conv without bias": _image(nn.ELU(), bias=False),
    "strides": Net(
        make=lambda: _headed(
            nn.Conv2d(2, 8, (3, 2), (2, 1), (2, 0)),
            nn.Sigmoid(),
            nn.Conv2d(8, 5, 2, 2, dilation=2),
            nn.ReLU(),
        ),
        shape=IMAGE,
    ),
    "max pool": _image(nn.MaxPool2d(3, 2, 1), nn.Tanh()),
    "max pool ceil": _image(nn.Sigmoid(), nn.MaxPool2d(3, ceil_mode=True, dilation=1)),
    "average pool": _image(nn.Sigmoid(), nn.AvgPool2d(2, padding=1)),
    "average pool without border": _image(
        nn.Sigmoid(), nn.AvgPool2d(2, padding=1, count_include_pad=False)
    ),
    "average pool by 3": _image(nn.Sigmoid(), nn.AvgPool2d(2, ceil_mode=True, divisor_override=3)),
    "adaptive pools": _image(
        nn.AdaptiveMaxPool2d((5, None)), nn.Sigmoid(), nn.AdaptiveAvgPool2d((3, 2))
    ),
    "pool behind convolutions": Net(
        make=lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        ),
        shape=IMAGE,
    ),
    "windows": _image(nn.ELU(), nn.LocalResponseNorm(4, 0.5, 0.75), bias=False),
    "windows of constants": _image(nn.Sigmoid(), nn.LocalResponseNorm(3, 0.9, 0.6, 1.5), padding=0),
    "windows twice": _image(
        nn.LocalResponseNorm(5, 0.9), nn.Sigmoid(), nn.LocalResponseNorm(2, 0.7, 0.5, 2.0)
    ),
    "windows first": Net(
        make=lambda: _headed(nn.LocalResponseNorm(2), nn.Conv2d(2, 4, 3)),
        shape=IMAGE,
    ),
    "groups": _image(nn.GroupNorm(4, 8), nn.ReLU()),
    "groups of constants": _image(nn.Sigmoid(), nn.GroupNorm(4, 8), padding=0),
    "groups without weights": _image(nn.GroupNorm(2, 8, affine=False), nn.ReLU()),
    "groups first": Net(
        make=lambda: _headed(nn.GroupNorm(2, 2), nn.Conv2d(2, 4, 3)),
        shape=IMAGE,
    ),
}


def _masked(net: Net, seed: int, empty: float, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The chain with random weights, of which half are 0, and the share `empty` of outputs.

    Half as many inputs are not read by anyone.
    """
    generator = torch.Generator().manual_seed(seed)

    def chance(share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    model = net.make().double()
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(torch.randn(x.shape, generator=generator, dtype=torch.float64) * 0.7)
            if x.dim() >= 2:
                ones = (1,) * (x.dim() - 2)
                x[chance(0.5, *x.shape)] = 0.0
                x.masked_fill_(chance(empty, len(x), 1, *ones), 0.0)
                x.masked_fill_(chance(empty / 2, 1, x.shape[1], *ones), 0.0)
    return model.to(dtype)


def _samples(net: Net, dtype: torch.dtype = torch.float64) -> Tensor:
    """Five samples."""
    generator = torch.Generator().manual_seed(99)
    return torch.randn((5, *net.shape), generator=generator, dtype=torch.float64).to(dtype)


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors, relative where they are above 1."""
    return float((a - b).abs().max() / max(1.0, float(a.abs().max())))


def _num_parameters(model: nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())


NET = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


@NET
@pytest.mark.parametrize("empty", [0.3, 0.7])
def test_outputs_are_the_same(net: Net, empty: float) -> None:
    for seed in range(2):
        model = _masked(net, seed, empty).eval()
        small, x = shrink(model, net.shape), _samples(net)
        with torch.no_grad():
            assert _distance(model(x), small(x)) < 1e-12
        biases = sum(layer.out_channels for layer in small if isinstance(layer, nn.Conv2d))
        assert _num_parameters(small) <= _num_parameters(model) + biases


@NET
def test_outputs_are_the_same_in_float32(net: Net) -> None:
    model = _masked(net, 1, 0.5, torch.float32).eval()
    small, x = shrink(model, net.shape), _samples(net, torch.float32)
    assert all(p.dtype == torch.float32 for p in small.parameters())
    with torch.no_grad():
        assert _distance(model(x), small(x)) < 1e-5


@NET
@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_a_model_without_weights_keeps_one_channel(net: Net, bias: float) -> None:
    model = _masked(net, 2, 1.0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(bias)
        small, x = shrink(model, net.shape), _samples(net)
        assert _distance(model(x), small(x)) < 1e-12
    linear = [layer for layer in small if isinstance(layer, nn.Linear)]
    assert all(layer.out_features == 1 for layer in linear[:-1])


@NET
def test_files_give_back_every_bit(net: Net, tmp_path: Path) -> None:
    small = shrink(_masked(net, 3, 0.5), net.shape)
    save(small, tmp_path)
    loaded = load(tmp_path)
    assert not any(layer.training for layer in loaded.modules())
    assert mismatch(loaded.state_dict(), small.state_dict()) is None
    assert all(torch.equal(a, small.state_dict()[n]) for n, a in loaded.state_dict().items())
    x = _samples(net)
    with torch.no_grad():
        assert _distance(small(x), loaded(x)) < 1e-12


@NET
def test_nothing_more_can_go(net: Net) -> None:
    small = shrink(_masked(net, 4, 0.5), net.shape)
    if not any(type(layer).__module__.startswith("p2p_dml") for layer in small):
        again = shrink(small, net.shape)
        assert _num_parameters(again) == _num_parameters(small)
