"""The clocks of `benchmarks.on_paper` against the simulator's own, and against closed forms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.costs import PEERS, solved
from benchmarks.on_paper import Conditions, Costs, Floats, round_ends, round_s
from p2p_dml import links
from p2p_dml.errors import ExitCode
from p2p_dml.exchange import Exchange
from p2p_dml.pace import VirtualClock
from p2p_dml.simulate import Rounds, lockstep
from p2p_dml.types import LinkSchedule, Mail, PeerId, Sent, Tag

LINKS: dict[str, str | dict[str, object]] = {
    "ring": "ring",
    "star": "star",
    "redrawn": {"kind": "k_regular", "degree": 3},
    "one way": "exponential",
    "at times": {"kind": "every", "of": "ring", "interval": 2},
}
N, ROUNDS = 12, 9
SEND_S, RECEIVE_S, LATENCY_S = 0.002, 0.003, 0.25


def schedule_of(table: str | dict[str, object], num_peers: int = N) -> LinkSchedule:
    return links.build(table, num_peers, 3, Path())


def work_s(tick: int) -> Floats:
    """As uneven as can be, in whole milliseconds."""
    drawn = np.random.Philox(key=[5, tick]).random_raw(N)
    seconds: Floats = (drawn % np.uint64(1000)).astype(np.float64) / 1000
    return seconds


class Peer:
    """Works, sends, waits and takes in, by a virtual clock; its own loop and transport at once."""

    elastic = True

    def __init__(self, me: PeerId, schedule: LinkSchedule, clock: VirtualClock) -> None:
        self.me = me
        self.clock = clock
        self.ends: list[float] = []
        self._schedule = schedule

    def run(self) -> Rounds:
        for tick in range(ROUNDS):
            graph = self._schedule(tick)
            receivers, senders = graph.receivers_of(self.me), graph.senders_of(self.me)
            self.clock.sleep(float(work_s(tick)[self.me]) + len(receivers) * SEND_S)
            tag = Tag(tick + 1)
            yield Exchange(tag, {}, receivers, tag, senders, frozenset())
            self.clock.sleep(len(senders) * RECEIVE_S)
            self.ends.append(self.clock.now())
            yield None
        return ExitCode.DONE

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        raise NotImplementedError

    def post(self, tag: Tag, sent: Sent) -> int:
        return 0

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        return Mail({})

    def close(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("name", LINKS)
def test_clocks_are_those_of_the_simulator(name: str) -> None:
    """Its messages take no time: so here. (Latency: the closed forms below.)"""
    schedule = schedule_of(LINKS[name])
    clocks = [VirtualClock() for _ in range(N)]
    peers = [Peer(me, schedule, clock) for me, clock in enumerate(clocks)]
    assert set(lockstep(peers, peers, clocks)) == {ExitCode.DONE}
    found = round_ends(schedule, ROUNDS, work_s, SEND_S, 0.0, RECEIVE_S)
    expected = np.array([peer.ends for peer in peers]).T
    assert np.abs(found - expected).max() < 1e-6


def test_equal_peers_wait_for_a_message_on_its_way() -> None:
    ends = round_ends(schedule_of("ring"), 4, lambda tick: np.full(N, 1.0), 0.1, LATENCY_S, 0.01)
    each = 1.0 + 2 * 0.1 + LATENCY_S + 2 * 0.01
    assert ends == pytest.approx(np.outer(each * np.arange(1, 5), np.ones(N)))


def test_what_one_peer_loses_reaches_others_a_link_a_round() -> None:
    """Peer 0 of a ring works 1 s, the others not at all, in round 1 alone."""

    def late(tick: int) -> Floats:
        return np.where(np.arange(N) == 0, float(tick == 0), 0.0)

    ends = round_ends(schedule_of("ring"), 7, late, 0.0, 0.0, 0.0)
    far = np.minimum(np.arange(N), N - np.arange(N))
    for tick, row in enumerate(ends):
        assert row == pytest.approx((far <= tick + 1).astype(float))


def test_who_hears_nobody_waits_for_nobody() -> None:
    ends = round_ends(schedule_of("ring", 1), 3, lambda tick: np.ones(1), 0.1, LATENCY_S, 0.1)
    assert ends.ravel() == pytest.approx([1.0, 2.0, 3.0])


COSTS = Costs(round_s=0.002, message_s=0.0003, byte_s=2e-9, step_s=0.001)


def test_without_jitter_a_round_is_its_parts() -> None:
    conditions = Conditions(latency_s=0.02, mbps=50.0, jitter=0.0)
    found = round_s(schedule_of("ring", 40), 5, COSTS, conditions, 10_000, steps=3)
    upload_s = 10_000 * 8 / 50e6
    message_s = 0.0003 + 2e-5
    assert found == pytest.approx(0.002 + 0.003 + 2 * (message_s + upload_s) + 0.02 + 2 * message_s)
    assert found == pytest.approx(COSTS.round_of(2, 10_000, 3) + 2 * upload_s + 0.02)


def test_jitter_costs_more_the_more_are_waited_for() -> None:
    conditions = Conditions(jitter=1.0)
    few, many = (
        round_s(schedule_of(kind, 60), 20, COSTS, conditions, 0, steps=10)
        for kind in ("ring", "complete")
    )
    waits = [few - COSTS.round_of(2, 0, 10) - 0.01, many - COSTS.round_of(59, 0, 10) - 0.01]
    alone = COSTS.round_s + 10 * COSTS.step_s
    assert 0.5 * alone < waits[0] < waits[1]


def test_jitter_is_exponential_of_the_mean_it_says() -> None:
    """Peers that hear nobody are late by its mean: within five standard deviations."""
    conditions = Conditions(jitter=0.5)
    empty = schedule_of({"kind": "edges", "edges": []}, 1)
    found = round_s(empty, 4000, COSTS, conditions, 0, steps=0)
    assert found == pytest.approx(COSTS.round_s * 1.5, rel=5 * 0.5 / 1.5 / 4000**0.5)


@pytest.mark.parametrize("steps", [0, 2])
def test_costs_are_found_from_the_rounds_they_make(steps: int) -> None:
    ring, complete, large = (
        1e3 * COSTS.round_of(neighbours, num_bytes)
        for neighbours, num_bytes in ((2, 31_400), (PEERS - 1, 31_400), (2, 1_600_000))
    )
    found = solved(ring, complete, large, 31_400, 1_600_000, COSTS.step_s)
    assert found.round_of(4, 500, steps) == pytest.approx(COSTS.round_of(4, 500, steps))
    assert found.byte_s == pytest.approx(COSTS.byte_s)
