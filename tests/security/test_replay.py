"""What was recorded and is sent again gets nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from p2p_dml.transports._zap import BROKEN_OFF, WRONG_HANDSHAKE
from p2p_dml.transports.zeromq import ZeroMQTransport
from p2p_dml.types import Tag
from p2p_dml.wire import Kind

if TYPE_CHECKING:
    from tests.security.conftest import Mallory, Tap, Village

pytestmark = pytest.mark.timeout(30)

AGAIN = "sent a message of an exchange again, or of an earlier one: replayed (from 127.0.0.2)"
BEFORE = "sent a message of another incarnation: of before a restart, or replayed (from 127.0.0.2)"


@pytest.mark.parametrize("is_open", [True, False])
def test_messages_of_earlier_rounds_are_refused(
    village: Village, mallory: Mallory, is_open: bool
) -> None:
    a, _ = village.pair(is_open=is_open)
    pair = None if is_open else village.pairs[2]
    line = mallory.dial(a, pair, village.pairs[0].public)
    assert mallory.ask(a, line, mallory.frame(Kind.HELLO, 2))[0] is Kind.WELCOME
    for round_ in (4, 5, 5, 4, 3):
        line.send(mallory.frame(Kind.ROUND, 2, round_))
    assert [*a.collect(Tag(4), [2], 20.0).on_time] == [2]
    while village.so_far(a) != {AGAIN: 3}:
        village.read(a)
    assert [*a.collect(Tag(5), [2], 20.0).on_time] == [2]
    assert not a.collect(Tag(6), [2], 0.0).late


@pytest.mark.parametrize("is_open", [True, False])
def test_messages_of_an_earlier_run_are_refused(
    village: Village, mallory: Mallory, is_open: bool
) -> None:
    """Of the same run file, so with the same digest, by a peer that was started again since."""
    a, _ = village.pair(is_open=is_open)
    pair = None if is_open else village.pairs[2]
    line = mallory.dial(a, pair, village.pairs[0].public)
    assert mallory.ask(a, line, mallory.frame(Kind.HELLO, 2, incarnation=8))[0] is Kind.WELCOME
    line.send(mallory.frame(Kind.ROUND, 2, incarnation=7))
    while village.so_far(a) != {BEFORE: 1}:
        village.read(a)
    assert not a.collect(Tag(1), [2], 0.0).on_time


def test_recorded_ciphertext_opens_nothing(
    village: Village, mallory: Mallory, tap: Callable[[ZeroMQTransport], Tap]
) -> None:
    a, b = village.make(0), village.make(1)
    line = tap(a)
    assert village.open(a, b, via={0: line.address}) == [None, None]
    assert village.hear(a, b, 1)
    assert village.hear(a, b, 2)
    recorded = line.heard
    assert len(recorded) > 500
    again = mallory.line(a)
    again.sendall(recorded)
    assert mallory.is_closed(again)
    mail = a.collect(Tag(3), [1], 0.1)
    assert (dict(mail.on_time), list(mail.late)) == ({}, [])
    assert village.hear(a, b, 4)
    assert village.whys(a, lambda told: told).keys() <= {WRONG_HANDSHAKE, BROKEN_OFF}
