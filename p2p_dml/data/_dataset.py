"""The one shape of a data set, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_SAMPLE_TYPES = ("uint8", "float32", "int64")


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Training and test samples with their labels; the arrays may be memory-mapped, read-only.

    `train_x` [N, *shape] is uint8 (pixels), float32 (features) or int64 (tokens); images are
    channel first. `train_y` int64 is [N], the class of each sample, or [N, L] for text, the class
    of the character after each. `test_x` and `test_y` likewise.

    `mean` and `std` are in units of the raw values in `train_x` (0 to 255 for uint8), one per
    channel (the first axis of a sample) or one for all; None for data taken as they are.
    `groups` [N] is the natural group of each training sample, 0 up (a speaker, a writer).

    Raises ValueError naming the field that is wrong.
    """

    name: str
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    num_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    groups: Array | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, found {self.num_classes}")
        self._check_half("train", self.train_x, self.train_y)
        self._check_half("test", self.test_x, self.test_y)
        self._check_halves_agree()
        self._check_scale()
        if self.groups is not None:
            _check_groups(self.groups, self.num_samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_x.shape[1:])

    @property
    def num_samples(self) -> int:
        """Number of training samples."""
        return len(self.train_x)

    @property
    def is_tokens(self) -> bool:
        """Whether samples are sequences of tokens (int64), not numbers to compute with."""
        return self.train_x.dtype == np.int64

    def _check_half(self, half: str, x: Array, y: Array) -> None:
        if x.dtype.name not in _SAMPLE_TYPES or x.ndim < 2:
            raise ValueError(
                f"{half}_x: expected uint8, float32 or int64 of shape [N, …], "
                f"found {x.dtype} {list(x.shape)}"
            )
        if y.dtype != np.int64 or y.shape not in {(len(x),), x.shape}:
            raise ValueError(
                f"{half}_y: expected int64 of shape [{len(x)}] (one label for each sample of "
                f"{half}_x) or {list(x.shape)} for text, found {y.dtype} {list(y.shape)}"
            )
        if len(y) == 0:
            raise ValueError(f"{half}_x: expected at least one sample, found none")
        if y.min() < 0 or y.max() >= self.num_classes:
            raise ValueError(
                f"{half}_y: expected labels 0 to {self.num_classes - 1}, "
                f"found {y.min()} to {y.max()}"
            )

    def _check_halves_agree(self) -> None:
        train, test = self.train_x, self.test_x
        if (test.dtype, test.shape[1:]) != (train.dtype, train.shape[1:]):
            raise ValueError(
                f"test_x: expected {train.dtype} samples of shape {list(self.shape)} as in "
                f"train_x, found {test.dtype} {list(test.shape[1:])}"
            )
        if self.test_y.ndim != self.train_y.ndim:
            raise ValueError(
                f"test_y: expected {self.train_y.ndim} axes as in train_y, found {self.test_y.ndim}"
            )

    def _check_scale(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean, std: expected both or neither")
        if self.mean is None or self.std is None:
            return
        if self.is_tokens:
            raise ValueError("mean, std: expected None for tokens (int64)")
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {1, self.shape[0]} or not np.isfinite(values).all():
                raise ValueError(
                    f"{field}: expected 1 or {self.shape[0]} finite numbers (one per channel), "
                    f"found {values}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std: expected positive numbers, found {self.std}")


def _check_groups(groups: Array, num_samples: int) -> None:
    if groups.dtype.kind != "i" or groups.shape != (num_samples,):
        raise ValueError(
            f"groups: expected integers of shape [{num_samples}], one for each training sample, "
            f"found {groups.dtype} {list(groups.shape)}"
        )
    if groups.min() < 0:
        raise ValueError(f"groups: expected 0 or more, found {groups.min()}")
