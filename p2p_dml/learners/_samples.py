"""The samples that a learner sees: arrays, perhaps memory-mapped, made tensors batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2p_dml.data import Dataset, class_counts
from p2p_dml.errors import ConfigError

_CHUNK_SAMPLES = 100  # malloc keeps memory for five or more of them in every process
_CHUNK_ELEMENTS = 1 << 20  # keeps the activations of a CNN on one chunk under 100 MB
_CHUNK_LABELS = 8192


@final
class Samples:
    """Some rows of a data set; nothing is copied, converted or normalised before its batch."""

    def __init__(
        self,
        x: NDArray[Any],
        y: NDArray[Any],
        rows: NDArray[Any],
        scale: tuple[tuple[float, ...], tuple[float, ...]] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._x, self._y, self._rows = x, y, rows
        self._device, self._dtype = device, dtype
        self._scale: tuple[Tensor, Tensor] | None = None
        if scale is not None:
            shape = (-1, *(1 for _ in x.shape[2:]))
            mean, std = (torch.tensor(s, dtype=dtype, device=device).reshape(shape) for s in scale)
            self._scale = mean, std

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, positions: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Samples [B, *shape], ready for the model, and labels [B] or [B, L]."""
        rows = self._rows[positions]
        # take copies: torch must not get hold of read-only memory
        x = torch.from_numpy(self._x.take(rows, axis=0)).to(self._device)
        y = torch.from_numpy(self._y.take(rows, axis=0)).to(self._device)
        if x.dtype != torch.int64:
            x = x.to(self._dtype)
        if self._scale is not None:
            x = x.sub_(self._scale[0]).div_(self._scale[1])
        # Channels side by side: on a CPU pooling takes a fifth of the time so, convolutions less.
        return (x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x), y

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, in batches of bounded memory (at most 100)."""
        return map(self.batch, self.pieces())

    def pieces(self) -> Iterator[NDArray[Any]]:
        """The positions of the samples of each of the `chunks`."""
        size = min(
            _CHUNK_SAMPLES,
            _CHUNK_ELEMENTS // math.prod(self._x.shape[1:]),
            _CHUNK_LABELS // math.prod(self._y.shape[1:]),
        )
        for begin in range(0, len(self), max(1, size)):
            yield np.arange(begin, min(begin + max(1, size), len(self)))


def train_samples(
    dataset: Dataset, rows: NDArray[Any], device: torch.device, dtype: torch.dtype
) -> Samples:
    """The training samples `rows` of a data set."""
    return Samples(dataset.train_x, dataset.train_y, rows, _scale(dataset), device, dtype)


def test_samples(
    dataset: Dataset, device: torch.device, dtype: torch.dtype, label: int | None = None
) -> Samples:
    """All test samples of a data set, or those of one class."""
    everything = np.arange(len(dataset.test_x))
    rows = everything if label is None else np.flatnonzero(dataset.test_y == label)
    return Samples(dataset.test_x, dataset.test_y, rows, _scale(dataset), device, dtype)


def own_counts(dataset: Dataset, rows: NDArray[Any]) -> dict[int, int]:
    """How many of the training samples `rows` are of each class, for the classes that occur.

    Raises ConfigError if a sample is of no one class (text), or a class cannot be tested.
    """
    if dataset.train_y.ndim != 1:
        raise ConfigError(
            f'evaluate_on: "own" goes by class, but data set {dataset.name!r} labels every '
            'character; expected "all"'
        )
    counts = {c: n for c, n in enumerate(class_counts(dataset, rows)) if n}
    if untested := sorted(counts.keys() - set(np.unique(dataset.test_y).tolist())):
        raise ConfigError(
            f'evaluate_on: "own" tests peers on the classes they train on, but data set '
            f"{dataset.name!r} has no test samples of class {untested[0]}; test on more samples, "
            'or set evaluate_on = "all"'
        )
    return counts


def _scale(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if dataset.mean is None or dataset.std is None:
        return None
    return dataset.mean, dataset.std
