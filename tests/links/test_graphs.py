"""The building blocks of schedules: shared words and arrays made into graphs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_dml.links import _graphs

MASK = 2**64 - 1
LINKS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)))


def philox(key: tuple[int, int], block: int, stream: int) -> list[int]:
    """One block of Philox4x64-10, from Salmon et al. 2011, section 3.3."""
    k0, k1 = key
    c0, c1, c2, c3 = block, stream, 0, 0
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 1, MASK])
@pytest.mark.parametrize(("tick", "stream"), [(0, 0), (7, 3), (10**9, _graphs.PART_STREAM + 2)])
def test_words_are_philox_blocks(seed: int, tick: int, stream: int) -> None:
    # numpy counts before it draws, so the first block is number 1.
    expected = philox((seed, tick), 1, stream) + philox((seed, tick), 2, stream)
    assert _graphs.words(seed, tick, 6, stream).tolist() == expected[:6]


def test_words_of_different_places_differ() -> None:
    places = [(s, t, c) for s in range(4) for t in range(4) for c in range(4)]
    drawn = {tuple(_graphs.words(s, t, 4, c).tolist()) for s, t, c in places}
    assert len(drawn) == len(places)


def test_part_seeds_differ_from_each_other_and_from_the_whole() -> None:
    seeds = {_graphs.part_seed(seed, index) for seed in range(20) for index in range(20)}
    assert len(seeds | set(range(20))) == 420


def test_happens_is_exact_at_the_ends() -> None:
    drawn = np.array([0, 2**63, MASK], dtype=np.uint64)
    assert _graphs.happens(drawn, 1.0).all()
    assert not _graphs.happens(drawn, 0.0).any()
    assert _graphs.happens(drawn, 0.5).tolist() == [True, False, False]


@given(st.integers(0, 2**32), st.integers(1, 50))
@settings(deadline=None)
def test_shuffled_is_a_permutation(seed: int, count: int) -> None:
    assert sorted(_graphs.shuffled(_graphs.words(seed, 0, count))) == list(range(count))


@given(LINKS)
@settings(deadline=None)
def test_one_way_holds_each_link_once_and_no_loop(links: list[tuple[int, int]]) -> None:
    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = _graphs.one_way(7, ends[:, 0], ends[:, 1])
    expected = [tuple(sorted({j for i, j in links if i == me != j})) for me in range(7)]
    assert graph.senders == tuple(expected)
    assert _graphs.one_way(7, *_graphs.links_of(graph)) == graph


@given(LINKS)
@settings(deadline=None)
def test_two_way_is_symmetric_and_complement_fills_it_up(links: list[tuple[int, int]]) -> None:
    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = _graphs.two_way(7, ends[:, 0], ends[:, 1])
    other = _graphs.complement(graph)
    assert graph.is_symmetric and other.is_symmetric
    whole = zip(graph.senders, other.senders, strict=True)
    assert tuple(tuple(sorted(a + b)) for a, b in whole) == _graphs.complete(7).senders
