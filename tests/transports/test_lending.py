"""What is lent: nothing is written under a reader, and nothing is left."""

from __future__ import annotations

import os
import random
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from p2p_dml import wire
from p2p_dml.errors import WireError
from p2p_dml.transports._board import SLOTS
from p2p_dml.transports._plane import IDLE, Plane
from p2p_dml.transports._snapshots import ZERO_COPY_FROM, Snapshots
from p2p_dml.types import Payload, PeerId
from tests.transports.mappings import num_mappings

SIZE = ZERO_COPY_FROM
LENDER, READER = 3, 5


class Pair:
    """A lender and a reader, and what is between them."""

    def __init__(self) -> None:
        self.explained: list[tuple[PeerId, str]] = []
        self.on_the_way: deque[tuple[bytes, int]] = deque()
        self.in_use: list[tuple[NDArray[np.uint8], int]] = []
        self.value = 0
        self.lender = self.plane(LENDER)
        self.snapshots = Snapshots(self.lender)
        self.start_reader()

    def plane(self, me: PeerId) -> Plane:
        return Plane(me, lambda peer, why: self.explained.append((peer, why)))

    def start_reader(self) -> None:
        """Another process takes the reader's place; what the first had is in use for ever."""
        self.reader = self.plane(READER)
        self.meet()

    def meet(self) -> None:
        """The connection is lost, with what was on the way, and made anew."""
        self.lender.lose(READER)
        self.on_the_way.clear()
        self.lender.reach(READER, self.reader.know(LENDER, self.lender.introduction()))

    def post(self) -> None:
        """Lend a payload whose bytes are all the same, other than before."""
        self.value = self.value % 250 + 1
        tensors = {"x": torch.full((SIZE,), self.value, dtype=torch.uint8)}
        snapshot = self.snapshots.take(Payload(tensors), wire.slots_of(tensors))
        link = self.lender.link(READER)
        assert link is not None
        assert snapshot.can_be_lent
        snapshot.lend(link)
        self.on_the_way.append((snapshot.place, self.value))

    def lose_one(self) -> None:
        if self.on_the_way:
            self.on_the_way.popleft()

    def read(self) -> bool:
        """Whether what came next could be read; if so it is in use."""
        place, value = self.on_the_way.popleft()
        where = np.frombuffer(place, dtype=np.uint8)
        try:
            block = self.reader.borrow(LENDER, where, SIZE)
        except WireError:
            return False
        self.in_use.append((block, value))
        return True

    def is_untouched(self) -> bool:
        """Whether all that is in use is as it came."""
        return all((block == value).all() for block, value in self.in_use)


ACTS = ("post", "post", "read", "read", "drop", "lose_one", "meet", "start_reader")


@settings(max_examples=60, deadline=None)
@given(acts=st.lists(st.sampled_from(ACTS), max_size=120), seed=st.integers(0, 99))
def test_whatever_happens_nothing_in_use_is_written(acts: list[str], seed: int) -> None:
    pair, rng = Pair(), random.Random(seed)
    for act in acts:
        if act == "drop":
            if pair.in_use:
                pair.in_use.pop(rng.randrange(len(pair.in_use)))
        elif act == "read":
            if pair.on_the_way:
                pair.read()
        else:
            getattr(pair, act)()
        assert pair.is_untouched()


def test_memory_is_used_again_once_it_is_given_back() -> None:
    pair = Pair()
    pair.post()
    assert pair.read()
    before = num_mappings()
    for _ in range(10):
        pair.in_use.clear()
        pair.post()
        assert pair.read()
    assert num_mappings() == before


def test_what_was_lost_on_its_way_is_used_again_too() -> None:
    pair = Pair()
    for _ in range(10):
        pair.post()
        pair.lose_one()
        pair.post()
        assert pair.read()
        pair.in_use.clear()
    assert num_mappings() <= 2 + 2 * 3 + 2  # boards seen and made, and three slots at both ends


def test_one_who_gives_nothing_back_costs_a_bounded_number_of_slots() -> None:
    pair = Pair()
    for _ in range(3 * SLOTS):
        pair.post()
        assert pair.read()
    assert pair.is_untouched()
    pair.in_use.clear()
    assert num_mappings() <= 4 + 2 * SLOTS


