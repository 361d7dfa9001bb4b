"""Stragglers, pauses and virtual clocks."""

from __future__ import annotations

import pytest

from p2p_dml.pace import Asynchronous, Slowness, VirtualClock, draw_stragglers


@pytest.mark.parametrize(
    ("factor", "round_s", "worked_s", "pause_s"),
    [
        (1.0, 0.0, 0.3, 0.0),
        (1.0, 0.5, 0.3, 0.2),
        (1.0, 0.5, 0.7, 0.0),
        (5.0, 0.0, 0.3, 1.2),
        (5.0, 0.5, 0.3, 2.2),
        (5.0, 0.5, 0.7, 2.8),
    ],
)
def test_local_work_lasts_factor_times_its_own_or_the_least(
    factor: float, round_s: float, worked_s: float, pause_s: float
) -> None:
    slowness = Slowness(factor=factor, round_s=round_s)
    assert slowness.pause_s(worked_s) == pytest.approx(pause_s)


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.25, 4), (0.3, 5), (1.0, 16)])
def test_the_share_of_the_peers_is_slow(share: float, number: int) -> None:
    drawn = draw_stragglers(16, share, seed=3)
    assert len(drawn) == number
    assert drawn <= set(range(16))
    assert drawn == draw_stragglers(16, share, seed=3)


def test_every_peer_may_be_drawn() -> None:
    assert frozenset().union(*(draw_stragglers(8, 0.25, seed) for seed in range(40))) == set(
        range(8)
    )


def test_virtual_time_passes_by_sleep_alone_and_adds_up_exactly() -> None:
    one, two = VirtualClock(), VirtualClock()
    assert one.now() == 0.0
    one.sleep(0.3)
    for _ in range(3):
        two.sleep(0.1)
    assert one.now() == two.now() == 0.3
    one.sleep(-1.0)
    assert one.now() == 0.3


def test_a_negative_age_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_age = -1: expected rounds, 0 or more"):
        Asynchronous(max_age=-1)
