"""Buffers of messages: used again when nothing refers to them, and not before."""

from __future__ import annotations

import pytest
import torch

from p2p_dml.transports._dist_memory import KEPT_FROM, Memory

CPU = torch.device("cpu")
LARGE = 2 * KEPT_FROM


@pytest.fixture
def memory() -> Memory:
    return Memory(CPU, CPU)


@pytest.mark.parametrize("size", [0, 1, KEPT_FROM - 1, KEPT_FROM, LARGE])
def test_buffers_are_as_large_as_asked_for(memory: Memory, size: int) -> None:
    buffer = memory.take(size)
    assert (buffer.dtype, buffer.shape, buffer.device) == (torch.uint8, (size,), CPU)
    buffer.fill_(7)


def test_memory_is_used_again_when_the_last_view_is_gone(memory: Memory) -> None:
    buffer = memory.take(LARGE)
    place = buffer.data_ptr()
    view = buffer[64:128].view(torch.float32)
    del buffer
    other = memory.take(LARGE)
    assert other.data_ptr() != place
    del view
    assert memory.take(LARGE).data_ptr() == place


def test_two_buffers_never_share_memory(memory: Memory) -> None:
    buffers = [memory.take(LARGE) for _ in range(3)]
    for value, buffer in enumerate(buffers):
        buffer.fill_(value)
    assert [int(buffer.max()) for buffer in buffers] == [0, 1, 2]


def test_the_smallest_that_fits_is_used(memory: Memory) -> None:
    large, small = memory.take(4 * LARGE), memory.take(LARGE)
    places = large.data_ptr(), small.data_ptr()
    del large, small
    small = memory.take(LARGE - 1)
    assert small.data_ptr() == places[1]
    assert memory.take(LARGE - 1).data_ptr() == places[0]


def test_what_is_too_small_is_let_go(memory: Memory) -> None:
    small = memory.take(LARGE)
    del small
    large = memory.take(4 * LARGE)
    assert [kept.size for kept, _ in memory._pool] == [large.numel()]


def test_a_buffer_on_the_cpu_is_at_home(memory: Memory) -> None:
    buffer = memory.take(LARGE)
    assert memory.bring_home(buffer).data_ptr() == buffer.data_ptr()
