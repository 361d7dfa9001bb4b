"""Mixing several times within one round, as a part of a strategy's generator."""

from __future__ import annotations

from collections.abc import Generator

import torch

from p2p_dml.kernels.means import weighted_mean
from p2p_dml.tensors import tmap
from p2p_dml.types import Inbox, Links, Outbox, Payload, Tensors


def consensus(
    now: Tensors, links: Links, exchanges: int, b: float = 0.0
) -> Generator[Outbox, Inbox, Tensors]:
    """Mix `now` in `exchanges` exchanges; returns new tensors.

    v^{k+1} = (1 + b) W v^k - b v^{k-1} with v^{-1} = v^0. It keeps the mean over peers for a doubly
    stochastic W; b = 0 is W^exchanges. Source: Ye et al. 2020 (Mudag), algorithm 2, FastMix.
    """
    before = now
    for _ in range(exchanges):
        inbox = yield links.now.broadcast(Payload(now))
        mixed = weighted_mean(*inbox.with_own(now))
        if b:
            mixed = tmap(lambda new, old: (1 + b) * new - b * old, mixed, before)
        before, now = now, mixed
    return now


def laplacian(before: Tensors, mixed: Tensors) -> Tensors:
    """(I - W) v from v and W v."""
    return tmap(torch.sub, before, mixed)
