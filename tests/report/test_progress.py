"""What the events say of each peer, and in which state that leaves it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import pytest

from p2p_dml.events import (
    Checkpointed,
    Evaluated,
    Event,
    Finished,
    Joined,
    NeighbourChanged,
    Rejected,
    Resumed,
    RoundDone,
    Started,
    event_name,
)
from p2p_dml.report._progress import PeerProgress, Progress, State, most_interesting


def line(peer: int, t: float, event: Event) -> dict[str, Any]:
    return {"event": event_name(type(event)), "t": t, "peer": peer} | asdict(event)


STARTED = Started(pid=1, incarnation=0, endpoint="", parameters=1, samples=1, class_counts=[])
JOINED = Joined(after_s=1.0)


def done(before: int) -> RoundDone:
    return RoundDone(
        round=before + 1, loss=0.5, bytes_out=100, bytes_in=1, neighbours=3, missing=[2]
    )


def says(state: Literal["alive", "slow", "dead", "left"], why: str = "why") -> NeighbourChanged:
    return NeighbourChanged(neighbour=1, state=state, round=0, why=why)


def ended(code: int) -> Finished:
    return Finished(round=3, exit_code=code, error="NaN loss" if code else None)


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ([], "starting"),
        ([(1, STARTED)], "starting"),
        ([(1, STARTED), (1, JOINED)], "running"),
        ([(1, done(0))], "running"),
        ([(1, done(0)), (0, says("slow"))], "slow"),
        ([(1, done(0)), (0, says("slow")), (1, done(1))], "slow"),
        ([(1, done(0)), (0, says("slow")), (0, says("alive"))], "running"),
        ([(1, STARTED), (0, says("slow")), (0, says("alive"))], "starting"),
        ([(1, done(0)), (0, says("dead"))], "dead"),
        ([(1, done(0)), (0, says("dead")), (1, done(1))], "running"),
        ([(1, done(0)), (0, says("dead")), (1, STARTED)], "starting"),
        ([(1, done(0)), (0, says("left"))], "left"),
        ([(1, ended(0)), (0, says("dead"))], "done"),
        ([(0, says("left")), (1, ended(0))], "done"),
        ([(1, ended(5))], "stopped"),
        ([(1, ended(1))], "failed"),
    ],
)
def test_state_of_peer_1(told: list[tuple[int, Event]], state: State) -> None:
    progress = Progress(3)
    for t, (peer, event) in enumerate(told):
        progress.take(line(peer, t, event))
    assert progress.peers[1].state == state


def test_an_old_report_of_death_does_not_outweigh_a_newer_event_of_the_peer() -> None:
    progress = Progress(2)
    progress.take(line(1, 5.0, done(0)))
    assert progress.take(line(0, 4.0, says("dead"))) is None
    assert progress.peers[1].state == "running"


def test_figures_of_a_peer() -> None:
    progress = Progress(2)
    for round in range(3):
        progress.take(line(1, 10.0 + 0.5 * round, done(round)))
    progress.take(line(1, 12.0, Evaluated(2, 0.9, 0.1, 0.1, "")))
    progress.take(line(1, 13.0, Evaluated(3, None, 0.1, 0.1, "")))
    peer = progress.peers[1]
    assert (peer.rounds_done, peer.loss, peer.accuracy, peer.bytes_out) == (3, 0.5, 0.9, 300)
    assert (peer.heard, peer.expected, peer.rate) == (2, 3, 2.0)
    assert PeerProgress(peer=0).rate is None


def test_each_thing_is_said_once() -> None:
    progress = Progress(3)
    rejected = Rejected(sender=1, round=0, why="bad shape")
    unknown = Rejected(sender=None, round=0, why="bad magic")
    told: list[tuple[int, Event]] = [
        (0, says("dead")),
        (2, says("dead", "heartbeat")),
        (1, STARTED),
        (0, rejected),
        (2, rejected),
        (0, unknown),
        (1, ended(1)),
        (2, ended(0)),
    ]
    said = [progress.take(line(peer, float(t), event)) for t, (peer, event) in enumerate(told)]
    assert said == [
        "peer 0 says that peer 1 is dead: why",
        None,
        "peer 1 came back",
        "peer 0 rejected a message of peer 1: bad shape",
        None,
        "peer 0 rejected a message of unknown sender: bad magic",
        "peer 1 failed in round 3: NaN loss (exit 1)",
        None,
    ]


def test_a_resumed_run_goes_on_where_its_checkpoint_is_and_says_nothing_of_before() -> None:
    progress = Progress(3, since=100.0)
    before: list[Event] = [
        STARTED,
        JOINED,
        done(0),
        Checkpointed(1, "x"),
        done(1),
        done(2),
        ended(1),
    ]
    now: list[Event] = [STARTED, Resumed(1), JOINED, done(1), done(2)]
    for t, event in enumerate(before):
        assert progress.take(line(1, float(t), event)) is None
    for t, event in enumerate(now):
        assert progress.take(line(1, 100.0 + t, event)) is None
    peer = progress.peers[1]
    assert (peer.state, peer.rounds_done, peer.resumed_at) == ("running", 3, 1)
    assert (peer.bytes_out, peer.rate, peer.joined) == (300, 1.0, 102.0)
    assert progress.take(line(1, 110.0, STARTED)) == "peer 1 came back"


def test_who_remains() -> None:
    states: list[State] = [
        "starting", "running", "slow", "dead", "left", "done", "stopped", "failed"
    ]  # fmt: skip
    progress = Progress(len(states))
    for peer, state in zip(progress.peers, states, strict=True):
        peer.state = state
    assert [peer.peer for peer in progress.remaining] == [0, 1, 2, 5, 6]
    assert [peer.peer for peer in progress.peers if peer.is_running] == [0, 1, 2]


def test_the_failed_then_the_slow_then_the_hindmost_are_interesting() -> None:
    states: list[tuple[State, int]] = [
        ("done", 9), ("running", 4), ("running", 2), ("slow", 5), ("running", 3), ("dead", 1)
    ]  # fmt: skip
    peers = [PeerProgress(peer=i, state=s, rounds_done=r) for i, (s, r) in enumerate(states)]
    assert [p.peer for p in most_interesting(peers, 1)] == [5]
    assert [p.peer for p in most_interesting(peers, 3)] == [2, 3, 5]
    assert [p.peer for p in most_interesting(peers, 5)] == [1, 2, 3, 4, 5]
