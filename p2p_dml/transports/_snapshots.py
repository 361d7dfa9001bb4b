"""Send buffers: one copy of a payload for all its receivers, in memory that is used again.

Sending live tensors without a copy tears them while training goes on; fresh memory for every send
costs more than the copy (first-touch page faults). So payloads are copied into a few kept buffers,
each free again once libzmq has let go of it and all who were lent it have done with it. Tensors of
a GPU that nobody is lent go to pinned memory, into which it copies by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
import zmq
from torch import Tensor

from p2p_dml.transports._board import SLOTS
from p2p_dml.transports._plane import IDLE, Link, Plane, told
from p2p_dml.transports._segments import Segment
from p2p_dml.types import Payload
from p2p_dml.wire import Slot, write_block

ZERO_COPY_FROM = 1 << 16
"""Below this many bytes libzmq's own copy is cheaper than tracking ours."""


@dataclass(slots=True, kw_only=True)
class _Buffer:
    """Memory for one payload; `segment` and `slot`: if it can be lent."""

    memory: Tensor
    segment: Segment | None = None
    slot: int = -1
    generation: int = 0
    snapshot: weakref.ref[Snapshot] | None = None
    tracker: zmq.MessageTracker | None = None
    lent: list[Link] = field(default_factory=list)

    @property
    def is_free(self) -> bool:
        """Whether nobody reads it any more; those who were lent it and are lost may."""
        is_kept = self.snapshot is not None and self.snapshot() is not None
        if is_kept or (self.tracker is not None and not self.tracker.done):
            return False
        self.lent = [x for x in self.lent if not x.has_done(self.slot, self.generation)]
        return not self.lent

    @property
    def is_forsaken(self) -> bool:
        """Whether it may never be free."""
        return any(link.is_lost for link in self.lent)

    def fits(self, num_bytes: int, pinned: bool) -> bool:
        return self.memory.numel() >= num_bytes and self.memory.is_pinned() == pinned


@final
class Snapshot:
    """A payload's tensors as they were; may be sent any number of times while this is kept."""

    def __init__(self, block: memoryview, buffer: _Buffer | None) -> None:
        self._block = block
        self._buffer = buffer
        if buffer is not None:
            buffer.snapshot = weakref.ref(self)
        self._frames: dict[int, list[zmq.Frame]] = {}

    def frames(self, frame_bytes: int) -> Sequence[zmq.Frame]:
        """All of it, for a socket, in frames of so many bytes."""
        if frame_bytes not in self._frames:
            self._frames[frame_bytes] = self._cut(frame_bytes)
        return self._frames[frame_bytes]

    def _cut(self, frame_bytes: int) -> list[zmq.Frame]:
        # A peer that lends sends little else. The first frame that is not copied starts three
        # threads in a process, which it does not need then.
        buffer = self._buffer
        is_tracked = buffer is not None and buffer.segment is None
        frames = [
            zmq.Frame(self._block[at : at + frame_bytes], copy=not is_tracked, track=is_tracked)
            for at in range(0, max(len(self._block), 1), frame_bytes)
        ]
        if buffer is not None and is_tracked:
            before = [buffer.tracker] if self._frames and buffer.tracker else []
            buffer.tracker = zmq.MessageTracker(*before, *frames)
        return frames

    @property
    def can_be_lent(self) -> bool:
        return self._buffer is not None and self._buffer.segment is not None

    @property
    def place(self) -> bytes:
        """What somebody has to be told who is lent it."""
        buffer = self._buffer
        assert buffer is not None and buffer.segment is not None
        segment = buffer.segment
        return told(segment.descriptor, segment.token, buffer.slot, buffer.generation)

    def lend(self, link: Link) -> None:
        """Keep it until the receiver at the end of `link`, who was told, has done with it."""
        assert self._buffer is not None
        self._buffer.lent.append(link)
        link.lend(self._buffer.generation)


@final
class Snapshots:
    """A pool of send buffers; grows to as many as are in flight at once.

    What can be lent is in memory for that as soon as `plane` lends to anybody.
    """

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._private: list[_Buffer] = []
        self._shared: dict[int, _Buffer] = {}
        self._generation = 0

    def take(self, payload: Payload, slots: Sequence[Slot]) -> Snapshot:
        """A copy of the payload's tensors, which can be lent if all numbers are finite.

        The sender looks, once for all: it could write anything there after a receiver has looked.
        What is not finite goes through sockets, where receivers refuse it.
        """
        num_bytes = slots[-1].end if slots else 0
        if num_bytes < ZERO_COPY_FROM:
            own = torch.zeros(num_bytes, dtype=torch.uint8)  # it may have to wait to be sent
            write_block(payload.tensors, slots, own)
            return Snapshot(own.numpy().data, None)
        is_on_gpu = any(x.is_cuda for x in payload.tensors.values())
        buffer = self._shared_buffer(num_bytes) if self._plane.lends else None
        if buffer is None or not write_block(payload.tensors, slots, buffer.memory):
            buffer = self._private_buffer(num_bytes, pinned=is_on_gpu)
            write_block(payload.tensors, slots, buffer.memory)
        return Snapshot(buffer.memory[:num_bytes].numpy().data, buffer)

    def _private_buffer(self, num_bytes: int, *, pinned: bool) -> _Buffer:
        for place, buffer in enumerate(self._private):
            if buffer.is_free:
                if buffer.fits(num_bytes, pinned):
                    return buffer
                del self._private[place]
                break
        # Zeros: gaps between tensors are sent too.
        memory = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        self._private.append(_Buffer(memory=memory))
        return self._private[-1]

    def _shared_buffer(self, num_bytes: int) -> _Buffer | None:
        """The first slot that is free, or a new one; None if the machine has no memory for it."""
        self._generation += 1
        self._give_up()
        free = next((x for _, x in sorted(self._shared.items()) if x.is_free), None)
        if free is None or not free.fits(num_bytes, pinned=False):
            slot = self._empty_slot() if free is None else free.slot
            self._drop(slot)
            try:
                segment = Segment(num_bytes)
            except OSError:
                return None
            free = _Buffer(memory=segment.data, segment=segment, slot=slot)
            self._shared[slot] = free
        free.generation = self._generation
        return free

    def _give_up(self) -> None:
        """Leave alone what may never be free, and what was not needed for long."""
        for slot, buffer in [*self._shared.items()]:
            is_idle = buffer.generation < self._generation - IDLE and buffer.is_free
            if is_idle or (buffer.is_forsaken and not buffer.is_free):
                self._drop(slot)

    def _empty_slot(self) -> int:
        """One without a buffer; if there is none, that of the oldest: its readers keep it."""
        empty = (slot for slot in range(SLOTS) if slot not in self._shared)
        oldest = min(self._shared.values(), key=lambda x: x.generation, default=None)
        return next(empty, oldest.slot if oldest else 0)

    def _drop(self, slot: int) -> None:
        buffer = self._shared.pop(slot, None)
        if buffer is not None and buffer.segment is not None:
            buffer.segment.close()
