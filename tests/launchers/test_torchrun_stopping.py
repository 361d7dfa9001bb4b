"""Signals to a rank: the first sets the time, none kills, and a round may be overdue."""

from __future__ import annotations

import signal

import pytest

from p2p_dml.launchers import stopping
from p2p_dml.launchers.stopping import Overdue, StoppedEarly, Stopping


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Stopping:
    """A rank whose alarm rings only when the test rings it."""
    monkeypatch.setattr(signal, "setitimer", lambda timer, seconds: None)
    monkeypatch.setattr(stopping, "signal_with_parent", lambda number: None)
    return Stopping()


def test_signals_are_noted_and_do_not_kill(told: Stopping) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    with told.listening():
        assert (told.is_told, told.seconds) == (False, 0.0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert told.is_told
        first = told.seconds
        signal.raise_signal(signal.SIGTERM)
        assert told.seconds >= first >= 0.0
    after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    assert after == before


def test_before_the_first_round_others_may_speak_first(
    told: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.check()
    told.tell()
    told.check()
    monkeypatch.setattr(stopping, "LAST_WORDS_S", -1.0)
    with pytest.raises(StoppedEarly):
        told.check()


def test_only_rounds_can_be_overdue(told: Stopping) -> None:
    with told.listening():
        signal.raise_signal(signal.SIGALRM)
        with pytest.raises(Overdue), told.interruptible():
            signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGALRM)


def test_a_round_that_begins_too_late_is_overdue_at_once(
    told: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.tell()
    with told.interruptible():
        pass
    monkeypatch.setattr(stopping, "GRACE_S", -1.0)
    with pytest.raises(Overdue), told.interruptible():
        raise AssertionError("never begins")


def test_an_overdue_round_is_not_handled_as_an_error_of_a_function() -> None:
    assert not issubclass(Overdue, Exception)


def test_the_alarm_follows_the_first_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    alarms: list[float] = []
    monkeypatch.setattr(stopping, "signal_with_parent", lambda number: None)
    monkeypatch.setattr(signal, "setitimer", lambda timer, seconds: alarms.append(seconds))
    each = Stopping()
    with each.listening():
        each.tell()
        each.tell()
        assert alarms == [stopping.GRACE_S]
    assert alarms == [stopping.GRACE_S, 0.0]
