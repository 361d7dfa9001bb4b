"""Memory that others can read, and the boards that say who still does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from p2p_dml.errors import WireError
from p2p_dml.transports._board import Board, Row
from p2p_dml.transports._segments import HEAD_BYTES, MappedSegment, Place, Segment
from tests.transports.mappings import num_mappings

ME = os.getpid()
SIZE = 1 << 16
LENDER = 3


def mapped(segment: Segment) -> MappedSegment:
    return MappedSegment(ME, segment.descriptor, segment.token)


def test_what_is_written_is_read_in_place() -> None:
    segment = Segment(SIZE)
    view = mapped(segment).view(8)
    segment.data[:8] = torch.arange(8, dtype=torch.uint8)
    assert view.tolist() == [*range(8)]


def test_a_view_outlives_its_mapping_and_its_maker() -> None:
    before = num_mappings()
    segment = Segment(SIZE)
    segment.data[0] = 7
    view = mapped(segment).view(1)
    segment.close()
    del segment
    assert num_mappings() == before + 1
    assert view.tolist() == [7]
    del view
    assert num_mappings() == before


def test_nobody_else_can_write_it_or_make_it_smaller() -> None:
    segment = Segment(SIZE)
    opened = os.open(f"/proc/self/fd/{segment.descriptor}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.truncate(opened, 1)
    with pytest.raises(PermissionError):
        os.write(opened, b"x")
    os.close(opened)


def test_a_closed_one_cannot_be_opened() -> None:
    segment = Segment(SIZE)
    descriptor, token = segment.descriptor, segment.token
    segment.close()
    with pytest.raises((OSError, WireError)):
        MappedSegment(ME, descriptor, token)
    other = Segment(SIZE)  # which takes the same descriptor
    assert other.descriptor == descriptor
    with pytest.raises(WireError, match="not there any more"):
        MappedSegment(ME, descriptor, token)


@pytest.mark.parametrize("path", ["/dev/zero", __file__])
def test_what_is_no_segment_is_not_opened(path: str) -> None:
    with Path(path).open("rb") as file, pytest.raises(WireError, match="not there"):
        MappedSegment(ME, file.fileno(), 0)


def test_memory_that_could_shrink_is_refused() -> None:
    descriptor = os.memfd_create("p2p_dml", 0)
    os.truncate(descriptor, HEAD_BYTES)
    with pytest.raises(WireError, match="could shrink"):
        MappedSegment(ME, descriptor, 0)
    os.close(descriptor)


def test_no_more_is_read_than_there_is() -> None:
    segment = Segment(SIZE)
    assert mapped(segment).view(SIZE).size == SIZE
    with pytest.raises(WireError, match=f"{SIZE + 1} bytes of a memory of {SIZE}"):
        mapped(segment).view(SIZE + 1)


def test_a_place_travels() -> None:
    place = Place(machine=1 << 50, pid=4, descriptor=9, token=1 << 61)
    assert Place.unpack(place.pack()) == place


@pytest.mark.parametrize(
    "numbers",
    [
        torch.tensor([1, 2, 3]),
        torch.tensor([1, 2, 3, -4]),
        torch.tensor([1, 2, 3, 4], dtype=torch.int32),
        torch.tensor([1, 2, 3, 4], dtype=torch.bfloat16),
        torch.tensor([True] * 4),
        torch.ones((4, 1), dtype=torch.int64),
    ],
)
def test_what_is_no_place_is_refused(numbers: torch.Tensor) -> None:
    with pytest.raises(WireError, match="four natural numbers"):
        Place.unpack(numbers)


# ---- boards -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("came", "given_back", "asked", "is_done"),
    [
        ([], [], (0, 1), False),  # on its way
        ([(0, 1)], [], (0, 1), False),  # in use
        ([(0, 1)], [(0, 1)], (0, 1), True),
        ([(1, 2)], [], (0, 1), True),  # lost: a later one came
        ([(0, 1), (1, 2)], [], (0, 1), False),  # in use, though a later one came
        ([(0, 1), (1, 2)], [(0, 1)], (1, 2), False),
        ([(0, 1), (0, 5)], [], (0, 1), True),
        ([(0, 1), (0, 5)], [(0, 1)], (0, 5), False),  # given back late: not the one of now
    ],
)
def test_a_board_says_who_has_done(
    came: list[tuple[int, int]],
    given_back: list[tuple[int, int]],
    asked: tuple[int, int],
    is_done: bool,
) -> None:
    board = Board(ME)
    for each in came:
        board.take(LENDER, *each)
    for each in given_back:
        board.give_back(LENDER, *each)
    place = board.place
    row = Row(MappedSegment(place.pid, place.descriptor, place.token), LENDER)
    assert row.has_done(*asked) is is_done
    assert Row(MappedSegment(place.pid, place.descriptor, place.token), LENDER + 1).newest == 0
