"""Binary masks: which values are the largest, masks as bits, and how many masks have each bit.

A packed mask holds 8 values a byte, the first in the lowest bit; the masks of several tensors
follow each other without gaps, and the unused bits of the last byte are 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from p2p_dml.errors import TrainingError

MAX_MASKS = 255
"""How many masks `count` can count: what a byte holds."""

_BLOCK_BYTES = {"cpu": 1 << 18}
"""Bytes of each mask counted at a time, so that all planes stay in cache; elsewhere all at once."""


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
    finds the same mask. Raises TrainingError if x holds NaN and ValueError as `num_kept`.
    """
    kept = num_kept(x.numel(), share)
    flat = x.detach().reshape(-1)
    if kept == 0:
        return torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    if bool(flat.max().isnan()):
        raise TrainingError("the values to be masked are not all numbers; the training diverged")
    least = _least_kept(flat, kept)
    mask = flat >= least
    surplus = int(mask.count_nonzero()) - kept
    if surplus:
        mask[(flat == least).nonzero()[-surplus:]] = False
    return mask.view(x.shape)


def _least_kept(flat: Tensor, kept: int) -> Tensor:
    """The `kept`-th largest value, a tensor of no dimension."""
    place = flat.numel() - kept
    if flat.device.type != "cpu":
        return flat.kthvalue(place + 1).values
    exact = flat.float() if flat.dtype.itemsize < 4 else flat  # numpy has no bfloat16
    return torch.from_numpy(np.partition(exact.numpy(), place)[place, None])[0].to(flat.dtype)


def packed_bytes(numel: int) -> int:
    """Size of a packed mask of `numel` values."""
    return -(-numel // 8)


def pack(masks: Sequence[Tensor]) -> Tensor:
    """Pack bool masks of any shapes one after the other; returns uint8 [packed_bytes]."""
    flat = [mask.reshape(-1) for mask in masks]
    joined = flat[0] if len(flat) == 1 else torch.cat(flat) if flat else torch.zeros(0).bool()
    if joined.device.type == "cpu":
        return torch.from_numpy(np.packbits(joined.numpy(), bitorder="little"))
    filled = torch.nn.functional.pad(joined.byte(), (0, -joined.numel() % 8)).view(-1, 8)
    return (filled << _places(joined.device)).sum(1, dtype=torch.uint8)


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

    Up to MAX_MASKS masks are added as bits: the i-th bits of all counts form a plane, made by
    carry-save adders, and only the log2 planes are spread to a byte per value.
    Raises ValueError if there are no masks, too many, or any of another length.
    """
    if not 1 <= len(packed) <= MAX_MASKS:
        raise ValueError(f"{len(packed)} masks: expected 1 to {MAX_MASKS}")
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
