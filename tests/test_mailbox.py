"""What each kind of mailbox hands out, and when."""

from __future__ import annotations

import pytest
import torch

from p2p_dml.mailbox import MANY, TOO_MANY, EveryMailbox, NewestMailbox, TaggedMailbox
from p2p_dml.types import Mail, Mailbox, Message, Payload, PeerId, Tag
from p2p_dml.wire import NEVER


def message(sender: PeerId, round_: int, value: float = 0.0) -> Message:
    return Message(sender, Tag(round_), Payload({"x": torch.tensor([value])}))


def values(mail: Mail) -> dict[PeerId, float]:
    return {j: payload.tensors["x"].item() for j, payload in mail.on_time.items()}


def late(mail: Mail) -> list[tuple[PeerId, int, float]]:
    return [(m.sender, m.tag.round, m.payload.tensors["x"].item()) for m in mail.late]


def take(mailbox: Mailbox, round_: int, *senders: PeerId) -> Mail:
    mailbox.begin(Tag(round_))
    return mailbox.take(senders)


# ---- tagged ----------------------------------------------------------------------------------


def test_tagged_hands_out_each_round_together_and_awaits_the_rest() -> None:
    mailbox = TaggedMailbox(ahead=4)
    for sender, round_ in ((2, 1), (0, 1), (0, 2)):
        mailbox.put(message(sender, round_, 10 * round_ + sender), 4)
    mailbox.begin(Tag(1))
    assert mailbox.absent([0, 1, 2]) == [1]
    first = mailbox.take([0, 1, 2])
    assert (values(first), list(first.on_time), first.num_bytes) == ({0: 10, 2: 12}, [0, 2], 8)
    mailbox.put(message(1, 1, 11), 4)
    second = take(mailbox, 2, 0, 1)
    assert (values(second), late(second), second.num_bytes) == ({0: 20}, [(1, 1, 11)], 8)
    assert (dict(second.ages), late(take(mailbox, 3, 0))) == ({}, [])


def test_tagged_refuses_what_is_too_far_ahead_and_never_what_is_late() -> None:
    mailbox = TaggedMailbox(ahead=2)
    mailbox.begin(Tag(5))
    refused = [mailbox.put(message(1, round_), 4) for round_ in (5, 6, 7, 1, 2, 3)]
    assert refused == [None, None, "too many messages ahead of time", None, None, None]
    assert len(mailbox.take([1]).late) == 3


def test_who_has_sent_for_a_later_exchange_is_not_awaited_and_is_ahead() -> None:
    mailbox = TaggedMailbox(ahead=4)
    for sender, round_ in ((0, 5), (1, 9), (2, 7), (3, 8)):
        mailbox.put(message(sender, round_), 4)
    mailbox.begin(Tag(5))
    assert mailbox.absent([0, 1, 2, 4]) == [4]
    # Peer 3 is no neighbour in this exchange: that it is further on is as it should be.
    assert mailbox.take([0, 1, 2, 4]).ahead == 9
    assert take(mailbox, 7, 2).ahead == 0


@pytest.mark.parametrize(
    ("lost", "awaited"), [(Tag(4), [0, 1]), (Tag(5), [0]), (Tag(5, 1), [0]), (NEVER, [0])]
)
def test_what_was_lost_with_a_connection_is_not_awaited(lost: Tag, awaited: list[PeerId]) -> None:
    mailbox = TaggedMailbox(ahead=4)
    mailbox.begin(Tag(5))
    mailbox.comes_after(1, lost)
    assert mailbox.absent([0, 1]) == awaited


def test_who_says_from_when_on_it_sends_is_awaited_again() -> None:
    mailbox = TaggedMailbox(ahead=4)
    mailbox.begin(Tag(5))
    for lost, awaited in ((NEVER, []), (Tag(5), []), (Tag(4), [1])):
        mailbox.comes_after(1, lost)
        assert mailbox.absent([1]) == awaited


