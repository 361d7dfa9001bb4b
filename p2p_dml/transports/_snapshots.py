"""Send buffers: one copy of a payload for all its receivers, in memory that is used again.

Sending live tensors without a copy tears them while training goes on; fresh memory for every send
costs more than the copy (first-touch page faults). So payloads are copied into a few kept buffers,
each free again once libzmq has let go of it. Tensors of a GPU go to pinned memory, into which it
copies by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import zmq
from torch import Tensor

from p2p_dml import wire
from p2p_dml.types import Payload
from p2p_dml.wire import Slot, write_block

ZERO_COPY_FROM = 1 << 16
"""Below this many bytes libzmq's own copy is cheaper than tracking ours."""


class Snapshots:
    """A pool of send buffers; grows to as many as are in flight at once."""

    def __init__(self) -> None:
        self._pool: list[tuple[Tensor, zmq.MessageTracker]] = []
        self._scratch = torch.zeros(ZERO_COPY_FROM, dtype=torch.uint8)

    def take(self, payload: Payload, slots: Sequence[Slot]) -> list[zmq.Frame]:
        """Frames with a copy of the payload's tensors; they may be sent any number of times."""
        num_bytes = slots[-1].end if slots else 0
        if num_bytes < ZERO_COPY_FROM:
            write_block(payload.tensors, slots, self._scratch)
            return [zmq.Frame(self._scratch[:num_bytes].numpy().data, copy=True)]
        is_on_gpu = any(x.is_cuda for x in payload.tensors.values())
        buffer = self._free_buffer(num_bytes, pinned=is_on_gpu)
        write_block(payload.tensors, slots, buffer)
        block = buffer[:num_bytes].numpy().data
        frames = [
            zmq.Frame(block[begin : begin + wire.MAX_FRAME_BYTES], copy=False, track=True)
            for begin in range(0, num_bytes, wire.MAX_FRAME_BYTES)
        ]
        self._pool.append((buffer, zmq.MessageTracker(*frames)))
        return frames

    def _free_buffer(self, num_bytes: int, *, pinned: bool) -> Tensor:
        for place, (buffer, tracker) in enumerate(self._pool):
            if tracker.done:
                del self._pool[place]
                if buffer.numel() >= num_bytes and buffer.is_pinned() == pinned:
                    return buffer
                break
        # Zeros: gaps between tensors are sent too.
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=pinned)
