"""Permutations that can be asked where one number goes, or comes from, without the others.

Whole numbers alone, 32 bits wide, so every platform finds the same; numbers and arrays go through
the same lines. `keys` are those of `round_keys`; arrays take arrays of them, one per number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from p2p_dml.links._graphs import Ints, Words

Number = TypeVar("Number", int, NDArray[Any])

WORDS = 4
"""64-bit words that the keys of one permutation are made of."""

_MASK = 0xFFFF_FFFF


def round_keys(drawn: Words) -> Words:
    """Keys [2 WORDS, …] of as many permutations as `drawn` [WORDS, …] has columns."""
    return np.concatenate([drawn >> np.uint64(32), drawn & np.uint64(_MASK)])


def forward(x: Number, keys: Sequence[Number], size: int) -> Number:
    """Where each x in [0, size) goes.

    A Feistel network over a x b >= size numbers, walked on until it is back below size. Source:
    Black and Rogaway 2002, "Ciphers with arbitrary finite domains", sections 3 and 4.
    """
    a, b = _sides(size)

    def step(x: Number, keys: Sequence[Number]) -> Number:
        left, right = x // b, x % b
        for even, odd in zip(keys[0::2], keys[1::2], strict=True):
            left = (left + _mixed(right ^ even)) % a
            right = (right + _mixed(left ^ odd)) % b
        stepped: Number = left * b + right
        return stepped

    return _walked(step, x, keys, size)


def backward(x: Number, keys: Sequence[Number], size: int) -> Number:
    """Where each x in [0, size) comes from: the inverse of `forward`."""
    a, b = _sides(size)

    def step(x: Number, keys: Sequence[Number]) -> Number:
        left, right = x // b, x % b
        for even, odd in zip(keys[-2::-2], keys[::-2], strict=True):
            right = (right + b - _mixed(left ^ odd) % b) % b
            left = (left + a - _mixed(right ^ even) % a) % a
        stepped: Number = left * b + right
        return stepped

    return _walked(step, x, keys, size)


def _walked(
    step: Callable[[Number, Sequence[Number]], Number],
    x: Number,
    keys: Sequence[Number],
    size: int,
) -> Number:
    found = step(x, keys)
    if isinstance(found, int):
        while found >= size:
            found = step(found, keys)
        return found
    while len(outside := np.flatnonzero(found >= size)):
        found[outside] = step(found[outside], [key[outside] for key in keys])
    return found


def _mixed(x: Number) -> Number:
    """Stir 32 bits. Source: Wellons 2018, "Prospecting for hash functions", lowbias32."""
    x = ((x ^ x >> 16) * 0x7FEB352D) & _MASK
    x = ((x ^ x >> 15) * 0x846CA68B) & _MASK
    stirred: Number = x ^ x >> 16
    return stirred


def _sides(size: int) -> tuple[int, int]:
    """The a and b of `size`: about its root, since of uneven sides not all orders are as likely."""
    a = isqrt(size)
    return a, -(-size // a)


def pair_words(low: Ints, high: Ints, keys: tuple[int, int]) -> Words:
    """A word of 64 bits that looks drawn for each pair of numbers below 2^32.

    `keys` are two drawn words. Source of the mixing: Steele et al. 2014, SplitMix64.
    """
    first, second = (np.uint64(key) for key in keys)
    pairs = (low << 32 | high).astype(np.uint64)
    return _stirred(_stirred(pairs ^ first) ^ second)


def _stirred(x: Words) -> Words:
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    stirred: Words = x ^ x >> np.uint64(31)
    return stirred
