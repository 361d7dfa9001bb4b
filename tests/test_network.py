"""What the emulated network loses, and when the rest arrives: by hand, and alike at both ends."""

from __future__ import annotations

import pytest

from p2p_dml.network import Conditions, Line, Network
from p2p_dml.types import Graph, Tag

TAGS = [Tag(round_, exchange) for round_ in range(1, 501) for exchange in range(2)]


def network(**conditions: float) -> Network:
    return Network(seed=7, exchanges=2, usual=Conditions(**conditions))


@pytest.mark.parametrize(("loss", "least", "most"), [(0.0, 0, 0), (1.0, 1, 1), (0.3, 0.25, 0.35)])
def test_the_share_of_messages_that_is_lost(loss: float, least: float, most: float) -> None:
    lost = [network(loss=loss).is_lost(tag, 0, 1) for tag in TAGS]
    assert least <= sum(lost) / len(TAGS) <= most


def test_losses_follow_from_seed_exchange_and_link_alone() -> None:
    ours, theirs = network(loss=0.5), network(loss=0.5)
    other_seed = Network(seed=8, exchanges=2, usual=Conditions(loss=0.5))
    drawn = [ours.is_lost(tag, 0, 1) for tag in TAGS]
    assert drawn == [theirs.is_lost(tag, 0, 1) for tag in reversed(TAGS)][::-1]
    for different in (
        [ours.is_lost(tag, 1, 0) for tag in TAGS],
        [ours.is_lost(tag, 0, 2) for tag in TAGS],
        [other_seed.is_lost(tag, 0, 1) for tag in TAGS],
    ):
        # Independent draws agree half of the time: 500 of 1,000, give or take 6 x 16.
        assert abs(sum(a == b for a, b in zip(drawn, different, strict=True)) - 500) < 96


def test_what_is_sent_over_links_that_are_down_is_lost() -> None:
    def up(tick: int) -> Graph:  # peer 1 hears peer 0 at even ticks only; peer 0 hears nobody
        return Graph(((), (0,) if tick % 2 == 0 else ()))

    net = Network(seed=0, exchanges=2, up=up)
    assert [net.is_lost(Tag(3, exchange), 0, 1) for exchange in range(2)] == [False, True]
    assert net.is_lost(Tag(3, 0), 1, 0)


def test_special_links_and_uplinks() -> None:
    net = Network(
        seed=0,
        exchanges=1,
        usual=Conditions(delay_s=1.0),
        special={(0, 2): Conditions(delay_s=3.0, loss=1.0)},
        uplinks_mbps={1: 8.0},
    )
    assert [net.delay_s(Tag(1), *ends) for ends in ((0, 1), (0, 2), (2, 0))] == [1.0, 3.0, 1.0]
    assert [net.is_lost(Tag(1), *ends) for ends in ((0, 1), (0, 2))] == [False, True]
    assert [net.uplink_s(peer, 2_000_000) for peer in (0, 1)] == [0.0, 2.0]


@pytest.mark.parametrize(
    ("net", "takes_time"),
    [
        (network(loss=0.5), False),
        (network(delay_s=0.1), True),
        (network(jitter_s=0.1), True),
        (network(bandwidth_mbps=1.0), True),
        (Network(seed=0, exchanges=1, uplinks_mbps={0: 1.0}), True),
        (Network(seed=0, exchanges=1, special={(0, 1): Conditions(delay_s=0.1)}), True),
    ],
)
def test_what_takes_time(net: Network, takes_time: bool) -> None:
    assert net.takes_time is takes_time


def test_jitter_is_spread_over_its_range() -> None:
    delays = [network(delay_s=1.0, jitter_s=0.5).delay_s(tag, 0, 1) for tag in TAGS]
    assert 1.0 <= min(delays) < 1.01 and 1.49 < max(delays) < 1.5
    assert sum(delays) / len(delays) == pytest.approx(1.25, abs=0.03)


def test_messages_of_a_link_go_one_after_another() -> None:
    """One megabyte takes a second at 8 Mbit/s; then it travels for half a second."""
    line = Line(network(bandwidth_mbps=8.0, delay_s=0.5), 0, 1)
    arrivals = [
        line.arrival(Tag(r), departed, 10**6) for r, departed in ((1, 0), (2, 0.25), (3, 9))
    ]
    assert arrivals == [1.5, 2.5, 10.5]
    assert (line.is_busy(9.9), line.is_busy(10.0)) == (True, False)


def test_no_message_overtakes_another() -> None:
    line = Line(network(jitter_s=1.0), 0, 1)
    arrivals = [line.arrival(tag, 0.001 * place, 8) for place, tag in enumerate(TAGS)]
    assert arrivals == sorted(arrivals)