# ---- newest ----------------------------------------------------------------------------------


def test_newest_is_used_again_until_it_is_too_old() -> None:
    mailbox = NewestMailbox(max_age=2)
    mailbox.begin(Tag(7))
    assert mailbox.absent([0, 1]) == []
    for round_ in (90, 3):  # the number says nothing: the later one is newer
        mailbox.put(message(1, round_, round_), 4)
    ages = [dict(take(mailbox, round_, 0, 1).ages) for round_ in (7, 8, 9, 10)]
    assert ages == [{1: 0}, {1: 1}, {1: 2}, {}]
    mailbox.put(message(1, 4, 4.0), 4)
    again = take(mailbox, 11, 1)
    assert (values(again), dict(again.ages), again.num_bytes) == ({1: 4}, {1: 0}, 4)


def test_newest_of_max_age_0_is_used_in_one_round_only() -> None:
    mailbox = NewestMailbox(max_age=0)
    mailbox.put(message(1, 1, 5.0), 4)
    assert values(take(mailbox, 1, 1)) == {1: 5}
    assert values(take(mailbox, 2, 1)) == {}


def test_newest_ages_also_while_its_sender_is_no_neighbour() -> None:
    mailbox = NewestMailbox(max_age=1)
    mailbox.put(message(1, 1), 4)
    assert values(take(mailbox, 1, 0)) == {}
    assert dict(take(mailbox, 2, 0, 1).ages) == {1: 1}


def test_the_last_model_of_a_finished_neighbour_does_not_age() -> None:
    mailbox = NewestMailbox(max_age=1)
    mailbox.put(message(1, 1, 5.0), 4)
    take(mailbox, 1, 1)
    mailbox.left(1)
    mailbox.left(2)  # of which nothing ever came
    far = take(mailbox, 50, 1, 2)
    assert (values(far), dict(far.ages)) == ({1: 5}, {1: 0})
    mailbox.put(message(1, 1, 6.0), 4)  # it came back
    take(mailbox, 51, 1)
    assert values(take(mailbox, 53, 1)) == {}


# ---- every -----------------------------------------------------------------------------------


def test_every_message_is_handed_out_exactly_once() -> None:
    mailbox = EveryMailbox()
    for sender, round_ in ((1, 1), (1, 2), (2, 1), (0, 3)):
        mailbox.put(message(sender, round_, 10 * sender + round_), 4)
    mail = take(mailbox, 9, 0, 1)
    assert mailbox.absent([0, 1]) == []
    assert (values(mail), mail.num_bytes) == ({0: 3, 1: 12}, 16)
    assert late(mail) == [(1, 1, 11), (2, 1, 21)]
    empty = take(mailbox, 10, 0, 1)
    assert (values(empty), late(empty), empty.num_bytes) == ({}, [], 0)


@pytest.mark.parametrize("mailbox", [TaggedMailbox(4), EveryMailbox()])
def test_what_a_finished_neighbour_sent_is_still_handed_out(mailbox: Mailbox) -> None:
    mailbox.put(message(1, 1, 5.0), 4)
    mailbox.left(1)
    assert values(take(mailbox, 1, 1)) == {1: 5}


@pytest.mark.parametrize("mailbox", [TaggedMailbox(2), EveryMailbox(2)])
def test_no_more_than_so_many_late_messages_of_a_sender_are_kept(
    mailbox: TaggedMailbox | EveryMailbox,
) -> None:
    mailbox.begin(Tag(1000))
    message = Message(1, Tag(5), Payload({}))
    assert [mailbox.put(message, 8) for _ in range(2 * MANY)] == [None] * (2 * MANY)
    assert mailbox.put(message, 8) == TOO_MANY
    assert mailbox.put(Message(2, Tag(6), Payload({})), 8) is None
    assert len(mailbox.take([]).late) == 2 * MANY + 1
    assert mailbox.put(message, 8) is None
