"""Private random numbers: one peer's own in one round, the same if the round is run again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np
import torch
from torch import Tensor

from p2p_dml.types import Tensors


@final
class PrivateDraws:
    """A stream that is a pure function of a peer's private `seed` and the round."""

    def __init__(self, seed: int, round: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, round], np.uint64))

    def uniform(self, like: Tensor) -> Tensor:
        """Float64 numbers in [0, 1) of the shape, and on the device, of a tensor."""
        numbers = (self._bits.random_raw(like.numel()) >> np.uint64(11)) * 2.0**-53
        return torch.from_numpy(numbers).view(like.shape).to(like.device)

    def sample(self, shares: Mapping[str, Tensor]) -> Tensors:
        """Bool masks that are set, independently, with the probabilities `shares`."""
        return {name: self.uniform(share) < share for name, share in shares.items()}
