"""Segments, boards and what is lent: nothing is written under a reader, and nothing is left."""

from __future__ import annotations

import gc
import os
import random
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from p2p_dml import wire
from p2p_dml.errors import WireError
from p2p_dml.events import NotShared
from p2p_dml.transports import _segments
from p2p_dml.transports._board import SLOTS, Board, Row
from p2p_dml.transports._plane import IDLE, Plane
from p2p_dml.transports._segments import HEAD_BYTES, Mapping, Place, Segment
from p2p_dml.transports._snapshots import ZERO_COPY_FROM, Snapshots
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport
from p2p_dml.types import Payload, PeerId, Tag

if TYPE_CHECKING:
    from tests.transports.conftest import Peers, Raw

RUN = b"r" * 16
QUICK = Limits(startup_s=10.0, linger_s=0.2)
PATIENT_S = 60.0

ME = os.getpid()
SIZE = ZERO_COPY_FROM
LENDER, READER = 3, 5


def mapped(segment: Segment) -> Mapping:
    return Mapping(ME, segment.descriptor, segment.token)


def num_mappings() -> int:
    """Regions of this process's memory that are segments, its own or others'."""
    gc.collect()
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("/memfd:p2p_dml")


# ---- segments -----------------------------------------------------------------------------


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
        Mapping(ME, descriptor, token)
    other = Segment(SIZE)  # which takes the same descriptor
    assert other.descriptor == descriptor
    with pytest.raises(WireError, match="not there any more"):
        Mapping(ME, descriptor, token)


@pytest.mark.parametrize("path", ["/dev/zero", __file__])
def test_what_is_no_segment_is_not_opened(path: str) -> None:
    with Path(path).open("rb") as file, pytest.raises(WireError, match="not there"):
        Mapping(ME, file.fileno(), 0)


def test_memory_that_could_shrink_is_refused() -> None:
    descriptor = os.memfd_create("p2p_dml", 0)
    os.truncate(descriptor, HEAD_BYTES)
    with pytest.raises(WireError, match="could shrink"):
        Mapping(ME, descriptor, 0)
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
        np.array([1, 2, 3], dtype=np.int64),
        np.array([1, 2, 3, -4], dtype=np.int64),
        np.array([1, 2, 3, 4], dtype=np.int32),
        np.ones((4, 1), dtype=np.int64),
    ],
)
def test_what_is_no_place_is_refused(numbers: NDArray[np.int64]) -> None:
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
    row = Row(Mapping(place.pid, place.descriptor, place.token), LENDER)
    assert row.has_done(*asked) is is_done
    assert Row(Mapping(place.pid, place.descriptor, place.token), LENDER + 1).newest == 0


# ---- lending ------------------------------------------------------------------------------


class Pair:
    """A lender and a reader, and what is between them."""

    def __init__(self) -> None:
        self.explained: list[tuple[PeerId, str]] = []
        self.snapshots = Snapshots()
        self.on_the_way: deque[tuple[bytes, int]] = deque()
        self.in_use: list[tuple[NDArray[np.uint8], int]] = []
        self.value = 0
        self.lender = self.plane(LENDER)
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
        snapshot = self.snapshots.take(Payload(tensors), wire.slots_of(tensors), shared=True)
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


# ---- over a transport ---------------------------------------------------------------------


def large(x: float) -> Payload:
    return Payload({"x": torch.full((SIZE,), float(x))})


def value(payload: Payload) -> float:
    """The number that a `large` payload is full of."""
    (x,) = torch.unique(payload.tensors["x"]).tolist()
    return float(x)


def shares(transport: ZeroMQTransport, peer: PeerId) -> bool:
    return transport._plane.link(peer) is not None


def test_neighbours_on_one_machine_share_memory(peers: Peers) -> None:
    a, b = peers.pair()
    held = []
    for round_ in range(1, 2 * SLOTS):
        assert b.post(Tag(round_), {0: large(round_)}) == 4 * SIZE
        mail = a.collect(Tag(round_), [1], PATIENT_S)
        assert mail.num_bytes == 4 * SIZE
        held.append(mail.on_time[1])
    assert shares(b, 0)
    assert [value(payload) for payload in held] == [*range(1, 2 * SLOTS)]
    assert peers.rejected(a) == []


