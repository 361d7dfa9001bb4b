"""The entropy code of masks: lossless, as short as the entropy allows, and hard to fool."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from p2p_dml.kernels.entropy import code_bytes, decode, encode, entropy_bytes
from p2p_dml.kernels.masks import ones, pack, top_share

ALEXNET = (4800, 204_800, 819_200, 196_608, 1920)
"""Weights of the five layers of the network of Tian et al. 2025 that can be masked."""

layers = st.lists(st.tuples(st.integers(0, 70), st.floats(0, 1)), max_size=5)


def drawn(seed: int, numels: Sequence[int], shares: Sequence[float]) -> Tensor:
    """Packed masks whose bits are ones with the probability of their layer."""
    each = []
    for i, (numel, share) in enumerate(zip(numels, shares, strict=True)):
        words = np.random.Philox(key=[seed, i]).random_raw(numel) >> 11
        each.append(torch.from_numpy(words * 2.0**-53 < share))
    return pack(each)


def topped(seed: int, numels: Sequence[int], shares: Sequence[float]) -> Tensor:
    """Packed masks with exactly these shares of ones."""
    each = []
    for i, (numel, share) in enumerate(zip(numels, shares, strict=True)):
        words = np.random.Philox(key=[seed, i]).random_raw(numel) >> 11
        each.append(top_share(torch.from_numpy(words.astype(np.float64)), share))
    return pack(each)


@given(layers=layers, seed=st.integers(0, 99))
def test_what_is_coded_is_decoded(layers: list[tuple[int, float]], seed: int) -> None:
    numels = [numel for numel, _ in layers]
    bits = drawn(seed, numels, [share for _, share in layers])
    code = encode(bits, numels)
    assert code.dtype == torch.uint8
    assert decode(code, numels).equal(bits)


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("numels", [ALEXNET, tuple(n + 1 for n in ALEXNET)])
def test_codes_are_as_short_as_the_entropy_allows(keep: float, numels: Sequence[int]) -> None:
    shares = (keep, keep, keep, 0.9, 0.9)
    bits = topped(1, numels, shares)
    counts = ones(bits, numels)
    bound = entropy_bytes(counts, numels)
    code = encode(bits, numels)
    assert bound <= code.numel() <= 1.001 * bound
    assert abs(code.numel() - code_bytes(counts, numels)) <= 16
    assert decode(code, numels).equal(bits)


@pytest.mark.parametrize("num_ones", [1, 10, 1000])
def test_codes_of_rare_ones_are_short(num_ones: int) -> None:
    bits = topped(2, [819_200], [num_ones / 819_200])
    code = encode(bits, [819_200])
    assert code.numel() <= entropy_bytes([num_ones], [819_200]) + 20
    assert decode(code, [819_200]).equal(bits)


def test_layers_of_equal_bits_cost_their_count_alone() -> None:
    numels = (13, 0, 2000, 5)
    bits = drawn(0, numels, (1.0, 0.5, 0.0, 1.0))
    code = encode(bits, numels)
    assert code.view(torch.int32).tolist() == [13, 0, 0, 5]
    assert decode(code, numels).equal(bits)


@pytest.mark.parametrize(
    ("counts", "numels", "num_bytes"),
    [([4], [8], 1.0), ([0, 3], [5, 3], 0.0), ([2], [8], (16 - 6 * math.log2(3)) / 8), ([], [], 0)],
)
def test_entropy_by_hand(counts: list[int], numels: list[int], num_bytes: float) -> None:
    assert entropy_bytes(counts, numels) == pytest.approx(num_bytes)


def test_the_form_of_a_code_stays() -> None:
    """Counts first, then the coder's words: another form needs another version of the wire."""
    bits = pack([torch.tensor([True, False] * 4), torch.tensor([True] * 3)])
    code = encode(bits, [8, 3])
    assert code[:8].tolist() == [4, 0, 0, 0, 3, 0, 0, 0]
    assert code[8:].tolist() == [0, 0, 0b01010101, 0]  # of 2^24 parts each byte has 2^16


def refused_or_unique(code: Tensor, numels: Sequence[int]) -> None:
    """It is refused, or it is the one code of what it holds."""
    try:
        bits = decode(code, numels)
    except ValueError:
        return
    assert encode(bits, numels).equal(code)


@given(layers=layers, seed=st.integers(0, 99), place=st.integers(0, 99), flip=st.integers(1, 255))
def test_changed_codes_are_refused_or_codes_of_other_masks(
    layers: list[tuple[int, float]], seed: int, place: int, flip: int
) -> None:
    numels = [numel for numel, _ in layers]
    code = encode(drawn(seed, numels, [share for _, share in layers]), numels)
    if code.numel():
        code[place % code.numel()] ^= flip
        refused_or_unique(code, numels)


@given(layers=layers, seed=st.integers(0, 99), length=st.integers(0, 99))
def test_codes_cut_short_are_refused_or_codes_of_other_masks(
    layers: list[tuple[int, float]], seed: int, length: int
) -> None:
    numels = [numel for numel, _ in layers]
    code = encode(drawn(seed, numels, [share for _, share in layers]), numels)
    if length < code.numel():
        refused_or_unique(code[:length].clone(), numels)


@given(layers=layers, seed=st.integers(0, 99), more=st.binary(min_size=1, max_size=16))
def test_codes_with_more_behind_are_refused(
    layers: list[tuple[int, float]], seed: int, more: bytes
) -> None:
    numels = [numel for numel, _ in layers]
    code = encode(drawn(seed, numels, [share for _, share in layers]), numels)
    longer = torch.cat([code, torch.tensor(list(more), dtype=torch.uint8)])
    refused_or_unique(longer, numels)
    with pytest.raises(ValueError, match=r"ANS|4 k"):  # its last word is never 0
        decode(torch.cat([code, torch.zeros(4, dtype=torch.uint8)]), numels)


@given(layers=layers, code=st.binary(max_size=60))
def test_any_bytes_are_refused_or_a_code(layers: list[tuple[int, float]], code: bytes) -> None:
    refused_or_unique(torch.tensor(list(code), dtype=torch.uint8), [numel for numel, _ in layers])


@pytest.mark.parametrize(
    ("code", "numels", "why"),
    [
        (torch.zeros(4), [3], "uint8"),
        (torch.zeros((1, 4), dtype=torch.uint8), [3], "uint8"),
        (torch.zeros(3, dtype=torch.uint8), [3], "uint8"),
        (torch.zeros(0, dtype=torch.uint8), [3], "do not fit"),
        (torch.tensor([4, 0, 0, 0], dtype=torch.uint8), [3], "do not fit"),
        (torch.tensor([255, 255, 255, 255], dtype=torch.uint8), [3], "do not fit"),
        (torch.tensor([3, 0, 0, 0, 1, 0, 0, 0], dtype=torch.uint8), [3], "longer"),
        (torch.tensor([4, 0, 0, 0, 0, 0, 7, 0], dtype=torch.uint8), [8], "other numbers"),
        (torch.tensor([1, 0, 0, 0, 0, 0, 4, 0], dtype=torch.uint8), [2], "behind the end"),
    ],
)
def test_why_codes_are_refused(code: Tensor, numels: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(code, numels)


def test_masks_of_another_length_or_too_large_are_refused() -> None:
    with pytest.raises(ValueError, match="9 values"):
        encode(torch.zeros(1, dtype=torch.uint8), [4, 5])
    with pytest.raises(ValueError, match=r"2\^32"):
        decode(torch.zeros(4, dtype=torch.uint8), [2**32])
