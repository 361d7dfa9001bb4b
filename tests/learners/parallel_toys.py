"""Small data sets and models of many kinds, for what several ranks compute together."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from p2p_dml.data import Dataset


def toy(num_samples: int = 23, num_tests: int = 11) -> Dataset:
    words = np.random.Philox(key=[1, 2]).random_raw(num_samples * 4)
    x = ((words >> 11).reshape(num_samples, 4) * 2.0**-53).astype(np.float32)
    y = np.arange(num_samples) % 3
    return Dataset(
        name="toy",
        train_x=x,
        train_y=y,
        test_x=x[:num_tests],
        test_y=y[::-1][:num_tests].copy(),
        num_classes=3,
    )


def images() -> Dataset:
    words = np.random.Philox(key=[3, 4]).random_raw(14 * 144)
    pixels, labels = (words >> 56).astype(np.uint8).reshape(14, 1, 12, 12), np.arange(14) % 4
    return Dataset(
        name="images",
        train_x=pixels,
        train_y=labels,
        test_x=pixels[:5],
        test_y=labels[:5],
        num_classes=4,
        mean=(120.0,),
        std=(70.0,),
    )


def text() -> Dataset:
    words = np.random.Philox(key=[7, 8]).random_raw(14 * 8)
    tokens = (words % 5).astype(np.int64).reshape(14, 8)
    x, y = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    return Dataset(name="text", train_x=x, train_y=y, test_x=x[:5], test_y=y[:5], num_classes=5)


def mlp() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def normed() -> nn.Module:
    """BatchNorm's buffers, integer ones too."""
    torch.manual_seed(5)
    layers = (nn.Linear(4, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
    return nn.Sequential(*layers).double()


def noisy() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3)).double()


@final
class Odd(nn.Module):
    """Two blocks share a weight, one parameter is frozen, one has no use; a list holds layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.more = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 3)])
        self.idle = nn.Linear(2, 2)
        self.more[0].weight.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, *self.more):
            x = torch.tanh(layer(x))
        return x * self.scale


@final
class Bare(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.layer.weight.T)


@final
class Moody(nn.Module):
    """Uses its second layer in the first batch that it trains on, and then no more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.always, self.once = nn.Linear(4, 3), nn.Linear(4, 3)
        self.num_batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_batches += self.training
        layers = (self.always, self.once) if self.num_batches < 2 else (self.always,)
        return torch.stack([layer(x) for layer in layers]).sum(0)
