"""The randomness of one peer in one round: the order of its samples, and dropout's seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

_STREAM = 0x6261746368657321  # sets these words apart from other users of the run's seed
_WORD = (1 << 64) - 1


@final
class RoundDraws:
    """A pure function of (seed, peer, round); restarts and other hosts draw the same."""

    def __init__(self, seed: int, peer: int, round: int) -> None:
        key = np.array([(seed ^ _STREAM) & _WORD, peer << 32 | round], np.uint64)
        self._bits = np.random.Philox(key=key)
        self.noise_seed = int(self._bits.random_raw()) >> 1

    def batches(self, num_samples: int, batch_size: int) -> Iterator[NDArray[Any]]:
        """Positions of the samples of one batch after another, pass after pass, without end.

        Each pass is a fresh permutation cut into ceil(num_samples / batch_size) batches of nearly
        equal size: a last batch of one sample would be noise, and BatchNorm refuses it.
        """
        pieces = -(-num_samples // batch_size)
        while True:
            order = self._bits.random_raw(num_samples).argsort(kind="stable")
            yield from np.array_split(order, pieces)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators of `device` for a block and put them back after it (3 us)."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
