"""Who is waited for: the state machine, driven by hand with a clock of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from p2p_dml.liveness import FLOOD_S, Change, Liveness

DRAIN_S = 2.0
PEER = 7

Act = Callable[[Liveness], None]


def welcome(liveness: Liveness) -> None:
    liveness.welcomed(PEER)


def break_off(liveness: Liveness) -> None:
    """The connection breaks at time 10."""
    liveness.disconnected(PEER, 10.0)


def drain(liveness: Liveness) -> None:
    """Time passes until long after any break."""
    liveness.is_awaited(PEER, 1000.0)


def leave(liveness: Liveness) -> None:
    liveness.said_goodbye(PEER)


def miss(liveness: Liveness) -> None:
    liveness.missed_deadline(PEER, 1.5)


def deliver(liveness: Liveness) -> None:
    liveness.delivered(PEER)


def refuse(liveness: Liveness) -> None:
    liveness.unreachable(PEER)


def after(*acts: Act) -> Liveness:
    liveness = Liveness(DRAIN_S)
    for act in acts:
        act(liveness)
    return liveness


@pytest.mark.parametrize(
    ("acts", "state", "changes"),
    [
        ((), "connecting", []),
        ((break_off, drain), "connecting", []),
        ((deliver,), "connecting", []),
        ((welcome,), "alive", []),
        ((refuse,), "dead", ["dead: nobody listens at its address"]),
        ((miss,), "dead", ["dead: no connection within 1.5 s"]),
        ((miss, welcome), "alive", ["dead: no connection", "alive: connected again"]),
        ((welcome, refuse), "alive", []),
        ((welcome, miss), "slow", ["slow: nothing within 1.5 s, still connected"]),
        ((welcome, miss, miss), "slow", ["slow"]),
        ((welcome, miss, miss, miss), "stuck", ["slow", "stuck: nothing within 1.5 s, still conn"]),
        ((welcome, miss, miss, deliver, miss, miss), "slow", ["slow", "alive", "slow"]),
        ((welcome, miss, miss, miss, deliver), "alive", ["slow", "stuck", "alive: delivers again"]),
        ((welcome, miss, miss, miss, welcome), "alive", ["slow", "stuck", "alive: connected"]),
        ((welcome, miss, miss, welcome, miss), "slow", ["slow", "alive: connected", "slow"]),
        ((welcome, miss, miss, miss, leave), "left", ["slow", "stuck", "left"]),
        ((welcome, miss, miss, miss, break_off, drain), "dead", ["slow", "stuck", "dead"]),
        ((welcome, miss, deliver), "alive", ["slow", "alive: delivers again"]),
        ((welcome, miss, welcome), "alive", ["slow", "alive: connected again"]),
        ((welcome, break_off), "alive", []),
        ((welcome, break_off, drain), "dead", ["dead: connection lost"]),
        ((welcome, miss, break_off, drain), "dead", ["slow", "dead: connection lost"]),
        ((welcome, break_off, welcome, drain), "alive", []),
        ((welcome, break_off, drain, drain, miss, deliver, refuse), "dead", ["dead"]),
        ((welcome, break_off, drain, welcome), "alive", ["dead", "alive: connected again"]),
        ((welcome, leave), "left", ["left: said goodbye"]),
        ((welcome, leave, leave, break_off, drain, miss), "left", ["left"]),
        ((welcome, break_off, leave, drain), "left", ["left"]),
        ((leave,), "left", ["left"]),
        ((welcome, leave, welcome), "alive", ["left", "alive: connected again"]),
    ],
)
def test_states_and_changes(acts: tuple[Act, ...], state: str, changes: list[str]) -> None:
    liveness = after(*acts)
    assert liveness.state(PEER) == state
    told = [f"{c.state}: {c.why}" for c in liveness.take_changes() if c.neighbour == PEER]
    assert len(told) == len(changes)
    assert all(found.startswith(change) for found, change in zip(told, changes, strict=True))


@pytest.mark.parametrize(
    ("acts", "is_awaited", "is_connected"),
    [
        ((), True, False),
        ((welcome,), True, True),
        ((welcome, miss), True, True),
        ((welcome, miss, miss), True, True),
        ((welcome, miss, miss, miss), False, True),
        ((welcome, miss, miss, miss, deliver), True, True),
        ((welcome, miss, miss, miss, break_off), False, False),
        ((welcome, break_off), True, False),
        ((welcome, break_off, welcome), True, True),
        ((welcome, break_off, drain), False, False),
        ((welcome, leave), False, False),
        ((refuse,), False, False),
        ((refuse, welcome), True, True),
    ],
)
def test_who_is_awaited(acts: tuple[Act, ...], is_awaited: bool, is_connected: bool) -> None:
    liveness = after(*acts)
    assert liveness.is_awaited(PEER, 10.0) is is_awaited
    assert liveness.is_connected(PEER) is is_connected


def test_a_broken_connection_is_drained_for_its_time_and_no_longer() -> None:
    liveness = after(welcome, break_off)
    liveness.disconnected(PEER, 11.5)  # told again: counts from the first time
    assert liveness.is_awaited(PEER, 11.9)
    assert not liveness.is_awaited(PEER, 12.0)
    assert liveness.take_changes() == [Change(PEER, "dead", "connection lost")]


def test_when_to_look_again() -> None:
    liveness = after(welcome)
    assert liveness.recheck_s(10.0) == math.inf
    liveness.welcomed(8)
    liveness.disconnected(8, 9.0)
    break_off(liveness)
    assert liveness.recheck_s(10.5) == 0.5  # peer 8 is due at 11
    assert not liveness.is_awaited(8, 11.0)
    assert liveness.recheck_s(11.0) == 1.0  # peer 7 at 12
    assert liveness.recheck_s(99.0) == 0.0
    drain(liveness)
    assert liveness.recheck_s(99.0) == math.inf


def test_changes_are_told_once() -> None:
    liveness = after(welcome, leave)
    assert len(liveness.take_changes()) == 1
    assert liveness.take_changes() == []


def test_peers_do_not_touch_each_other() -> None:
    liveness = after(welcome, break_off, drain)
    assert liveness.state(8) == "connecting"
    assert liveness.is_awaited(8, 1000.0)


def test_a_patience_of_1_gives_up_at_the_first_deadline() -> None:
    liveness = Liveness(DRAIN_S, patience=1)
    welcome(liveness)
    miss(liveness)
    assert [change.state for change in liveness.take_changes()] == ["stuck"]
    assert not liveness.is_awaited(PEER, 10.0)


def test_who_floods_is_not_waited_for_until_it_has_stopped_for_a_while() -> None:
    liveness = after(welcome, lambda each: each.flooded(PEER, 100.0), deliver)
    assert not liveness.is_awaited(PEER, 100.0 + FLOOD_S - 0.1)
    assert liveness.is_awaited(PEER, 100.0 + FLOOD_S)
    assert liveness.is_awaited(8, 100.0) and liveness.is_connected(PEER)
    assert liveness.take_changes() == []
