"""Masks on links: what is read is what was sent, or it is refused: lost, late or run again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.kernels import entropy
from p2p_dml.kernels.masks import ones, pack, packed_bytes
from p2p_dml.states import leaves
from p2p_dml.strategies._mask_coding import (
    DELTA,
    ENTROPY,
    OWN,
    PACKED,
    PATIENCE,
    RECENT,
    WINDOW,
    CodingState,
    Mode,
    digest,
    sizes,
)
from p2p_dml.types import Payload, PeerId
from tests.strategies.mask_links import (
    CODING,
    NUMELS,
    A,
    B,
    Peer,
    codings,
    hood_of,
    mask_of,
    meet,
    met,
    pair,
)


def test_masks_come_whole_until_it_is_known_that_one_was_heard() -> None:
    a, b = pair()
    for seed in (0, 1):  # what is heard in a round is announced in the next
        assert codings(meet(a, b, seed)) == [ENTROPY, ENTROPY]
    for seed in range(2, 6):
        sent = meet(a, b, seed)
        assert codings(sent) == [DELTA, DELTA]
        assert sent[A].scalars["base"] == digest(mask_of(2 * (seed - 2)))


def test_what_is_remembered_is_in_the_order_it_came_so_that_equal_states_are_equal_files() -> None:
    a, b = pair()
    for seed in range(2 * WINDOW):
        meet(a, b, seed)
        for masks in (a.state.sent, a.state.heard[str(B)].masks):
            rounds = [kept.round for kept in masks.values()]
            assert rounds == sorted(rounds)


def test_after_a_loss_changes_are_of_what_was_heard() -> None:
    a, b = met(*pair())
    meet(a, b, 2, lost=[A])
    meet(a, b, 3)
    change, _ = meet(a, b, 4)
    assert change.scalars["base"] == digest(mask_of(2))


@pytest.mark.parametrize("silent", [A, B])
def test_a_link_on_which_one_direction_is_lost_never_refuses(silent: PeerId) -> None:
    a, b = met(*pair())
    for seed in range(2, 2 * WINDOW):
        meet(a, b, seed, lost=[silent])
    meet(a, b, 2 * WINDOW)
    meet(a, b, 2 * WINDOW + 1)
    assert codings(meet(a, b, 2 * WINDOW + 2)) == [DELTA, DELTA]


@pytest.mark.parametrize(("gone", "coding"), [(WINDOW - 2, DELTA), (WINDOW - 1, ENTROPY)])
def test_a_link_that_was_gone_for_the_window_begins_anew(gone: int, coding: int) -> None:
    """The mask of round 1 is the last that is known to be held."""
    a, b = met(*pair())
    for seed in range(2, 2 + gone):
        a.alone(mask_of(2 * seed))
        b.alone(mask_of(2 * seed + 1))
    assert codings(meet(a, b, 2 + gone)) == [coding, coding]
    meet(a, b, 3 + gone)
    assert codings(meet(a, b, 4 + gone)) == [DELTA, DELTA]


def test_a_peer_that_starts_anew_is_sent_a_whole_mask_as_soon_as_that_is_known() -> None:
    a, b = met(*pair())
    b.state = CodingState()
    change = a.send(mask_of(100))
    announced = b.send(mask_of(101))
    assert announced.scalars["have"] == 0
    with pytest.raises(WireError, match="not held"):
        b.coding.read(b.state, A, change)
    assert b.hear(change) is None
    assert a.hear(announced) is not None
    assert codings([a.send(mask_of(102))]) == [ENTROPY]


def test_a_round_run_again_with_another_mask_is_no_base_for_changes() -> None:
    """A peer continues from a checkpoint: the other holds a mask of a round that never was."""
    a, b = met(*pair())
    saved = a.state
    meet(a, b, 2)
    a.state = saved
    a.round -= 1
    meet(a, b, 50)  # b says that it has the first mask of this round
    assert codings(meet(a, b, 51))[A] == ENTROPY
    assert meet(a, b, 52)[A].scalars["base"] == digest(mask_of(100))


def test_two_that_refuse_each_other_come_back_to_terms() -> None:
    """Both go back to checkpoints, of different rounds: neither holds what the other builds on."""
    a, b = met(*pair())
    saved = []
    for seed in range(2, 13):
        meet(a, b, seed)
        saved.append((a.state, b.state))
    a.state, b.state = saved[8][0], saved[3][1]
    for seed in range(20, 20 + PATIENCE):
        sent = a.send(mask_of(2 * seed)), b.send(mask_of(2 * seed + 1))
        assert codings(sent) == [DELTA, DELTA]
        assert b.hear(sent[A]) is None
        assert a.hear(sent[B]) is None
    assert codings(meet(a, b, 30)) == [ENTROPY, ENTROPY]
    meet(a, b, 31)
    assert codings(meet(a, b, 32)) == [DELTA, DELTA]


def test_a_neighbour_that_never_answers_gets_whole_masks() -> None:
    a, b = met(*pair())
    found = [codings(meet(a, b, seed, lost=[B]))[A] for seed in range(2, 6 + PATIENCE)]
    assert found == [DELTA] * PATIENCE + [ENTROPY] * 4


def test_eager_changes_are_of_the_last_mask_sent() -> None:
    a, b = pair("eager")
    assert codings(meet(a, b, 0)) == [ENTROPY, ENTROPY]
    for seed in range(1, 5):
        sent = meet(a, b, seed)
        assert codings(sent) == [DELTA, DELTA]
        assert sent[A].scalars["base"] == digest(mask_of(2 * (seed - 1)))


def test_an_eager_change_of_a_lost_mask_is_refused_and_the_next_one_is_not() -> None:
    a, b = pair("eager")
    for seed in range(3):
        meet(a, b, seed)
    meet(a, b, 3, lost=[A])
    change, answer = a.send(mask_of(8)), b.send(mask_of(9))
    with pytest.raises(WireError, match="not held"):
        b.coding.read(b.state, A, change)
    assert b.hear(change) is None
    assert a.hear(answer) is not None
    bases = [meet(a, b, seed)[A].scalars["base"] for seed in (5, 6, 7)]
    assert bases == [digest(mask_of(2 * seed)) for seed in (2, 2, 6)]


@pytest.mark.parametrize(("mode", "coding"), [("packed", PACKED), ("entropy", ENTROPY)])
def test_modes_without_changes_remember_nothing(mode: Mode, coding: int) -> None:
    a, b = pair(mode)
    for seed in range(3):
        assert codings(meet(a, b, seed)) == [coding, coding]
    assert a.state == b.state == CodingState()


def test_the_shortest_of_the_ways_is_taken() -> None:
    a, b = pair()
    even = pack([torch.from_numpy(np.random.Philox(key=[1, i]).random_raw(n) % 2 == 0)
                 for i, n in enumerate(NUMELS)])  # fmt: skip
    sent = a.send(even)
    assert codings([sent]) == [PACKED]
    assert sent.tensors["mask"].numel() == packed_bytes(sum(NUMELS))
    b.send(mask_of(1))
    b.hear(sent)
    a.hear(b.send(mask_of(2)))
    same, few = a.send(even), a.send(even ^ (torch.arange(even.numel()) == 9).byte())
    assert codings([same, few]) == [DELTA, DELTA]
    assert same.tensors["mask"].numel() == 4 * len(NUMELS)
    assert few.tensors["mask"].numel() <= 4 * len(NUMELS) + 8
    far = a.send(mask_of(3))
    assert codings([far]) == [ENTROPY]
    assert far.tensors["mask"].equal(entropy.encode(mask_of(3), NUMELS))


def test_every_link_is_coded_by_what_its_receiver_has() -> None:
    others = {k: Peer(k, 0) for k in (1, 2, 3)}
    state = CodingState()
    for round_, heard_from in enumerate([(1, 2), (1,)], start=1):
        outbox, state = CODING.outbox(state, hood_of(0, [1, 2]), round_, mask_of(round_))
        back = {k: others[k].send(mask_of(10 * k + round_)) for k in (1, 2)}
        assert all(others[k].hear(outbox[k]) is not None for k in (1, 2))
        read = {k: CODING.read(state, k, back[k]) for k in heard_from}
        state = CODING.heard(state, round_, read)
    outbox, _ = CODING.outbox(state, hood_of(0, [1, 2, 3]), 3, mask_of(3))
    assert codings(list(outbox.values())) == [DELTA, ENTROPY, ENTROPY]
    have = [payload.scalars["have"] for payload in outbox.values()]
    assert have == [digest(mask_of(12)), digest(mask_of(21)), 0]


def test_what_is_remembered_is_bounded_and_can_be_saved() -> None:
    neighbours = list(range(1, 5))
    state, others = CodingState(), {k: CodingState() for k in neighbours}
    for round_ in range(1, 60):
        outbox, state = CODING.outbox(state, hood_of(0, neighbours), round_, mask_of(round_))
        heard = {}
        for k in neighbours:
            back, others[k] = CODING.outbox(others[k], hood_of(k, [0]), round_, mask_of(100 * k))
            if (round_ + k) % (2 * k + 1) == 0:  # one message in 3, 5, 7 and 9 arrives
                read = CODING.read(others[k], 0, outbox[k])
                others[k] = CODING.heard(others[k], round_, {0: read})
                heard[k] = CODING.read(state, k, back[0])
        state = CODING.heard(state, round_, heard)
        assert len(state.sent) <= OWN + len(neighbours)
        assert all(len(each.masks) <= RECENT + 1 for each in state.heard.values())
    saved = leaves(state, "strategy")
    assert sum(name.endswith("/bits") for name in saved) == len(state.sent) + sum(
        len(each.masks) for each in state.heard.values()
    )
    state = CODING.heard(state, 60 + WINDOW, {})
    assert not state.heard


Fate = tuple[bool, bool, int, int, int, int]
"""Arrives a -> b, b -> a; delays of both in rounds; who starts anew (0 nobody), how far back."""

fates = st.lists(
    st.tuples(
        st.booleans(), st.booleans(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9),
        st.integers(0, 5),
    ),
    max_size=14,
)  # fmt: skip


@given(
    arrives=st.lists(
        st.tuples(st.booleans(), st.booleans(), st.sampled_from([7, 8])), max_size=3 * WINDOW
    )
)
@example(arrives=[(True, True, 7)] * 2 + [(True, False, 8)] * 3 + [(True, True, 7)] * 2)
def test_losses_alone_never_make_a_mask_unreadable(arrives: list[tuple[bool, bool, int]]) -> None:
    """Masks may change so much that a whole one is shorter than a change, and change back."""
    a, b = pair()
    for seed, (there, back, family) in enumerate(arrives):
        lost = [peer for peer, here in ((A, there), (B, back)) if not here]
        meet(a, b, seed, lost, family)


def test_a_neighbour_many_rounds_slower_is_sent_changes() -> None:
    """Of five masks it reads the last one, and answers to that five rounds later."""
    a, b = pair()
    later = []
    for seed in range(50):
        payload = a.send(mask_of(2 * seed))
        later.append(payload)
        answer = None
        if seed % 5 == 4:
            b.hear(payload)
            answer = b.send(mask_of(2 * seed + 1))
        a.state = a.coding.heard(
            a.state,
            a.round,
            {} if answer is None else {B: a.coding.read(a.state, B, answer)},
        )
    assert codings(later[-5:]) == [DELTA, DELTA, DELTA, ENTROPY, ENTROPY]  # PATIENCE ends


@given(arrives=st.lists(st.booleans(), max_size=WINDOW))
def test_eager_changes_are_refused_after_losses_only(arrives: list[bool]) -> None:
    a, b = pair("eager")
    for seed, arrives_there in enumerate(arrives):
        bits = mask_of(2 * seed)
        sent, back = a.send(bits), b.send(mask_of(2 * seed + 1))
        found = b.hear(sent if arrives_there else None)
        assert a.hear(back) is not None
        assert found is None or torch.equal(found, bits)
        assert found is not None or not arrives_there or not arrives[seed - 1]


@given(fates=fates, mode=st.sampled_from(["delta", "eager"]))
def test_no_mask_is_read_wrongly_whatever_happens(fates: list[Fate], mode: Mode) -> None:
    """Losses, delays, messages read twice, and peers that go back to a checkpoint or to nothing."""
    peers = pair(mode)
    saved: list[list[CodingState]] = [[CodingState()], [CodingState()]]
    post: list[list[tuple[int, Tensor, Payload]]] = [[], []]
    for now, (there, back, delay_there, delay_back, anew, rounds) in enumerate(fates):
        if anew in (1, 2):
            peers[anew - 1].state = saved[anew - 1][-1 - min(rounds, len(saved[anew - 1]) - 1)]
        for me, (arrives, delay) in enumerate(((there, delay_there), (back, delay_back))):
            bits = mask_of(2 * now + me + 100 * anew)
            payload = peers[me].send(bits)
            if arrives:
                post[1 - me].append((now + delay, bits, payload))
        for me, peer in enumerate(peers):
            here = [entry for entry in post[me] if entry[0] <= now]
            found = peer.hear(here[-1][2] if here else None)
            assert found is None or torch.equal(found, here[-1][1])
            saved[me].append(peer.state)
    for seed in range(500, 502 + PATIENCE):
        masks = mask_of(2 * seed), mask_of(2 * seed + 1)
        sent = peers[A].send(masks[A]), peers[B].send(masks[B])
        read = peers[B].hear(sent[A]), peers[A].hear(sent[B])
    assert all(x is not None and torch.equal(x, bits) for x, bits in zip(read, masks, strict=True))


@given(place=st.integers(0, 400), flip=st.integers(1, 255))
def test_a_change_with_other_bytes_is_refused_or_is_another_mask_as_large(
    place: int, flip: int
) -> None:
    a, b = met(*pair())
    payload = a.send(mask_of(4))
    assert codings([payload]) == [DELTA]
    code = payload.tensors["mask"].clone()
    code[place % code.numel()] ^= flip
    counts = ones(mask_of(4), NUMELS)
    try:
        read = b.coding.read(b.state, A, replace(payload, tensors={"mask": code}), lambda j: counts)
    except WireError:
        return
    assert ones(read.tensors["mask"], NUMELS) == counts


def test_what_was_received_may_be_overwritten() -> None:
    a, b = pair("packed")
    payload = a.send(mask_of(0))
    read = b.hear(payload)
    payload.tensors["mask"].zero_()
    assert read is not None
    assert read.equal(mask_of(0))


def test_digests_name_masks_and_are_exact_as_scalars() -> None:
    names = {digest(mask_of(seed)) for seed in range(200)}
    assert len(names) == 200
    assert all(0 < name < 2**52 and int(float(name)) == name for name in names)


def test_sizes_by_hand() -> None:
    bits = torch.tensor([0b10110001, 0b1], dtype=torch.uint8)
    code = {"mask": torch.zeros(3, dtype=torch.uint8)}
    longer = {"mask": torch.zeros(6, dtype=torch.uint8)}
    counted = {"bytes/dense": 36.0, "bytes/packed": 2.0, "bytes/ones": 5 / 8}
    assert sizes(bits, 9, {1: Payload(code), 2: Payload(longer)}) == counted | {"bytes/coded": 4.5}
    assert sizes(bits, 9, {}) == counted
