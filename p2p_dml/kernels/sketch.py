"""Random projection of a model, so that the distance between peers is known without a collector.

Every peer projects its parameters with the same signs; whoever holds the projections of all peers
can estimate sqrt(1/n Σ_i ‖x_i − x̄‖²), since the projection is linear.
Source: tug-of-war sketch, Alon, Matias, Szegedy 1999; buckets as in Charikar et al. 2002.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from p2p_dml.tensors import flatten

WIDTH = 251
"""Number of buckets: prime, so that the rows of a weight matrix spread over all of them.

The squared distance of n peers has a relative standard error of about sqrt(2 / WIDTH / n), that is
9 % for one peer and 1.3 % for 50; models with at most WIDTH parameters are exact.
"""


def sketch(tensors: Mapping[str, Tensor], seed: int) -> NDArray[np.float32]:
    """Signed sums of all parameters in WIDTH buckets [WIDTH]; unbiased in the squared norm."""
    flat = flatten(tensors).numpy()
    rows = -(-flat.size // WIDTH)
    words = np.random.Philox(key=seed).random_raw(-(-rows * WIDTH // 64)).astype("<u8")
    positive = np.unpackbits(words.view(np.uint8))[: rows * WIDTH].astype(bool)
    padded = np.zeros(rows * WIDTH)
    padded[: flat.size] = flat
    signed = np.where(positive, padded, -padded)
    sums: NDArray[np.float64] = signed.reshape(rows, WIDTH).sum(axis=0)
    return sums.astype(np.float32)


def encode(values: NDArray[np.float32]) -> str:
    """Base64 text of a sketch, for an event line."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def decode(text: str) -> NDArray[np.float32]:
    """The sketch [WIDTH] that `encode` wrote."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")


def consensus_distance(sketches: NDArray[np.float32]) -> float:
    """Root mean square distance of the peers' models to their mean, from sketches [n, WIDTH]."""
    deviation = sketches.astype(np.float64) - sketches.mean(axis=0, dtype=np.float64)
    return float(np.sqrt((deviation**2).sum() / len(sketches)))
