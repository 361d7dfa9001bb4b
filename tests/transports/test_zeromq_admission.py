"""Whose a connection is, and what it may still say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2p_dml.errors import WireError
from p2p_dml.transports._admission import Admission
from p2p_dml.types import PeerId, Tag
from p2p_dml.wire import Header, Kind

RUN, OTHER_RUN = b"r" * 16, b"o" * 16
HELLO = Header(Kind.HELLO, RUN, 1, 7, Tag(0))


@pytest.fixture
def admission() -> Admission:
    """Of peer 0, with peer 1 on contact `a`."""
    made = Admission(0, RUN)
    assert made.admit(b"a", HELLO) == []
    return made


def test_a_connection_is_nobodys_before_its_hello(admission: Admission) -> None:
    assert (admission.peer_on(b"a"), admission.peer_on(b"b")) == (1, None)
    assert (admission.has_met(1), admission.has_met(2)) == (True, False)


@pytest.mark.parametrize(
    ("hello", "alive_as", "why"),
    [
        (HELLO, None, None),
        (HELLO, 7, None),
        (HELLO, 8, "two peers with one id"),
        (replace(HELLO, digest=OTHER_RUN), None, "of another run"),
        (replace(HELLO, sender=0), None, "this peer's own"),
    ],
)
def test_which_hellos_fit(hello: Header, alive_as: int | None, why: str | None) -> None:
    admission = Admission(0, RUN)
    if why is None:
        admission.check_hello(hello, alive_as)
        return
    with pytest.raises(WireError, match=why):
        admission.check_hello(hello, alive_as)


@pytest.mark.parametrize(("sender", "holder"), [(1, 2), (2, 1), (0, 1)])
def test_the_sender_must_hold_the_key(sender: PeerId, holder: PeerId) -> None:
    admission = Admission(0, RUN)
    admission.check_holder(replace(HELLO, sender=holder), holder)
    with pytest.raises(
        WireError, match=f"claims to be peer {sender}, with the key of peer {holder}"
    ):
        admission.check_holder(replace(HELLO, sender=sender), holder)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (HELLO, None),
        (replace(HELLO, sender=2), "claims to be peer 2"),
        (replace(HELLO, digest=OTHER_RUN), "of another run"),
        (replace(HELLO, incarnation=6), "another incarnation"),
    ],
)
def test_later_messages_must_agree_with_the_hello(
    admission: Admission, header: Header, why: str | None
) -> None:
    if why is None:
        admission.check(1, header)
        return
    with pytest.raises(WireError, match=why):
        admission.check(1, header)


def test_the_rounds_of_a_sender_only_go_up(admission: Admission) -> None:
    for tag in (Tag(1), Tag(1, 1), Tag(4), Tag(5)):
        admission.advance(1, tag)
    for tag in (Tag(5), Tag(4, 9), Tag(1)):
        with pytest.raises(WireError, match="replayed"):
            admission.advance(1, tag)
    admission.advance(2, Tag(1))  # each sender has its own
    admission.advance(1, Tag(5, 1))


def test_they_go_on_over_a_new_connection_and_begin_anew_with_an_incarnation(
    admission: Admission,
) -> None:
    admission.advance(1, Tag(5))
    assert admission.admit(b"b", HELLO) == []
    with pytest.raises(WireError, match="replayed"):
        admission.advance(1, Tag(5))
    assert admission.admit(b"c", replace(HELLO, incarnation=8)) == [b"b"]
    admission.advance(1, Tag(1))
    assert [admission.peer_on(each) for each in (b"a", b"b", b"c")] == [None, None, 1]
