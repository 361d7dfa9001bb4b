"""Binary masks: which values are the largest, masks as bits, and how many masks have each bit.

A packed mask holds 8 values a byte, the first in the lowest bit; the masks of several tensors
follow each other without gaps, and the unused bits of the last byte are 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_MASKS = 255
"""How many masks `count` counts at a time: what a byte holds."""

_BLOCK_BYTES = {"cpu": 1 << 18}
"""Bytes of each mask counted at a time, so that all planes stay in cache; elsewhere all at once."""

_PARTITIONED = 1 << 16
"""Up to so many values partitioning is faster than counting digits."""

_UP, _DOWN = np.arange(1 << 16), np.arange(1 << 16)[::-1]
_SIGNED = np.concatenate([_DOWN[1 << 15 :], _UP[1 << 15 :]])
"""The first 16 bits of floats, from the largest float to the smallest: sign and magnitude."""

_TO_ONE_BYTE = sum(1 << (56 - 7 * place) for place in range(8))
"""8 bytes, 0 or 1, times this have their bits in the highest byte, the first in the lowest bit."""


def num_kept(numel: int, share: float) -> int:
    """How many of `numel` values `top_share` keeps; at least 1 if `share` > 0 and there are any.

    Raises ValueError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: expected at least 0 and at most 1")
    return min(numel, max(round(share * numel), int(share > 0)))


def top_share(x: Tensor, share: float) -> Tensor:
    """Mask of the `num_kept` largest values of x, a bool tensor of its shape.

    Of equal values the first in memory order of a contiguous x are kept, so that every machine
    finds the same mask. Raises FloatingPointError if x holds NaN and ValueError as `num_kept`.
    """
    kept = num_kept(x.numel(), share)
    flat = x.detach().reshape(-1)
    if kept == 0:
        return torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    if bool(flat.max().isnan()):
        raise FloatingPointError("the values that a mask chooses from are not all numbers")
    mask = _selected(flat, kept) if flat.device.type == "cpu" else _sorted_out(flat, kept)
    return mask.view(x.shape)


def _sorted_out(flat: Tensor, kept: int) -> Tensor:
    """The mask of `top_share` by one sort, which is what a GPU is fast at."""
    first = flat.argsort(descending=True, stable=True)[:kept]
    return torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, first, True)


def _selected(flat: Tensor, kept: int) -> Tensor:
    """The mask of `top_share` by its least kept value, without sorting the others."""
    exact = flat.float() if flat.dtype.itemsize < 4 else flat  # numpy has no bfloat16
    least = torch.from_numpy(_kth_largest(exact.numpy(), kept))[0].to(flat.dtype)
    mask = flat >= least
    surplus = np.count_nonzero(mask.numpy()) - kept
    if surplus:
        equal = (flat == least).numpy()
        end = _place(equal, np.count_nonzero(equal) - surplus) + 1
        torch.gt(flat[end:], least, out=mask[end:])
    return mask


def _place(flags: NDArray[np.bool_], number: int) -> int:
    """Where the `number`-th of the flags stands that are set, from 1."""
    begin, end = 0, flags.size
    while end - begin > 1:
        middle = (begin + end) // 2
        before = np.count_nonzero(flags[begin:middle])
        if before < number:
            begin, number = middle, number - before
        else:
            end = middle
    return begin


def _kth_largest(values: NDArray[np.floating[Any]], k: int) -> NDArray[np.floating[Any]]:
    """The k-th largest of float32 or float64 values, in an array of its own.

    Digits of 16 bits are counted, the first of all values, the next of those that remain, until
    these are equal: unlike partitioning, that takes no longer where many values are.
    """
    if values.size <= _PARTITIONED:
        return np.partition(values, values.size - k)[values.size - k, None]
    words, order = values.view(f"u{values.itemsize}"), _SIGNED
    for shift in range(8 * values.itemsize - 16, -16, -16):
        digits = (words >> shift).astype(np.uint16)
        counts = np.bincount(digits, minlength=1 << 16)
        ends = counts[order].cumsum()
        place = int(ends.searchsorted(k))
        digit = order[place]
        remain = digits == digit
        word = words[remain.argmax()]
        if np.count_nonzero(words == word) == counts[digit]:
            break
        words, k = words[remain], k - int(ends[place] - counts[digit])
        if order is _SIGNED:
            order = _UP if digit >> 15 else _DOWN
    found: NDArray[np.floating[Any]] = word[None].view(values.dtype)
    return found


