"""Message buffers of torch.distributed: kept memory on the CPU, pinned beside a GPU, or on it.

Fresh pageable memory costs more in page faults than the copy into it, so such buffers are used
again as soon as nothing refers to them: neither a message on its way nor a tensor that was read
from one. torch keeps device and pinned memory for reuse itself.
"""

from __future__ import annotations

import weakref
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]

KEPT_FROM = 1 << 16
"""Below this many bytes the C library hands out warm memory anyway."""


@final
class Memory:
    """Where messages are on their way (`wire`), and where what was received is wanted (`home`)."""

    def __init__(self, wire: torch.device, home: torch.device) -> None:
        self._wire = wire
        self._home = home
        self._pool: list[tuple[Bytes, weakref.ref[Any]]] = []

    def take(self, num_bytes: int) -> Tensor:
        """A buffer, uint8 [num_bytes], of unknown contents; taken as long as it is referred to."""
        if self._wire.type != "cpu":
            return torch.empty(num_bytes, dtype=torch.uint8, device=self._wire)
        if self._home.type != "cpu":
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        if num_bytes < KEPT_FROM:
            return torch.empty(num_bytes, dtype=torch.uint8)
        kept = self._free(num_bytes)
        # torch's storage holds this view as long as any tensor of it lives.
        view = kept[:num_bytes]
        self._pool.append((kept, weakref.ref(view)))
        return torch.from_numpy(view)

    def _free(self, num_bytes: int) -> Bytes:
        """The smallest sufficient memory that nothing refers to, out of the pool; or new memory.

        Then what was free, and is too small, is let go.
        """
        free = [kept for kept, user in self._pool if user() is None]
        fitting = [kept for kept in free if kept.size >= num_bytes]
        chosen = min(fitting, key=lambda kept: kept.size, default=None)
        if chosen is None:
            self._pool = [entry for entry in self._pool if entry[1]() is not None]
            return np.empty(num_bytes, dtype=np.uint8)
        self._pool = [entry for entry in self._pool if entry[0] is not chosen]
        return chosen

    def bring_home(self, received: Tensor) -> Tensor:
        """What was received, on the device where it is wanted."""
        return received.to(self._home)