def test_one_payload_goes_to_those_who_share_memory_and_to_others(peers: Peers) -> None:
    a, b = peers.make(0), peers.make(1)
    c = peers.make(2, limits=replace(QUICK, shared_memory=False))
    peers.open(a, b, c)
    for round_ in range(1, 6):
        payload = large(round_)
        b.post(Tag(round_), {0: payload, 2: payload})
        for each in (a, c):
            assert value(each.collect(Tag(round_), [1], PATIENT_S).on_time[1]) == round_
    assert (shares(b, 0), shares(b, 2)) == (True, False)
    assert not any(isinstance(e, NotShared) for each in (a, b, c) for e in peers.events[each])


def test_a_neighbour_killed_while_it_reads_keeps_what_it_reads(peers: Peers) -> None:
    a, b = peers.pair()
    b.post(Tag(1), {0: large(1)})
    held = a.collect(Tag(1), [1], PATIENT_S).on_time[1]
    peers.kill(a)
    b.collect(Tag(1), [0], PATIENT_S)  # until it knows
    a2 = peers.make(0, incarnation=2, bind=a.endpoint)
    opening = peers.threads.submit(a2.open, {0: a2.endpoint, 1: b.endpoint}, [1])
    peers.read_until(b, opening.done)
    opening.result()
    a2.come_inside(2)
    while not shares(b, 0):
        peers.read(a2)
        peers.read(b)
    for round_ in range(2, 8):
        b.post(Tag(round_), {0: large(round_)})
        assert value(a2.collect(Tag(round_), [1], PATIENT_S).on_time[1]) == round_
    assert value(held) == 1


def test_what_a_killed_neighbour_lent_stays_readable(peers: Peers) -> None:
    a, b = peers.pair()
    b.post(Tag(1), {0: large(1)})
    held = a.collect(Tag(1), [1], PATIENT_S).on_time[1]
    peers.kill(b)
    del b
    gc.collect()
    assert value(held) == 1


def test_a_receiver_that_reads_nothing_is_not_lent_more_and_more(peers: Peers) -> None:
    _, b = peers.pair()
    before = num_mappings()
    sent = [b.post(Tag(round_), {0: large(round_)}) for round_ in range(1, 4 * SLOTS)]
    assert 0 < sum(sent) <= 8 * 4 * SIZE
    assert num_mappings() <= before + 9


def test_where_memory_cannot_be_read_messages_go_by_socket(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*place: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(_segments, "Mapping", refuse)
    a, b = peers.pair()
    b.post(Tag(1), {0: large(1)})
    assert value(a.collect(Tag(1), [1], PATIENT_S).on_time[1]) == 1
    assert not shares(b, 0)
    told = [e for e in peers.events[a] if isinstance(e, NotShared)]
    assert told == [NotShared(1, "its memory cannot be read: Operation not permitted")]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_lent(peers: Peers, wrong: float) -> None:
    a, b = peers.pair()
    for round_, x in enumerate((1.0, wrong, 2.0), start=1):
        b.post(Tag(round_), {0: large(x)})
    mails = [a.collect(Tag(round_), [1], PATIENT_S) for round_ in (1, 2, 3)]
    assert [mail.on_time[1].is_finite for mail in mails] == [True, False, True]


def test_a_hello_with_a_senseless_place_is_refused(peers: Peers, raw: Raw) -> None:
    a = peers.make(0)
    tensors = {"memory": torch.tensor([1, 2, 3, -4])}
    slots = wire.slots_of(tensors)
    header = wire.Header(wire.Kind.HELLO, RUN, 1, 7, Tag(0), slots=slots)
    frames = wire.encode_header(header), wire.encode_block(tensors, slots)
    kind, why = raw.ask(a, raw.dealer(a.endpoint), *frames)
    assert kind is wire.Kind.REFUSED
    assert "four natural numbers" in why
