"""Random projection of a model, so that the distance between peers is known without a collector.

Every peer projects its parameters with the same signs; whoever holds the projections of all peers
can estimate sqrt(1/n Σ_i ‖x_i − x̄‖²), since the projection is linear.
Source: tug-of-war sketch, Alon, Matias, Szegedy 1999; buckets as in Charikar et al. 2002.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WIDTH = 251
"""Number of buckets: prime, so that the rows of a weight matrix spread over all of them.

The squared distance of n peers has a relative standard error of about sqrt(2 / WIDTH / n), that is
9 % for one peer and 1.3 % for 50; models with at most WIDTH parameters are exact.
"""


_ROWS = 256
"""Rows of WIDTH parameters projected at a time, so that large models need no large copies."""


def sketch(tensors: Mapping[str, Tensor], seed: int) -> NDArray[np.float32]:
    """Signed sums of all parameters in WIDTH buckets [WIDTH]; unbiased in the squared norm.

    Parameter i of the concatenated tensors goes to bucket i mod WIDTH with the i-th random sign.
    """
    sums = np.zeros(WIDTH)
    for block, values in enumerate(_blocks(tensors)):
        words = np.random.Philox(key=[seed, block]).random_raw(-(-values.size // 64)).astype("<u8")
        positive = np.unpackbits(words.view(np.uint8))[: values.size].astype(bool)
        sums += np.where(positive, values, -values).reshape(_ROWS, WIDTH).sum(axis=0)
    return sums.astype(np.float32)


def _blocks(tensors: Mapping[str, Tensor]) -> Iterator[NDArray[np.float64]]:
    """The concatenated parameters in blocks of _ROWS x WIDTH, the last one filled up with 0."""
    block, used = np.zeros(_ROWS * WIDTH), 0
    for x in tensors.values():
        flat = x.detach().cpu().reshape(-1).to(torch.float32 if x.dtype.itemsize < 4 else x.dtype)
        rest = flat.numpy()
        while rest.size:
            count = min(rest.size, block.size - used)
            block[used : used + count] = rest[:count]
            rest, used = rest[count:], used + count
            if used == block.size:
                yield block
                used = 0
    if used:
        block[used:] = 0.0
        yield block


def encode(values: NDArray[np.float32]) -> str:
    """Base64 text of a sketch, for an event line."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def decode(text: str) -> NDArray[np.float32] | None:
    """The sketch [WIDTH] that `encode` wrote; None for a text that it has not written."""
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    except ValueError:  # no base64, or no whole number of values
        return None
    return values if values.size == WIDTH else None


def consensus_distance(sketches: NDArray[np.float32]) -> float:
    """Root mean square distance of the peers' models to their mean, from sketches [n, WIDTH]."""
    deviation = sketches.astype(np.float64) - sketches.mean(axis=0, dtype=np.float64)
    return float(np.sqrt((deviation**2).sum() / len(sketches)))
