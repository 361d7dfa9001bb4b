"""Entropy code of packed masks: bits as if drawn with the share of ones of their own layer.

The code is self-contained but for the sizes of the layers: one little-endian uint32 a layer with
its number of ones, then the 32-bit words of an ANS coder (Duda 2013; the coder is `constriction`,
Bamler 2022). A symbol of the coder is a byte, that is 8 bits of one layer, whose probability is the
product of those of its bits: as short as bit by bit, and several times as fast. ANS maps codes to
symbols one to one, so a mask has one code, and a code that was cut, extended or changed is noticed
unless it happens to be the code of another mask with the announced numbers of ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from constriction import stream
from numpy.typing import NDArray
from torch import Tensor

_Bytes = NDArray[np.uint8]
_WORD = np.dtype("<u4")

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
"""The bits of each byte [256, 8], in any order."""

_ONES = _BITS.sum(axis=1, dtype=np.uint8)
"""Number of ones in each byte [256]."""


def encode(bits: Tensor, numels: Sequence[int]) -> Tensor:
    """Code of the masks of `numels` values that `bits` holds packed, uint8 [length].

    Raises ValueError if `numels` need another number of bytes, or one of them is 2^32 or more.
    """
    layers = _layers(bits, numels)
    counts = _checked([_num_ones(layer) for layer in layers], numels)
    coder = stream.stack.AnsCoder()
    for layer, ones, numel in reversed(list(zip(layers, counts, numels, strict=True))):
        if 0 < ones < numel:  # what goes in last comes out first
            coder.encode_reverse(layer.astype(np.int32), _model(ones, numel))
    code = np.concatenate([np.array(counts, _WORD), coder.get_compressed().astype(_WORD)])
    return torch.from_numpy(code.view(np.uint8))


def decode(code: Tensor, numels: Sequence[int]) -> Tensor:
    """The packed masks of `numels` values whose code this is.

    Raises ValueError if it is the code of no such masks. What is allocated on the way is at most
    a few bytes a value, whatever the code says.
    """
    if code.dtype != torch.uint8 or code.dim() != 1 or code.numel() % _WORD.itemsize:
        raise ValueError(f"a code of {code.dtype} {list(code.shape)}: expected uint8 [4 k]")
    words = np.frombuffer(code.numpy().tobytes(), dtype=_WORD)
    counts = _checked(words[: len(numels)].tolist(), numels)
    layers = _decoded(words[len(numels) :], counts, numels)
    if [_num_ones(layer) for layer in layers] != counts:
        raise ValueError("the decoded masks have other numbers of ones than was announced")
    return torch.from_numpy(_joined(layers, numels))


def entropy_bytes(ones: Iterable[int], numels: Iterable[int]) -> float:
    """Least mean size of masks whose bits are drawn with these shares of ones, layer by layer.

    Sum of n H(k / n) / 8 over layers of n values and k ones, with H the binary entropy in bits.
    """
    return sum(_entropy_bits(k, n) for k, n in zip(ones, numels, strict=True)) / 8


def code_bytes(ones: Sequence[int], numels: Sequence[int]) -> int:
    """How long the code of masks with these numbers of ones is, to a few words."""
    return _WORD.itemsize * (len(numels) + math.ceil(entropy_bytes(ones, numels) / 4))


def _entropy_bits(ones: int, numel: int) -> float:
    return -sum(k * math.log2(k / numel) for k in (ones, numel - ones) if k)


def _num_ones(layer: _Bytes) -> int:
    return int(_ONES[layer].sum(dtype=np.int64))


def _checked(counts: list[int], numels: Sequence[int]) -> list[int]:
    if max(numels, default=0) >= 2**32:
        raise ValueError("a layer of 2^32 values or more: its number of ones has no room")
    if len(counts) != len(numels) or any(k > n for k, n in zip(counts, numels, strict=True)):
        raise ValueError("the announced numbers of ones do not fit the layers")
    return counts


@lru_cache(maxsize=64)  # peers keep the same share of a layer, round after round
def _model(ones: int, numel: int) -> stream.model.Categorical:
    """Probabilities of bytes: products in a fixed order, so equal wherever IEEE 754 holds."""
    share = ones / numel
    probabilities = np.ones(256)
    for bit in _BITS.T:
        probabilities *= np.where(bit, share, 1 - share)
    return stream.model.Categorical(probabilities, perfect=False)


def _decoded(words: NDArray[np.uint32], counts: list[int], numels: Sequence[int]) -> list[_Bytes]:
    """The bytes of each layer. ValueError unless exactly these words are used up."""
    coder = stream.stack.AnsCoder(words.astype(np.uint32))  # ValueError if the last word is 0
    layers: list[_Bytes] = []
    for ones, numel in zip(counts, numels, strict=True):
        if 0 < ones < numel:
            layers.append(coder.decode(_model(ones, numel), -(-numel // 8)).astype(np.uint8))
        else:
            layers.append(_packed(np.full(numel, ones > 0)))
    if not coder.is_empty():
        raise ValueError("the code is longer than that of its masks")
    return layers


def _layers(bits: Tensor, numels: Sequence[int]) -> list[_Bytes]:
    """The bytes of each layer, moved to begin with its first bit; a copy only where they move."""
    if bits.shape != (-(-sum(numels) // 8),):
        raise ValueError(f"packed masks {list(bits.shape)} for {sum(numels)} values")
    layers = []
    for end, numel in zip(accumulate(numels), numels, strict=True):
        begin = end - numel
        layer = bits.numpy()[begin // 8 : -(-end // 8)]
        if begin % 8 or end % 8:
            layer = _packed(np.unpackbits(layer, bitorder="little")[begin % 8 :][:numel])
        layers.append(layer)
    return layers


def _joined(layers: Sequence[_Bytes], numels: Sequence[int]) -> _Bytes:
    """The layers' bits without gaps. ValueError if a layer has bits behind its last value."""
    for layer, numel in zip(layers, numels, strict=True):
        if numel % 8 and layer[-1] >> numel % 8:
            raise ValueError("the code has bits behind the end of a layer")
    if any(numel % 8 for numel in numels[:-1]):
        each = zip(layers, numels, strict=True)
        spread = [np.unpackbits(layer, count=numel, bitorder="little") for layer, numel in each]
        return _packed(np.concatenate(spread))
    return np.concatenate([np.zeros(0, np.uint8), *layers])


def _packed(bits: NDArray[np.uint8] | NDArray[np.bool_]) -> _Bytes:
    return np.packbits(bits, bitorder="little")
