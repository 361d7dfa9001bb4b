"""The modulo lattice code: a model in 8 or 16 bits per value, read around the reader's own model.

A value y is rounded to the lattice point k = round(y / cell) and only k mod 2^bits is sent. The
reader takes the point of that residue nearest to its own value x, which is k as long as
|x - y| < (2^bits - 1) cell / 2. A checksum over all k tells when it was not.

Source: Davies et al. 2021 and Nadiradze et al. 2021 (SwarmSGD), section 4, with the cubic lattice
and rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from p2p_dml.types import Tensors

_DTYPES = {8: torch.uint8, 16: torch.int16}
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2^64 / golden ratio, as a signed word: consecutive multiples share no pattern."""


def points(values: Mapping[str, Tensor], cell: float) -> Tensors:
    """The nearest lattice points, as int64 multiples of `cell`; `values` must be finite."""
    return {name: (x.detach().double() / cell).round().long() for name, x in values.items()}


def placed(lattice: Mapping[str, Tensor], cell: float, like: Mapping[str, Tensor]) -> Tensors:
    """Lattice points as values, in the dtypes of `like`."""
    return {name: (k.double() * cell).to(like[name].dtype) for name, k in lattice.items()}


def encode(lattice: Mapping[str, Tensor], bits: int) -> tuple[Tensors, float]:
    """Codes (uint8 for 8 bits, int16 for 16) and the checksum of lattice points."""
    half = _offset(bits)
    codes = {
        name: (torch.remainder(k, 1 << bits) - half).to(_DTYPES[bits])
        for name, k in lattice.items()
    }
    return codes, checksum(lattice.values())


def decode(
    codes: Mapping[str, Tensor], near: Mapping[str, Tensor], cell: float, bits: int, expected: float
) -> Tensors | None:
    """The lattice points nearest to `near` with these codes; None if the checksum differs."""
    levels, half = 1 << bits, _offset(bits)
    lattice = {}
    for name, x in near.items():
        code = codes[name].long() + half
        turns = ((x.detach().double() / cell - code) / levels).round().long()
        lattice[name] = code + levels * turns
    return lattice if checksum(lattice.values()) == expected else None


def checksum(lattice: Iterable[Tensor]) -> float:
    """A 52-bit sum of all points, each times a multiplier of its place; exact as a float.

    The top bits of the 64-bit sum: a point that is off by 2^bits leaves the low ones alone.
    """
    total, place = 0, 1
    for k in lattice:
        places = torch.arange(place, place + k.numel(), device=k.device)
        total += int((k.reshape(-1) * (places * _GOLDEN | 1)).sum())
        place += k.numel()
    return float(total % 2**64 >> 12)


def _offset(bits: int) -> int:
    return 0 if bits == 8 else 1 << (bits - 1)
