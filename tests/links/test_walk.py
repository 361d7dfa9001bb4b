"""A walk: which tick an exchange is, and words that all peers share."""

from __future__ import annotations

from collections import Counter

import pytest

from p2p_dml.kernels.mixing import metropolis
from p2p_dml.links.random import ErdosRenyi
from p2p_dml.links.static import OnePeerExponential
from p2p_dml.links.walk import Walk
from p2p_dml.types import Links, Tag

SCHEDULE = ErdosRenyi(num_peers=12, density=0.4, seed=3)


def walk(me: int = 2, seed: int = 9, exchanges: int = 1) -> Walk:
    return Walk(SCHEDULE, metropolis, me, seed, exchanges)


def test_a_walk_is_what_strategies_call_links() -> None:
    links: Links = walk()
    assert links.now == metropolis(SCHEDULE(0), 2)


@pytest.mark.parametrize("exchanges", [1, 2, 5])
def test_every_exchange_has_a_tick_of_its_own(exchanges: int) -> None:
    mine = walk(exchanges=exchanges)
    ticks = []
    for round_ in range(1, 5):
        for exchange in range(exchanges):
            mine.seek(Tag(round_, exchange))
            ticks.append(mine.tick)
            assert mine.now == metropolis(SCHEDULE(mine.tick), 2)
            assert mine.graph == SCHEDULE(mine.tick)
    assert ticks == list(range(4 * exchanges))


def test_advance_goes_through_rounds_and_exchanges_in_order() -> None:
    mine = walk(exchanges=2)
    tags = []
    for tick in range(5):
        tags.append(mine.tag)
        assert mine.now == metropolis(SCHEDULE(tick), 2)
        mine.advance()
    assert tags == [Tag(1, 0), Tag(1, 1), Tag(2, 0), Tag(2, 1), Tag(3, 0)]


def test_a_strategy_that_never_talks_still_has_a_tick_per_round() -> None:
    mine = walk(exchanges=0)
    mine.seek(Tag(7))
    assert mine.tick == 6


def test_seek_forgets_the_past() -> None:
    there, back = walk(), walk()
    there.seek(Tag(100))
    assert there.now != back.now or there.graph != back.graph
    there.seek(Tag(1))
    assert there.now == back.now


def test_other_exchanges_can_be_looked_at_from_afar() -> None:
    mine = walk(exchanges=3)
    assert mine.at(Tag(2, 1)) == metropolis(SCHEDULE(4), 2)
    assert mine.tag == Tag(1, 0) and mine.now == metropolis(SCHEDULE(0), 2)


def test_shared_bits_are_equal_at_all_peers_and_new_in_every_exchange() -> None:
    def words(me: int, round_: int, stream: int, seed: int = 9) -> tuple[int, ...]:
        mine = walk(me=me, seed=seed)
        mine.seek(Tag(round_))
        return tuple(mine.shared_bits(stream, 5))

    assert {words(me, 4, 1) for me in range(12)} == {words(0, 4, 1)}
    places = [(r, s, seed) for r in range(1, 5) for s in range(4) for seed in range(3)]
    assert len({words(0, *place) for place in places}) == len(places)


def test_shared_bits_do_not_depend_on_the_schedule_and_extend() -> None:
    other = Walk(OnePeerExponential(num_peers=4), metropolis, 0, 9)
    assert list(other.shared_bits(0, 3)) == list(walk().shared_bits(0, 8))[:3]
    assert len(walk().shared_bits(0, 0)) == 0


def test_shared_bits_are_fair_64_bit_words() -> None:
    words = walk().shared_bits(0, 2000)
    assert all(0 <= word < 2**64 for word in words)
    ones = Counter(bit for word in words for bit in range(64) if word >> bit & 1)
    # Five standard deviations of a fair coin: 5 sqrt(2000) / 2 = 112.
    assert all(abs(ones[bit] - 1000) < 112 for bit in range(64))


def test_a_rule_that_does_not_fit_the_graph_says_so() -> None:
    mine = Walk(OnePeerExponential(num_peers=4), metropolis, 0, 9)
    with pytest.raises(ValueError, match="metropolis needs symmetric links"):
        _ = mine.now


@pytest.mark.parametrize(
    ("me", "seed", "exchanges", "message"),
    [
        (12, 0, 1, "peer 12 is out of range for 12 peers"),
        (-1, 0, 1, "peer -1 is out of range"),
        (0, -1, 1, r"seed must be in \[0, 2\^64\), got -1"),
        (0, 0, -1, "exchanges must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(me: int, seed: int, exchanges: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        walk(me, seed, exchanges)