def packed_bytes(numel: int) -> int:
    """Size of a packed mask of `numel` values."""
    return -(-numel // 8)


def pack(masks: Sequence[Tensor]) -> Tensor:
    """Pack bool masks of any shapes one after the other; returns uint8 [packed_bytes]."""
    flat = [mask.reshape(-1) for mask in masks]
    if all(mask.is_cpu for mask in flat):
        joined = flat[0] if len(flat) == 1 else torch.cat([*flat, torch.zeros(0).bool()])
        return torch.from_numpy(np.packbits(joined.numpy(), bitorder="little"))
    return _packed_words(flat)


def _packed_words(flat: Sequence[Tensor]) -> Tensor:
    """`pack` on any device, 8 values at a time."""
    padding = flat[0].new_zeros(-sum(mask.numel() for mask in flat) % 8)
    words = torch.cat([*flat, padding]).view(torch.int64)
    return (words.mul(_TO_ONE_BYTE).bitwise_right_shift_(56) & 0xFF).to(torch.uint8)


def unpack(bits: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The bool masks of these shapes that `bits` holds; they share memory.

    Raises ValueError if the shapes need another number of bytes.
    """
    numels = [math.prod(shape) for shape in shapes]
    _check_length(bits, sum(numels))
    flat = _spread(bits)[: sum(numels)].view(torch.bool)
    each = zip(torch.split(flat, numels), shapes, strict=True)
    return [mask.view(tuple(shape)) for mask, shape in each]


def ones(bits: Tensor, numels: Sequence[int]) -> list[int]:
    """How many bits are set in each of the masks of `numels` values that `bits` holds.

    Raises ValueError if `numels` need another number of bytes.
    """
    _check_length(bits, sum(numels))
    per_byte = _ones_per_byte(bits)
    ends = [0, *accumulate(numels)]
    before = [_ones_before(bits, end) for end in ends]
    whole = [
        int(per_byte[begin // 8 : end // 8].sum(dtype=torch.int64)) for begin, end in pairwise(ends)
    ]
    return [n + before[i + 1] - before[i] for i, n in enumerate(whole)]


def has_padding(bits: Tensor, numel: int) -> bool:
    """Whether bits behind the last of `numel` values are set, which `pack` never does."""
    return numel % 8 != 0 and int(bits[numel // 8]) >> numel % 8 != 0


def count(packed: Sequence[Tensor], numel: int) -> Tensor:
    """How many of the packed masks have each of `numel` bits, uint8 [numel].

    Masks are added as bits: the i-th bits of all counts form a plane, made by carry-save adders,
    and only the log2 planes are spread to a byte per value. Of more than MAX_MASKS masks the
    counts are int64. Raises ValueError if there are no masks, or any of another length.
    """
    if not packed:
        raise ValueError("no masks: expected at least 1")
    if len(packed) > MAX_MASKS:
        some = (packed[i : i + MAX_MASKS] for i in range(0, len(packed), MAX_MASKS))
        return torch.stack([count(each, numel) for each in some]).sum(0)
    for bits in packed:
        _check_length(bits, numel)
    device, size = packed[0].device, packed_bytes(numel)
    total = torch.empty(8 * size, dtype=torch.uint8, device=device)
    step = max(1, _BLOCK_BYTES.get(device.type, size))
    for begin in range(0, size, step):
        block = [bits[begin : begin + step] for bits in packed]
        _merge(list(_planes(block)), total[8 * begin : 8 * (begin + step)])
    return total[:numel]


def _planes(packed: list[Tensor]) -> Iterator[Tensor]:
    """Bits of the counts, lowest first: three addends of a weight become one and a carry."""
    while packed:
        addends, carries = list(packed), []
        while len(addends) > 2:
            a, b, c = addends.pop(), addends.pop(), addends.pop()
            half = a ^ b
            addends.append(half ^ c)
            carries.append((a & b).bitwise_or_(half.bitwise_and_(c)))
        if len(addends) == 2:
            a, b = addends
            addends = [a ^ b]
            carries.append(a & b)
        yield addends[0]
        packed = carries


def _merge(planes: list[Tensor], out: Tensor) -> None:
    """Write the counts that `planes`, lowest first, are the bits of."""
    out.copy_(_spread(planes.pop()))
    while planes:
        out.mul_(2).bitwise_or_(_spread(planes.pop()))


def _spread(bits: Tensor) -> Tensor:
    """A byte, 0 or 1, for each bit."""
    if bits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little"))
    return ((bits[:, None] >> _places(bits.device)) & 1).view(-1)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def _ones_per_byte(bits: Tensor) -> Tensor:
    """Number of ones in each byte, by sums of neighbouring bits, pairs and nibbles."""
    pairs = bits - ((bits >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (nibbles + (nibbles >> 4)) & 0x0F


def _ones_before(bits: Tensor, end: int) -> int:
    """Ones in the byte of bit `end` that stand before it; 0 where a byte begins."""
    return bin(int(bits[end // 8]) & ((1 << end % 8) - 1)).count("1") if end % 8 else 0


def _check_length(bits: Tensor, numel: int) -> None:
    if bits.shape != (packed_bytes(numel),):
        raise ValueError(
            f"packed mask of shape {list(bits.shape)}: {numel} values take {packed_bytes(numel)} "
            "bytes"
        )
