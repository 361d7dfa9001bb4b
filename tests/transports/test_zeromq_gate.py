"""The ledger of connections: who was turned away, as far as libzmq's reports tell."""

from __future__ import annotations

from p2p_dml.transports._sockets import plain_address
from p2p_dml.transports._zap import BROKEN_OFF, NO_HANDSHAKE, WRONG_HANDSHAKE, Ledger


def test_a_failure_belongs_to_the_connection_that_ends_next() -> None:
    ledger = Ledger()
    ledger.accepted(7, "10.0.0.1")
    ledger.accepted(8, "10.0.0.2")
    ledger.failed(WRONG_HANDSHAKE)
    assert ledger.ended(8) == ("10.0.0.2", WRONG_HANDSHAKE)
    ledger.failed(NO_HANDSHAKE)
    assert ledger.ended(7) == ("10.0.0.1", NO_HANDSHAKE)


def test_what_is_known_already_is_not_told_again() -> None:
    ledger = Ledger()
    ledger.accepted(7, "10.0.0.1")
    ledger.failed(None)
    assert ledger.ended(7) is None


def test_a_peer_that_leaves_is_not_turned_away() -> None:
    ledger = Ledger()
    ledger.accepted(7, "10.0.0.1")
    ledger.let_in("10.0.0.1")
    assert ledger.ended(7) is None


def test_who_never_showed_a_key_is() -> None:
    ledger = Ledger()
    ledger.accepted(7, "10.0.0.1")
    ledger.let_in("10.0.0.1")
    for _ in range(3):
        ledger.accepted(8, "10.0.0.9")
        assert ledger.ended(8) == ("10.0.0.9", BROKEN_OFF)
    ledger.accepted(8, "10.0.0.1")
    assert ledger.ended(8) is None  # may have been the peer
    assert ledger.ended(7) == ("10.0.0.1", BROKEN_OFF)  # then this is the other


def test_a_connection_that_was_not_seen_to_come_has_no_address() -> None:
    assert Ledger().ended(5) == ("an unknown address", BROKEN_OFF)


def test_addresses_are_told_as_people_write_them() -> None:
    found = ["10.0.0.7", "::ffff:10.0.0.7", "2001:db8::7", "localhost:0:0:31531"]
    told = ["10.0.0.7", "10.0.0.7", "2001:db8::7", "this machine"]
    assert [plain_address(each) for each in found] == told
