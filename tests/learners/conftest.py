"""A fleet, and learners of one peer each beside it: data sets, shards, models, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from p2p_dml.data import Dataset
from p2p_dml.learners import Fleet, SupervisedLearner, Training
from p2p_dml.learners.fleet import Member
from p2p_dml.models import build_model
from p2p_dml.types import Learner, Tensors


@final
class Bench:
    """What the tests of fleets are built from."""

    ragged = (31, 4, 1, 18)
    """Shard sizes: more than a batch, less than one, a single sample."""

    def images(self, num_samples: int = 60, shape: tuple[int, ...] = (1, 12, 12)) -> Dataset:
        words = np.random.Philox(key=[5, 6]).random_raw(num_samples * int(np.prod(shape)))
        pixels = (words >> 56).astype(np.uint8).reshape(num_samples, *shape)
        labels = np.arange(num_samples) % 4
        return Dataset(
            name="images",
            train_x=pixels,
            train_y=labels,
            test_x=pixels[:11],
            test_y=labels[::-1][:11].copy(),
            num_classes=4,
            mean=(120.0,),
            std=(70.0,),
        )

    def text(self, num_samples: int = 60, length: int = 7) -> Dataset:
        words = np.random.Philox(key=[7, 8]).random_raw(num_samples * (length + 1))
        tokens = (words % 5).astype(np.int64).reshape(num_samples, length + 1)
        x, y = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        return Dataset(name="text", train_x=x, train_y=y, test_x=x[:9], test_y=y[:9], num_classes=5)

    def shards(self, sizes: tuple[int, ...] = ragged) -> list[NDArray[Any]]:
        """Disjoint rows, not in order."""
        order = np.random.Philox(key=[1, 2]).random_raw(sum(sizes)).argsort(kind="stable")
        return np.split(order, np.cumsum(sizes)[:-1])

    def model_of(
        self, name: str, dataset: Dataset, dtype: torch.dtype = torch.float64
    ) -> nn.Module:
        if name == "tokens":
            torch.manual_seed(3)
            return nn.Sequential(nn.Embedding(5, 6), nn.Tanh(), nn.Linear(6, 5)).to(dtype)
        return build_model(
            {"name": name},
            dataset.shape,
            dataset.num_classes,
            seed=3,
            dtype=dtype,
            is_tokens=dataset.is_tokens,
        )

    def pair(
        self,
        training: Training,
        name: str = "mlp",
        dataset: Dataset | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> tuple[list[Member], list[SupervisedLearner]]:
        """A fleet's members, and learners of their own with the same models, data and seed."""
        data = dataset or self.images()
        fleet = Fleet(self.model_of(name, data, dtype), data, self.shards(), training, seed=1)
        alone = [
            SupervisedLearner(
                self.model_of(name, data, dtype), data, rows, training, seed=1, peer=peer
            )
            for peer, rows in enumerate(self.shards())
        ]
        return fleet.members, alone

    def assert_close(self, got: Tensors, expected: Tensors, tolerance: float = 1e-10) -> None:
        assert list(got) == list(expected)
        for name, x in expected.items():
            torch.testing.assert_close(got[name], x, rtol=tolerance, atol=tolerance)

    def mix(self, learners: Sequence[Learner]) -> None:
        """Replace every model by the mean of itself and the next peer's, in place."""
        before = [{name: x.clone() for name, x in one.params.items()} for one in learners]
        for place, one in enumerate(learners):
            for name, x in one.params.items():
                x.add_(before[(place + 1) % len(before)][name]).div_(2)


@pytest.fixture
def bench() -> Bench:
    """Builders of fleets and learners."""
    return Bench()