def test_the_oldest_that_waits_unread_gives_way() -> None:
    pair = Pair()
    for _ in range(SLOTS + 3):
        pair.post()
    assert [pair.read() for _ in range(SLOTS + 3)] == [False] * 3 + [True] * SLOTS
    assert pair.is_untouched()


def test_slots_that_are_not_needed_any_more_are_given_up_at_both_ends() -> None:
    pair = Pair()
    for _ in range(10):
        pair.post()
        assert pair.read()
    pair.in_use.clear()
    many = num_mappings()
    for _ in range(IDLE + 2):
        pair.post()
        assert pair.read()
        pair.in_use.clear()
    assert num_mappings() == many - 2 * 9


def test_all_goes_when_both_have_gone() -> None:
    before = num_mappings()
    descriptors = os.listdir("/proc/self/fd")
    pair = Pair()
    pair.post()
    assert pair.read()
    pair.lender.close()
    pair.reader.close()
    del pair
    assert num_mappings() == before
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


@pytest.mark.parametrize("seconds", [1, 2])
def test_the_same_again_is_refused(seconds: int) -> None:
    """A message of before, replayed, must not say that an old payload is in use."""
    pair = Pair()
    pair.post()
    replayed = pair.on_the_way[0]
    for _ in range(seconds):
        assert pair.read()
        pair.post()
    pair.on_the_way.appendleft(replayed)
    assert not pair.read()
    assert pair.read()
    assert pair.is_untouched()


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ([0, 0, 0], "cannot see"),
        ([0, 0, SLOTS, 1], f"slot {SLOTS}"),
        ([0, 0, -1, 1], "slot -1"),
        ([0, 0, 0, 0], "lent before"),
        ([0, 0, 0, 1 << 62], "lent before"),
        ([10**6, 0, 0, 1], "cannot be read"),
        ([0, 0, 0, 1], "not there"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(numbers: list[int], why: str) -> None:
    where = np.frombuffer(np.array(numbers, dtype=np.int64).tobytes(), dtype=np.uint8)
    with pytest.raises(WireError, match=why):
        Pair().reader.borrow(LENDER, where, SIZE)


def test_a_stranger_lends_nothing() -> None:
    where = np.zeros(32, dtype=np.uint8)
    with pytest.raises(WireError, match="cannot see"):
        Pair().reader.borrow(LENDER + 1, where, SIZE)


def test_who_is_elsewhere_is_not_lent_anything() -> None:
    pair = Pair()
    theirs = pair.lender.introduction()["memory"].clone()
    theirs[0] += 1
    assert pair.reader.know(9, {"memory": theirs}) == {}
    assert pair.explained == []


def test_who_is_here_and_cannot_be_read_is_explained_once() -> None:
    pair = Pair()
    theirs = pair.lender.introduction()["memory"].clone()
    theirs[2] = 10**6  # no such descriptor
    for _ in range(2):
        assert pair.reader.know(9, {"memory": theirs}) == {}
    assert pair.explained == [(9, "its memory cannot be read: No such file or directory")]


def test_without_memory_messages_go_by_socket_which_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> int:
        raise OSError(38, "Function not implemented")

    theirs = Plane(READER, lambda peer, why: None).introduction()
    monkeypatch.setattr(os, "memfd_create", fail)
    explained = []
    plane = Plane(LENDER, lambda peer, why: explained.append((peer, why)))
    assert plane.introduction() == {}
    assert plane.know(READER, theirs) == {}
    assert explained == [(READER, "this peer has no memory to share: Function not implemented")]


def test_where_it_is_not_wanted_nothing_is_explained() -> None:
    theirs = Plane(READER, lambda peer, why: None).introduction()
    explained = []
    plane = Plane(LENDER, lambda peer, why: explained.append((peer, why)), wanted=False)
    assert plane.know(READER, theirs) == {}
    assert explained == []


def test_frames_for_sockets_are_copies_where_payloads_are_lent() -> None:
    pair = Pair()
    tensors = {"x": torch.ones(wire.MAX_FRAME_BYTES + 1, dtype=torch.uint8)}
    snapshot = pair.snapshots.take(Payload(tensors), wire.slots_of(tensors))
    frames = snapshot.frames(wire.MAX_FRAME_BYTES)
    assert snapshot.can_be_lent
    assert [len(frame) for frame in frames] == [wire.MAX_FRAME_BYTES, 1]
    assert all(frame.tracker is None for frame in frames)
