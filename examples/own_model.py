"""Your own model and data; `examples/own_model.toml` names them `own_model:network` and so on."""

from __future__ import annotations

import numpy as np
from torch import nn

from p2p_dml.data import Dataset


def network(*, width: int = 32) -> nn.Module:
    """Any nn.Module from a function; its keyword parameters are keys of the [model] table."""
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3))


def spirals(*, samples: int = 1200, noise: float = 0.1) -> Dataset:
    """Three interleaved spirals in the plane: float32 points [N, 2], labels [N]."""
    random = np.random.default_rng(0)
    label = np.arange(samples) % 3
    radius = np.sqrt(random.random(samples))
    angle = 4 * radius + label * 2 * np.pi / 3 + noise * random.standard_normal(samples)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    train = samples * 4 // 5
    return Dataset(
        name="spirals",
        train_x=points[:train],
        train_y=label[:train].astype(np.int64),
        test_x=points[train:],
        test_y=label[train:].astype(np.int64),
        num_classes=3,
    )
