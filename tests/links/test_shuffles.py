"""Permutations at a point: inverse to each other, the same one by one and in arrays, and fair."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_dml.links._graphs import words
from p2p_dml.links._shuffles import WORDS, backward, forward, pair_words, round_keys


def keys_of(seed: int, tick: int = 0) -> list[int]:
    keys: list[int] = round_keys(words(seed, tick, WORDS)).tolist()
    return keys


@given(st.integers(1, 400), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_every_number_goes_to_one_and_back(size: int, seed: int) -> None:
    keys = keys_of(seed)
    there = [forward(x, keys, size) for x in range(size)]
    assert sorted(there) == list(range(size))
    assert [backward(x, keys, size) for x in there] == list(range(size))


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_arrays_go_where_numbers_go(size: int, seed: int) -> None:
    keys, x = keys_of(seed), np.arange(0, size, 7, dtype=np.uint64)
    columns = [np.full(len(x), key, np.uint64) for key in keys]
    there = forward(x, columns, size)
    assert there.tolist() == [forward(i, keys, size) for i in x.tolist()]
    assert backward(there, columns, size).tolist() == x.tolist()


def test_what_is_drawn_is_the_same_for_ever() -> None:
    """Peers of other platforms and versions must find these numbers, too."""
    keys = keys_of(7, 3)
    assert [forward(x, keys, 1000) for x in (0, 1, 999)] == [748, 443, 615]
    assert pair_words(np.array([3]), np.array([99_999]), (5, 6)).tolist() == [15442035976361565384]


def chi_square(counts: Counter[tuple[int, int]], cells: int) -> float:
    """In standard deviations from what uniform draws give; cells not seen count as 0."""
    mean = counts.total() / cells
    seen = sum((count - mean) ** 2 for count in counts.values())
    statistic = (seen + (cells - len(counts)) * mean**2) / mean
    return float((statistic - (cells - 1)) / (2 * (cells - 1)) ** 0.5)


@pytest.mark.parametrize("size", [16, 27, 50])
def test_all_pairs_of_places_are_equally_likely(size: int) -> None:
    """Where two neighbours go, jointly: the second moment that matchings are made of."""
    seen: Counter[tuple[int, int]] = Counter()
    for tick in range(12_000):
        keys = keys_of(5, tick)
        seen[forward(4, keys, size), forward(5, keys, size)] += 1
    assert not any(a == b for a, b in seen)
    assert abs(chi_square(seen, size * (size - 1))) < 4


def test_words_of_pairs_are_fair_and_not_alike_next_to_each_other() -> None:
    low, high = np.triu_indices(400, 1)
    drawn = pair_words(low, high, (11, 12))
    assert len(np.unique(drawn)) == len(drawn)
    bound = 5 * len(drawn) ** 0.5 / 2
    for bit in range(64):
        ones = (drawn >> np.uint64(bit)) & np.uint64(1)
        assert abs(int(ones.sum()) - len(drawn) / 2) < bound
        alike = ones[1:] == ones[:-1]
        assert abs(int(alike.sum()) - len(drawn) / 2) < bound
